// What the torch bindings of the CUDA walls share: element types, the current device and stream, launch errors. Built
// with ATTNKERNELS_EMULATED they take CPU tensors and run the same kernels on the host.
#pragma once
#include "common/binding.h"
#include "common/cuda_launch.h"
#ifdef ATTNKERNELS_EMULATED
#include "emulation/scheduler.h"
#endif

namespace attnkernels {

inline DataType data_type(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DataType::kFloat;
    case ScalarType::Double:
      return DataType::kDouble;
    case ScalarType::Half:
      return DataType::kHalf;
    case ScalarType::BFloat16:
      return DataType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, float16 or bfloat16");
  }
}

inline void check_device(const char* op, const Tensor& x) {
#ifdef ATTNKERNELS_EMULATED
  STD_TORCH_CHECK(x.is_cpu(), op, ": expected a CPU tensor");
#else
  STD_TORCH_CHECK(x.is_cuda(), op, ": expected a CUDA tensor");
#endif
}

// After every launcher, while the memory that it was given is there.
inline void check_launch(const char* op, const Result& result) {
#ifdef ATTNKERNELS_EMULATED
  emulation::synchronize();
#endif
  STD_TORCH_CHECK(!result.error, op, ": ", result.kernel, ": ", result.error);
}

#ifdef ATTNKERNELS_EMULATED
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};
inline void* current_stream(const Tensor&) { return nullptr; }
#else
using torch::stable::accelerator::DeviceGuard;
inline void* current_stream(const Tensor& x) {
  void* stream = nullptr;
  check_call(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream), "aoti_torch_get_current_cuda_stream");
  return stream;
}
#endif

}  // namespace attnkernels
