// What the CUDA launchers of every op share: element types from DataType, and a Result from an error.
#pragma once
#include "common/cuda_launch.h"
#include "common/numeric.cuh"

namespace attnkernels {

inline Result result(const char* kernel, cudaError_t error) {
  return error == cudaSuccess ? Result{} : Result{kernel, cudaGetErrorString(error)};
}

// Whether a device of that compute capability (90 for 9.0) runs code of this library that has programmatic dependent
// launch: code compiled for an older one never waits.
inline bool has_dependent_launches([[maybe_unused]] int compute_capability) {
#ifdef ATTNKERNELS_EMULATED
  return compute_capability >= 90;
#else
  for (const int compiled : {__CUDA_ARCH_LIST__})
    if (compiled >= 900 && compiled <= 10 * compute_capability) return true;
  return false;
#endif
}

// What launchers ask of the device that is current.
struct Device {
  int compute_capability = 0;  // 90 for 9.0
  int multiprocessors = 0, l2_bytes = 0;
  int shared_bytes = 0;             // that a block can have
  bool dependent_launches = false;  // the device and the library have them
};

inline cudaError_t current_device(Device& device) {
  int index = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&index);
#ifndef ATTNKERNELS_EMULATED  // where tests change the device
  thread_local int known_index = -1;
  thread_local Device known;
  if (error == cudaSuccess && index == known_index) {
    device = known;
    return cudaSuccess;
  }
#endif
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
  };
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  ask(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(device.l2_bytes, cudaDevAttrL2CacheSize);
  ask(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.compute_capability = 10 * major + minor;
  device.dependent_launches = has_dependent_launches(device.compute_capability);
#ifndef ATTNKERNELS_EMULATED
  if (error == cudaSuccess) {
    known = device;
    known_index = index;
  }
#endif
  return error;
}

// run(T()) for the element type
template <class Run>
auto dispatch(DataType type, Run run) {
  switch (type) {
    case DataType::kDouble:
      return run(double());
    case DataType::kHalf:
      return run(__half());
    case DataType::kBFloat16:
      return run(__nv_bfloat16());
    default:
      return run(float());
  }
}

// A grid along one dimension.
struct Blocks {
  int64_t count;
  int threads;
  size_t shared_bytes = 0;
  bool dependent = false;  // wait_for_primary_grid
};

template <class... Parameters>
Result start(const char* name, void (*kernel)(Parameters...), const Blocks& blocks, void* stream,
             const std::type_identity_t<Parameters>&... arguments) {
  constexpr int64_t kLargestGrid = (int64_t(1) << 31) - 1;
  if (blocks.count > kLargestGrid) return {name, "more blocks than a grid can have"};
  LaunchConfig config;
  config.grid = dim3(unsigned(blocks.count));
  config.block = dim3(unsigned(blocks.threads));
  config.shared_bytes = blocks.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.dependent = blocks.dependent;
  return result(name, launch(config, kernel, arguments...));
}

}  // namespace attnkernels
