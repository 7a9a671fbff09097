// What the CUDA launchers of every op share: element types from DataType, and a Result from an error.
#pragma once
#include "common/cuda_launch.h"
#include "common/numeric.cuh"

namespace attnkernels {

inline Result result(const char* kernel, cudaError_t error) {
  return error == cudaSuccess ? Result{} : Result{kernel, cudaGetErrorString(error)};
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
