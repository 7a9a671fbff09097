// The spellings of CUDA C++ for the host compiler: what csrc/common/language.cuh includes with -DATTNKERNELS_EMULATED.
// Kernels run as fibers (scheduler.h); NVIDIA's own headers give bit-exact half and bfloat16 on the host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "emulation/scheduler.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __shared__ static_assert(false, "write SHARED(type, name, [size]) or SHARED_DYNAMIC(type, name)")

#define SHARED(T, name, ...)                              \
  static const char attnkernels_key_of_##name = 0;        \
  using attnkernels_type_of_##name = T __VA_ARGS__;       \
  auto& name = *static_cast<attnkernels_type_of_##name*>( \
      ::attnkernels::emulation::shared_array(&attnkernels_key_of_##name, sizeof(attnkernels_type_of_##name)))
#define SHARED_DYNAMIC(T, name) \
  T* name = reinterpret_cast<T*>(::attnkernels::emulation::current_thread->block->dynamic_shared)

using std::max;
using std::min;

#include "emulation/atomics.h"
#include "emulation/groups.h"
#include "emulation/intrinsics.h"
#include "emulation/runtime.h"
#include "emulation/warp.h"
