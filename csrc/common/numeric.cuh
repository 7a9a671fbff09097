// Element types of the kernels: the type in which sums are held, conversions, 128-bit vectors.
#pragma once
#include <cstring>
#include <type_traits>

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
using acc_type = typename Accumulate<T>::type;

// torch compiles with the operators and conversions of half and bfloat16 switched off: name each conversion.
__host__ __device__ __forceinline__ float widen(float value) { return value; }
__host__ __device__ __forceinline__ double widen(double value) { return value; }
__host__ __device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__host__ __device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__host__ __device__ __forceinline__ T narrow(acc_type<T> value) {
  if constexpr (sizeof(T) >= sizeof(float)) {
    return value;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

// The larger one, or a NaN if there is one.
template <class A>
__device__ __forceinline__ A nan_max(A a, A b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<A, float>) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
  }
#endif
  return b > a || b != b ? b : a;
}

// Elements of one 128-bit access, the widest that every architecture has.
template <class T>
inline constexpr int kVectorWidth = 16 / sizeof(T);

// kWidth elements, moved as one. 16-bit types lie in pairs in 32-bit words, which is how registers hold them: taken
// apart at the load they would need twice as many.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) [[gnu::may_alias]] Vector {
  using acc_t = acc_type<T>;
  static constexpr bool kPairs = sizeof(T) == 2 && kWidth > 1;
  using Word = std::conditional_t<kPairs, uint32_t, T>;
  Word words[kPairs ? kWidth / 2 : kWidth];

  __device__ __forceinline__ acc_t get(int k) const {
    if constexpr (!kPairs) {
      return widen(words[k]);
    } else if constexpr (std::is_same_v<T, __half>) {
      return widen(__ushort_as_half(uint16_t(words[k / 2] >> (k % 2 * 16))));
    } else {  // a bfloat16 is the upper half of a float
      return __uint_as_float(k % 2 ? words[k / 2] & 0xffff0000u : words[k / 2] << 16);
    }
  }
  __device__ __forceinline__ void set_zero(int k) {
    if constexpr (kPairs) {
      words[k / 2] &= k % 2 ? 0x0000ffffu : 0xffff0000u;
    } else {
      words[k] = narrow<T>(0);
    }
  }
  __device__ __forceinline__ void set(const acc_t (&values)[kWidth]) {
    if constexpr (!kPairs) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) words[k] = narrow<T>(values[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kWidth; k += 2) {
        if constexpr (std::is_same_v<T, __half>) {
          const __half2 pair = __floats2half2_rn(values[k], values[k + 1]);
          memcpy(&words[k / 2], &pair, 4);
        } else {
          const __nv_bfloat162 pair = __floats2bfloat162_rn(values[k], values[k + 1]);
          memcpy(&words[k / 2], &pair, 4);
        }
      }
    }
  }
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
__device__ __forceinline__ Vector<T, kWidth> load(const T* from, Reuse reuse) {
  return reuse == Reuse::kOnce ? load<kWidth, Reuse::kOnce>(from) : load<kWidth>(from);
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

// Division of numbers up to 2^31 by one that is known at launch (1 to 2^31): a product, a sum and a shift instead of
// some twenty instructions (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994).
struct Divisor {
  uint32_t value = 1, multiplier = 1, shift = 0;

  Divisor() = default;
  __host__ explicit Divisor(uint32_t divisor) : value(divisor) {
    while ((uint64_t(1) << shift) < divisor) ++shift;
    multiplier = uint32_t((((uint64_t(1) << shift) - divisor) << 32) / divisor + 1);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t number) const {
    return (__umulhi(number, multiplier) + number) >> shift;
  }
};

// Elements by which `pointer` lies past a 128-bit boundary.
template <class T>
__host__ __device__ __forceinline__ int misalignment(const T* pointer) {
  return int(reinterpret_cast<uintptr_t>(pointer) % 16 / sizeof(T));
}

}  // namespace attnkernels
