// What the launchers share.
#pragma once
#include "common/cuda_dispatch.cuh"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {

inline dim3 grid_of(int64_t blocks, int64_t samples) { return dim3(unsigned(blocks), unsigned(samples)); }

// How many clusters of a plan run at once on the current device.
template <class... Parameters>
int active_clusters(const Plan& plan, void (*kernel)(Parameters...)) {
#ifndef ATTNKERNELS_EMULATED  // where tests change the device
  // The same as at the last call, most often: asking takes microseconds.
  thread_local struct {
    const void* kernel;
    size_t shared_bytes;
    int device, clusters;
  } last{};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (last.kernel == reinterpret_cast<const void*>(kernel) && last.shared_bytes == plan.shared_bytes &&
      last.device == device)
    return last.clusters;
#endif
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
#ifndef ATTNKERNELS_EMULATED
  last = {reinterpret_cast<const void*>(kernel), plan.shared_bytes, device, clusters};
#endif
  return clusters;
}

}  // namespace attnkernels::squeeze_excite
