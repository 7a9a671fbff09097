// Copies from global to shared memory that their thread need not wait for (compute capability 8.0), and their host
// twins, which are done at once. Copies are committed in groups; a barrier shows them to the other threads.
#pragma once
#include "common/numeric.cuh"

namespace attnkernels {

// 16 aligned bytes; zeros, and nothing is read, where `inside` is not.
template <class T>
__device__ __forceinline__ void copy_async(T* to, const T* from, bool inside) {
#ifdef ATTNKERNELS_EMULATED
  constexpr int kVector = kVectorWidth<T>;
  store(to, inside ? load<kVector>(from) : Vector<T, kVector>{});
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
#else
  __trap();  // launchers must not come here below compute capability 8.0
#endif
}

__device__ __forceinline__ void commit_copies() {
#if !defined(ATTNKERNELS_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but those of the last kGroups groups.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
#if !defined(ATTNKERNELS_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace attnkernels
