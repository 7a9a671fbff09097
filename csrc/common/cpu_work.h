// How the CPU bindings divide work: pieces that fit the cache, threads, and when to write past the caches.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace attnkernels::cpu {

// What a core may keep in its L2 between two passes: 0.7 of it, for the weights and the output pass through it as well.
inline int64_t cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t level2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  static const int64_t level2 = 0;
#endif
  return (level2 > 0 ? level2 : 1024 * 1024) * 7 / 10;
}

// Outputs of this size are not in the next layer's cache any more when it reads them: they are written past the caches,
// which saves fetching their lines first. Below, that would push the next layer out to memory.
inline constexpr int64_t kStreamBytes = 1024 * 1024;

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
