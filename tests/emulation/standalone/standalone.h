// What the stand-alone programs share: conversions, and heap memory of exact size.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>
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

}  // namespace standalone
