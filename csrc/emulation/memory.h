// Stacks of the fibers and shared memory of the blocks.
#pragma once
#include <cstddef>

namespace attnkernels::emulation {

// 64 KiB hold any kernel's frames without instrumentation; sanitizers pad every local array.
#if defined(__SANITIZE_ADDRESS__) || defined(ATTNKERNELS_EMULATION_TSAN)
inline constexpr size_t kStackBytes = 256 * 1024;
#else
inline constexpr size_t kStackBytes = 64 * 1024;
#endif

char* allocate_stack();  // the lowest address
void free_stack(char* stack);
void end_launch();  // under TSan, stacks are used again by later launches only
bool stack_overflowed(const char* stack);

// Aligned to 128 bytes, so that an array starts at bank 0. Exact in size: ASan guards both ends.
char* allocate_shared(size_t bytes);
void free_shared(char* data, size_t bytes);
void fill_with_nan(char* data, size_t bytes);  // 0xFF is NaN in every floating-point format; unseen by TSan

}  // namespace attnkernels::emulation
