// Element types of the kernels: the type in which sums are held, conversions, 128-bit vectors.
#pragma once
#include <cstring>

#include "common/language.cuh"

namespace attnkernels {

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

// torch compiles with the operators and conversions of half and bfloat16 switched off: name each conversion.
__host__ __device__ __forceinline__ float widen(float value) { return value; }
__host__ __device__ __forceinline__ double widen(double value) { return value; }
__host__ __device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__host__ __device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__host__ __device__ __forceinline__ T narrow(accumulate_t<T> value) {
  if constexpr (sizeof(T) >= sizeof(float)) {
    return value;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

// Elements of one 128-bit access, the widest that every architecture has.
template <class T>
inline constexpr int kVectorWidth = 16 / sizeof(T);

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

// How long the cache should keep what an access touches: kOnce for data that nothing reads again.
enum class Reuse { kLikely, kOnce };

template <int kWidth, Reuse kReuse = Reuse::kLikely, class T>
__device__ __forceinline__ Vector<T, kWidth> load(const T* from) {
#ifndef ATTNKERNELS_EMULATED
  if constexpr (sizeof(Vector<T, kWidth>) == 16 && kReuse == Reuse::kOnce) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    Vector<T, kWidth> result;
    memcpy(&result, &bits, 16);
    return result;
  }
#endif
  return *reinterpret_cast<const Vector<T, kWidth>*>(from);
}

template <int kWidth, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, kWidth>& value, Reuse reuse = Reuse::kLikely) {
#ifndef ATTNKERNELS_EMULATED
  if constexpr (sizeof(Vector<T, kWidth>) == 16) {
    if (reuse == Reuse::kOnce) {
      uint4 bits;
      memcpy(&bits, &value, 16);
      __stcs(reinterpret_cast<uint4*>(to), bits);
      return;
    }
  }
#endif
  *reinterpret_cast<Vector<T, kWidth>*>(to) = value;
}

// Elements by which `pointer` lies past a 128-bit boundary.
template <class T>
__host__ __device__ __forceinline__ int misalignment(const T* pointer) {
  return int(reinterpret_cast<uintptr_t>(pointer) % 16 / sizeof(T));
}

}  // namespace attnkernels
