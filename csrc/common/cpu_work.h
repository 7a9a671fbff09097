// How the CPU bindings allocate and divide work: pieces that fit the cache, threads, when to write past the caches.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "common/binding.h"
#include "common/simd.h"

namespace attnkernels::cpu {

// Fills a new tensor with NaN where attnkernels::fill_new_memory asks for it, so that tests see what no kernel wrote.
void fill_if_asked(Tensor& x);  // runtime_cpu.cpp

// Calls f(T{}) with the element type of a dtype.
template <class F>
void dispatch(const char* what, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, what, ": expected float32, float64, float16 or bfloat16");
  }
}

// An uninitialised CPU tensor.
inline Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype, bool channels_last = false) {
  Tensor x = attnkernels::allocate(shape, dtype, aoti_torch_device_type_cpu(), 0, channels_last);
  fill_if_asked(x);
  return x;
}

// A result of an operator; where it is not wanted the empty tensor [0], which stands for it.
inline Tensor allocate_result(bool wanted, torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype,
                              bool channels_last = false) {
  return wanted ? allocate(shape, dtype, channels_last) : allocate({0}, dtype);
}

template <class T>
const T* input(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
const T* input(const std::optional<Tensor>& x) {
  return x ? input<T>(*x) : nullptr;
}
// Null where there is nothing to write, and so for a result that is not wanted.
template <class T>
T* output(const Tensor& x) {
  return x.numel() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

// What a core may keep in its L2 between two passes: 0.7 of it, for the weights and the output pass through it as well.
inline int64_t cache_bytes() {
  static const int64_t level2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return (level2 > 0 ? level2 : 1024 * 1024) * 7 / 10;
}

// Outputs of this size are written past the caches, which saves fetching their lines first: half of a core's share of
// the L3, where input and output do not both stay until the next layer. At least 1 MB, below which streaming pushes out
// of the L2 what the next layer reads; at most 8 MB, where it wins whatever the L3 (measured: 32 MB L3 for two cores,
// outputs of 3 and 6 MB 0.5x, of 13 MB 1.3x).
inline int64_t stream_bytes() {
  static const int64_t share = sysconf(_SC_LEVEL3_CACHE_SIZE) / std::max<int64_t>(sysconf(_SC_NPROCESSORS_ONLN), 1) / 2;
  constexpr int64_t kMegabyte = 1024 * 1024;
  return std::clamp(share, kMegabyte, 8 * kMegabyte);
}

// Less memory than this is not worth waking a thread for: at 10 GB/s a core reads it in 6 us, a wake-up costs 5 to 20.
inline constexpr int64_t kBytesPerThread = 64 * 1024;

// Threads worth using on work that reads and writes `bytes`.
inline int64_t threads_for(int64_t bytes) {
  if (bytes < 2 * kBytesPerThread) return 1;
  return std::min<int64_t>(torch::stable::get_num_threads(), bytes / kBytesPerThread);
}

// f(begin, end) on `parts` nearly equal ranges that cover [0, count), each a multiple of `unit` long but the last;
// f(part, begin, end) knows its number. Serial, without any call into the runtime, where parts is 1.
template <class F>
void for_parts(int64_t parts, int64_t count, int64_t unit, const F& f) {
  if (parts <= 1) return f(int64_t(0), int64_t(0), count);
  const int64_t units = (count + unit - 1) / unit;
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      f(part, std::min(count, units * part / parts * unit), std::min(count, units * (part + 1) / parts * unit));
  });
}

}  // namespace attnkernels::cpu
