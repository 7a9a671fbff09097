#include "emulation/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "emulation/sanitizers.h"

#if defined(__SANITIZE_ADDRESS__)
// UBSan's findings end the program, as ASan's do. (-fno-sanitize-recover would cost reports their line numbers.)
extern "C" [[gnu::visibility("default")]] const char* __ubsan_default_options() {
  return "halt_on_error=1:print_stacktrace=1";
}
#endif

namespace attnkernels::emulation {
namespace {

constexpr uint64_t kCanary = 0xA77E27104B17E5ull;  // at the lowest address of a stack: whoever overwrites it ran over
constexpr size_t kSharedAlignment = 128;
std::vector<char*> free_stacks, used_stacks;

char* map_pages(size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(pages);
}

}  // namespace

char* allocate_stack() {
  char* stack;
  if (free_stacks.empty()) {
    stack = map_pages(kStackBytes);
    std::memcpy(stack, &kCanary, sizeof kCanary);
  } else {
    stack = free_stacks.back();
    free_stacks.pop_back();
  }
  return stack;
}

void free_stack(char* stack) {
  allow(stack, kStackBytes);
  (kThreadSanitizer ? used_stacks : free_stacks).push_back(stack);
}

void end_launch() {
  free_stacks.insert(free_stacks.end(), used_stacks.begin(), used_stacks.end());
  used_stacks.clear();
}

bool stack_overflowed(const char* stack) { return std::memcmp(stack, &kCanary, sizeof kCanary) != 0; }

char* allocate_shared(size_t bytes) {
  if (kThreadSanitizer) return map_pages(bytes);  // forgets what TSan knew of an earlier block's use of the address
  void* data = nullptr;
  if (posix_memalign(&data, kSharedAlignment, bytes) != 0) throw std::bad_alloc();
  return static_cast<char*>(data);
}

void free_shared(char* data, size_t bytes) {
  allow(data, bytes);
  if (kThreadSanitizer)
    munmap(data, bytes);
  else
    std::free(data);
}

void fill_with_nan(char* data, size_t bytes) {
  if (!kThreadSanitizer) {
    std::memset(data, 0xFF, bytes);
    return;
  }
  for (size_t i = 0; i < bytes; ++i) {
    data[i] = char(0xFF);
    asm volatile("" ::: "memory");  // keeps it from becoming memset, which TSan intercepts
  }
}

}  // namespace attnkernels::emulation
