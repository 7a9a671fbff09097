// What the stand-alone programs share: conversions, heap memory of exact size, and checks.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "common/language.cuh"

namespace standalone {

inline int failures = 0;  // a program ends after the first check where this is not 0

inline int finish() {
  std::printf("%s\n", failures ? "wrong" : "right");
  return failures ? 1 : 0;
}

// ThreadSanitizer watches the order of accesses, not numbers: float stands for every type that has no code of its own.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kWatchesOrder = true;
#else
inline constexpr bool kWatchesOrder = false;
#endif

inline double to_double(float value) { return value; }
inline double to_double(double value) { return value; }
inline double to_double(__half value) { return __half2float(value); }
inline double to_double(__nv_bfloat16 value) { return __bfloat162float(value); }
inline void assign(float& to, double value) { to = float(value); }
inline void assign(double& to, double value) { to = value; }
inline void assign(__half& to, double value) { to = __float2half(float(value)); }
inline void assign(__nv_bfloat16& to, double value) { to = __float2bfloat16(float(value)); }

// Memory that AddressSanitizer guards, NaN at first, its first element `offset` elements past a 64-byte boundary; those
// before must not be written either.
template <class T>
struct Buffer {
  static constexpr std::align_val_t kBoundary{64};
  struct Free {
    void operator()(T* memory) const { ::operator delete[](memory, kBoundary); }
  };
  std::unique_ptr<T[], Free> memory;
  int64_t count, offset;
  explicit Buffer(int64_t n = 0, int64_t past = 0)
      : memory(n ? static_cast<T*>(::operator new[](size_t(n + past) * sizeof(T), kBoundary)) : nullptr),
        count(n),
        offset(past) {
    for (int64_t i = 0; memory && i < n + past; ++i) assign(memory[i], NAN);
  }
  Buffer(Buffer&&) = default;
  ~Buffer() {
    for (int64_t i = 0; memory && i < offset; ++i) {
      if (std::isnan(to_double(memory[i]))) continue;
      std::printf("written before the beginning\n");
      ++failures;
    }
  }
  T* data() { return memory ? memory.get() + offset : nullptr; }
  T& operator[](int64_t i) { return memory[offset + i]; }
  std::vector<double> doubles() {
    std::vector<double> result(count);
    for (int64_t i = 0; i < count; ++i) result[i] = to_double((*this)[i]);
    return result;
  }
};

// Waits for the kernels of a call, which must have been launched well.
template <class Result>
void check_launches(const std::string& what, const Result& result) {
  cudaDeviceSynchronize();
  if (!result.error) return;
  std::printf("%s: %s: %s\n", what.c_str(), result.kernel, result.error);
  ++failures;
}

inline double largest(const std::vector<double>& values) {
  double result = 0;
  for (double value : values) result = std::max(result, std::fabs(value));
  return result;
}

// Errors over the largest number that is wanted, or over `terms`: the size of what is summed, where that is larger.
inline void compare(const std::string& what, const std::vector<double>& got, const std::vector<double>& want,
                    double tolerance, double terms = 0) {
  const double scale = std::max({largest(want), terms, 1e-30});
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(got[i] - want[i]) / scale;
    worst = error <= worst ? worst : error;  // a NaN is the worst
  }
  if (got.size() == want.size() && worst <= tolerance) return;
  std::printf("%s: error %.3g, allowed %.3g\n", what.c_str(), worst, tolerance);
  ++failures;
}

}  // namespace standalone
