// Loads and stores with cache hints, fast mathematics (as exact as the host's) and bit tricks.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "emulation/scheduler.h"

// clang-format off
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> T __ldcv(const T* p) { return *p; }
template <class T> void __stwb(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stcg(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stcs(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stwt(T* p, std::type_identity_t<T> value) { *p = value; }

// The C library declares these names itself, hence macros.
#define __expf(x) std::exp(float(x))
#define __exp10f(x) std::pow(10.f, float(x))
#define __logf(x) std::log(float(x))
#define __log2f(x) std::log2(float(x))
#define __powf(x, y) std::pow(float(x), float(y))
#define __sinf(x) std::sin(float(x))
#define __cosf(x) std::cos(float(x))
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __frsqrt_rn(float x) { return 1.f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }  // NaN gives 0, as on a GPU
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline double rsqrt(double x) { return 1. / std::sqrt(x); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero((unsigned long long)(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
// clang-format on

[[noreturn]] inline void __trap() { attnkernels::emulation::fail("__trap()"); }
#define __builtin_assume(condition)
