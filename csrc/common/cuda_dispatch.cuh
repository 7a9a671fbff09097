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

}  // namespace attnkernels
