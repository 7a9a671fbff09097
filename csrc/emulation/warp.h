// Block barriers, warp shuffles and votes.
#pragma once
#include <bit>
#include <cstring>
#include <type_traits>

#include "emulation/scheduler.h"

namespace attnkernels::emulation {

// The value of lane `source`, or the thread's own where `source` is outside its part of the warp.
template <class T>
T shuffle(unsigned mask, T value, int source, bool inside, const char* name, Location where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(Exchange::kShuffle, mask, bits, inside ? unsigned(source) : current_thread->lane, name, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace attnkernels::emulation

#define ATTNKERNELS_HERE ::attnkernels::emulation::Location where = ::attnkernels::emulation::Location::current()

inline void __syncthreads(ATTNKERNELS_HERE) { attnkernels::emulation::block_barrier(0, "__syncthreads", where); }
inline int __syncthreads_or(int predicate, ATTNKERNELS_HERE) {
  attnkernels::emulation::block_barrier(predicate, "__syncthreads_or", where);
  return attnkernels::emulation::current_thread->block->votes > 0;
}
inline int __syncthreads_and(int predicate, ATTNKERNELS_HERE) {
  attnkernels::emulation::block_barrier(!predicate, "__syncthreads_and", where);
  return attnkernels::emulation::current_thread->block->votes == 0;
}
inline int __syncthreads_count(int predicate, ATTNKERNELS_HERE) {
  attnkernels::emulation::block_barrier(predicate, "__syncthreads_count", where);
  return attnkernels::emulation::current_thread->block->votes;
}
inline void __syncwarp(unsigned mask = ~0u, ATTNKERNELS_HERE) {
  using namespace attnkernels::emulation;
  exchange(Exchange::kSync, mask, 0, 0, "__syncwarp", where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ATTNKERNELS_HERE) {
  const int lane = int(attnkernels::emulation::current_thread->lane);
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return attnkernels::emulation::shuffle(mask, value, from, true, "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, ATTNKERNELS_HERE) {
  const int lane = int(attnkernels::emulation::current_thread->lane), from = lane ^ lane_mask;
  return attnkernels::emulation::shuffle(mask, value, from, from / width == lane / width, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ATTNKERNELS_HERE) {
  const int lane = int(attnkernels::emulation::current_thread->lane), from = lane + int(delta);
  return attnkernels::emulation::shuffle(mask, value, from, from / width == lane / width, "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ATTNKERNELS_HERE) {
  const int lane = int(attnkernels::emulation::current_thread->lane), from = lane - int(delta);
  const bool inside = from >= 0 && from / width == lane / width;
  return attnkernels::emulation::shuffle(mask, value, from, inside, "__shfl_up_sync", where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, ATTNKERNELS_HERE) {
  using namespace attnkernels::emulation;
  return unsigned(exchange(Exchange::kVote, mask, predicate != 0, 0, "__ballot_sync", where));
}
inline int __any_sync(unsigned mask, int predicate, ATTNKERNELS_HERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ATTNKERNELS_HERE) {
  return __ballot_sync(mask, !predicate, where) == 0;
}
inline unsigned __activemask() { return attnkernels::emulation::active_lanes(); }

namespace attnkernels::emulation {

// Combines the values of the mask's lanes, lowest lane first.
template <class T, class Combine>
T reduce(unsigned mask, T value, Combine combine, Location where) {
  T result{};
  bool first = true;
  for (unsigned rest = mask & active_lanes(); rest; rest &= rest - 1) {
    const T other = __shfl_sync(mask, value, std::countr_zero(rest), 32, where);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}

}  // namespace attnkernels::emulation

template <class T>
T __reduce_add_sync(unsigned mask, T value, ATTNKERNELS_HERE) {
  return attnkernels::emulation::reduce(mask, value, [](T a, T b) { return T(a + b); }, where);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, ATTNKERNELS_HERE) {
  return attnkernels::emulation::reduce(mask, value, [](T a, T b) { return a < b ? b : a; }, where);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, ATTNKERNELS_HERE) {
  return attnkernels::emulation::reduce(mask, value, [](T a, T b) { return b < a ? b : a; }, where);
}
inline void __nanosleep(unsigned) { attnkernels::emulation::yield(); }  // a spin loop must call it to let others run
