// What the stand-alone programs share: conversions, and heap memory of exact size.
#pragma once
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/language.cuh"

namespace standalone {

inline int failures = 0;  // a program ends with 1 where this is not 0

inline double to_double(float value) { return value; }
inline double to_double(double value) { return value; }
inline double to_double(__half value) { return __half2float(value); }
inline double to_double(__nv_bfloat16 value) { return __bfloat162float(value); }
inline void assign(float& to, double value) { to = float(value); }
inline void assign(double& to, double value) { to = value; }
inline void assign(__half& to, double value) { to = __float2half(float(value)); }
inline void assign(__nv_bfloat16& to, double value) { to = __float2bfloat16(float(value)); }

// Memory that AddressSanitizer guards, NaN at first, its first element `offset` elements past an aligned one.
template <class T>
struct Buffer {
  std::unique_ptr<T[]> memory;
  int64_t count, offset;
  explicit Buffer(int64_t n = 0, int64_t past = 0) : memory(n ? new T[n + past] : nullptr), count(n), offset(past) {
    for (int64_t i = 0; i < n; ++i) assign((*this)[i], NAN);
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
