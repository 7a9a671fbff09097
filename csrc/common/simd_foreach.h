// Compiles SIMD_FILE, and simd_vector.h before it, once per instruction-set level, each in a namespace of its
// own: baseline, avx2, avx512. To be included last: whatever standard header came after the first `target` would be
// compiled with instructions that the machine may lack.
#include "common/simd.h"

#ifndef SIMD_FILE
#error "define SIMD_FILE as the quoted path of the file to compile for every level"
#endif

#define SIMD_LEVEL baseline
#define SIMD_LEVEL_NUMBER 0
#include "common/simd_level.h"

#if defined(__x86_64__)

#define SIMD_LEVEL avx2
#define SIMD_LEVEL_NUMBER 1
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
#include "common/simd_level.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define SIMD_LEVEL avx512
#define SIMD_LEVEL_NUMBER 2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#include "common/simd_level.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// The function of the level in force; to be used in the namespace around the levels' namespaces.
#define SIMD_CHOOSE(...)                                                                      \
  (::attnkernels::simd::level() >= ::attnkernels::simd::Level::kAvx512 ? &avx512::__VA_ARGS__ \
   : ::attnkernels::simd::level() == ::attnkernels::simd::Level::kAvx2 ? &avx2::__VA_ARGS__   \
                                                                       : &baseline::__VA_ARGS__)
#else
#define SIMD_CHOOSE(...) (&baseline::__VA_ARGS__)
#endif

#undef SIMD_FILE
