// What AddressSanitizer and ThreadSanitizer must be told about fibers, stacks and barriers; nothing in other builds.
//
// TSan builds compile the emulation itself without -fsanitize=thread and with -DATTNKERNELS_EMULATION_TSAN: only
// kernels are watched, and only what a GPU would order (barriers, fences with atomics) is declared as order.
#pragma once
#include <cstddef>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(ATTNKERNELS_EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_write_range(void* address, unsigned long bytes);
#endif

namespace attnkernels::emulation {

#if defined(ATTNKERNELS_EMULATION_TSAN)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// What the sanitizers know of one fiber.
struct FiberShadow {
  void* fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

// The scheduler's own stack, as seen by the fiber that it last resumed.
struct SchedulerShadow {
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  void* tsan_fiber = nullptr;
};

// To TSan, a fiber is a thread: two CUDA threads that share one cannot race. Fibers, like stacks, are used again by
// later launches only, which everything in this one happens before; creating one costs a millisecond.
inline void take_fiber([[maybe_unused]] FiberShadow& fiber, [[maybe_unused]] std::vector<void*>& free_fibers) {
#if defined(ATTNKERNELS_EMULATION_TSAN)
  if (free_fibers.empty()) free_fibers.push_back(__tsan_create_fiber(0));
  fiber.tsan_fiber = free_fibers.back();
  free_fibers.pop_back();
#endif
}

// The scheduler is about to resume a fiber.
inline void before_resume([[maybe_unused]] SchedulerShadow& scheduler, [[maybe_unused]] FiberShadow& fiber,
                          [[maybe_unused]] const char* stack, [[maybe_unused]] size_t stack_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack, stack_bytes);
#endif
#if defined(ATTNKERNELS_EMULATION_TSAN)
  scheduler.tsan_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.tsan_fiber, 1);  // 1: the switch orders nothing
#endif
}

// The scheduler is back.
inline void after_resume([[maybe_unused]] SchedulerShadow& scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

// A fiber is about to give control back; for good when `last`.
inline void before_suspend([[maybe_unused]] SchedulerShadow& scheduler, [[maybe_unused]] FiberShadow& fiber,
                           [[maybe_unused]] bool last) {
#if defined(ATTNKERNELS_EMULATION_TSAN)
  __tsan_switch_to_fiber(scheduler.tsan_fiber, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber.fake_stack, scheduler.bottom, scheduler.size);
#endif
}

// A fiber has been resumed, or has started.
inline void after_suspend([[maybe_unused]] SchedulerShadow& scheduler, [[maybe_unused]] FiberShadow& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler.bottom, &scheduler.size);
#endif
}

// Everything before release(object) comes before everything after a later acquire(object).
inline void release([[maybe_unused]] void* object) {
#if defined(ATTNKERNELS_EMULATION_TSAN)
  __tsan_release(object);
#endif
}
inline void acquire([[maybe_unused]] void* object) {
#if defined(ATTNKERNELS_EMULATION_TSAN)
  __tsan_acquire(object);
#endif
}

// The memory comes into being, or ends, here: TSan takes it for a write by the running fiber.
inline void mark_written([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(ATTNKERNELS_EMULATION_TSAN)
  __tsan_write_range(address, bytes);
#endif
}

// From here on ASan reports every access to the memory; allow() takes it back.
inline void forbid([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(address, bytes);
#endif
}
inline void allow([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(address, bytes);
#endif
}

}  // namespace attnkernels::emulation
