// What every .cuh and .cu includes: the same source is compiled by nvcc for the GPU, or by the host compiler with
// -DATTNKERNELS_EMULATED, which runs the kernels on the CPU under sanitizers (csrc/emulation).
//
// Two spellings differ from plain CUDA, so that the emulation can see shared memory:
//   SHARED(T, name, [N]);          __shared__ T name[N];
//   SHARED_DYNAMIC(T, name);       extern __shared__ T name[];
// and launches go through launch(config, kernel, arguments...).
#pragma once
#ifdef ATTNKERNELS_EMULATED
#include "emulation/cuda_on_host.h"
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#define SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define SHARED_DYNAMIC(T, name)                              \
  extern __shared__ __align__(16) char attnkernels_shared[]; \
  T* name = reinterpret_cast<T*>(attnkernels_shared)
#endif

namespace attnkernels {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
  dim3 cluster{1, 1, 1};
  bool cooperative = false;
  bool dependent = false;  // may start before the stream's previous kernel has ended: see wait_for_primary_grid
  cudaStream_t stream = nullptr;
};

// Programmatic dependent launch (compute capability 9.0). A kernel that is launched as `dependent` may start once every
// block of the kernel before it has called launch_dependent_grids or ended. Before wait_for_primary_grid it may read
// only what no kernel since the last plain launch writes, and must write nothing in global memory; after it, all that
// earlier kernels wrote is there. Every thread of such a kernel calls it, also where it needs nothing: the kernel that
// follows takes this one's end for the end of all before it.
#ifndef ATTNKERNELS_EMULATED
__device__ __forceinline__ void wait_for_primary_grid() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void launch_dependent_grids() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
#endif

// Launches kernel(arguments...); the error, if any, is that of this launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
#ifdef ATTNKERNELS_EMULATED
  return emulation::launch(config, kernel, std::forward<Arguments>(arguments)...);
#else
  cudaLaunchConfig_t native{};
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = config.stream;
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {config.cluster.x, config.cluster.y, config.cluster.z};
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (config.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  native.attrs = attributes;
  native.numAttrs = count;
  if (config.shared_bytes > 48 * 1024) {  // more than the default needs an opt-in per kernel
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&native, kernel, Parameters(std::forward<Arguments>(arguments))...);
#endif
}

}  // namespace attnkernels
