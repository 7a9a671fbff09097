// SIMD from one source, compiled for several instruction-set levels and chosen at run time: no -march in a wheel.
//
// How an op uses it. `op_simd.h` (no include guard, no torch, no #include but of other such files) holds the kernels:
//
//   namespace attnkernels::op::SIMD_LEVEL { namespace {
//   using namespace simd::SIMD_LEVEL;
//   template <class T> void scale(T* y, const T* x, Accumulator<T> gate, int64_t count) {
//     constexpr int64_t kStep = kLanes<T>;
//     int64_t i = 0;
//     for (; i + kStep <= count; i += kStep) store(y + i, load(x + i) * gate);
//     if (i < count) store_partial(y + i, load_partial(x + i, count - i) * gate, count - i);
//   }
//   }}
//
// and `room_cpu.cpp` compiles it for every level, after all other headers, then calls the version of the level in
// force:
//
//   #define SIMD_FILE "op/op_simd.h"
//   #include "common/simd_foreach.h"
//   SIMD_CHOOSE(scale<float>)(y, x, gate, count);      // inside namespace attnkernels::op
//
// simd_vector.h lists the operations. Level code calls no function of the standard library but memcpy: the linker keeps
// one copy of an inline function, and it must not be one with instructions that the machine may lack.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own header: _mm512_undefined_ps and the like
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SIMD_INLINE [[gnu::always_inline]] inline
#define SIMD_INLINE_LAMBDA __attribute__((always_inline))  // before the braces of a lambda

namespace attnkernels {

// The bits of IEEE binary16 and of bfloat16; torch's own types have the same representation.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// Two that follow each other along a sum, the first in the low half. A matrix of them has half the depth.
struct BFloat16Pair {
  uint32_t bits;
};

namespace simd {

// kAvx512Bf16 is the code of kAvx512 with, where it asks for it, one instruction more: products of bfloat16.
enum class Level : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The level in force: the best of this CPU, unless ATTNKERNELS_SIMD or attnkernels::set_simd_level says otherwise.
Level level();

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace simd

using simd::Accumulator;

}  // namespace attnkernels
