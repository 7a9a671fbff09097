// What the launchers share: element types from DataType, and a Result from an error.
#pragma once
#include "common/numeric.cuh"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {

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

inline dim3 grid_of(int64_t blocks) { return dim3(unsigned(blocks)); }

// How many clusters of a plan run at once on the current device.
template <class... Parameters>
int active_clusters(const Plan& plan, void (*kernel)(Parameters...)) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(plan.cluster), 1, 1};
  // Grid, block, shared memory, stream, attributes: without names, since under emulation two of those are macros.
  const cudaLaunchConfig_t config{dim3(plan.cluster), dim3(plan.threads), plan.shared_bytes, nullptr, &attribute, 1};
  int clusters = 0;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan.shared_bytes)) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();  // the answer is "none": leave no error behind for the next launch to find
    return 0;
  }
  return clusters;
}

}  // namespace attnkernels::squeeze_excite
