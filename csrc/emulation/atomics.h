// Atomics. They are real and relaxed, so that TSan sees them as atomics; what they order, __threadfence() decides
// (scheduler.h). Every one is a compare-and-swap loop, which serves floating-point types too.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "emulation/scheduler.h"

namespace attnkernels::emulation {

template <class T, class Update>
T atomic_update(T* address, Update update) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  static_assert(sizeof(T) == sizeof(Bits));
  Bits* const bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    const Bits next = std::bit_cast<Bits>(update(std::bit_cast<T>(old)));
    if (!__atomic_compare_exchange_n(bits, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
    atomic_access(address);
    return std::bit_cast<T>(old);
  }
}

}  // namespace attnkernels::emulation

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return T(old + value); });
}
template <class T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return T(old - value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return old == compare ? value : old; });
}
template <class T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return T(old & value); });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return attnkernels::emulation::atomic_update(address, [&](T old) { return T(old | value); });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return attnkernels::emulation::atomic_update(address, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}

inline void __threadfence() { attnkernels::emulation::fence(); }
inline void __threadfence_system() { attnkernels::emulation::fence(); }
inline void __threadfence_block() {}
