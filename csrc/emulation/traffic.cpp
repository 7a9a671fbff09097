#include "emulation/traffic.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <unordered_map>

#include "emulation/scheduler.h"

namespace attnkernels::emulation {
namespace {

struct Access {
  const void* instruction;
  uint32_t warp, lane, occurrence;  // occurrence: how many times the lane had executed the instruction before
  uint32_t bytes;
  uint64_t address;
  bool write, atomic;

  auto request() const { return std::tuple(warp, instruction, occurrence, write); }
};

bool recording = false;
std::unordered_map<const Block*, std::vector<Access>> accesses_of_block;               // of the blocks that are running
std::unordered_map<const Block*, std::unordered_map<uint64_t, uint32_t>> occurrences;  // by instruction and thread
std::vector<GlobalRequest> requests;
std::vector<SharedTraffic> shared;

void note(const void* address, size_t bytes, bool write, bool atomic, const void* instruction) {
  if (!current_thread) return;
  if (write) check_write(*current_thread, address);
  if (!recording || is_bookkeeping(*current_thread, address)) return;
  const Thread& thread = *current_thread;
  const uint64_t key = reinterpret_cast<uint64_t>(instruction) * 1024 + thread.rank;
  const uint32_t occurrence = occurrences[thread.block][key]++;
  accesses_of_block[thread.block].push_back({instruction, thread.warp, thread.lane, occurrence, uint32_t(bytes),
                                             reinterpret_cast<uint64_t>(address), write, atomic});
}

SharedTraffic& shared_of(uint64_t kernel) {
  for (SharedTraffic& traffic : shared)
    if (traffic.kernel == kernel) return traffic;
  return shared.emplace_back(SharedTraffic{kernel, 0, 0, 0, 0});
}

using Iterator = std::vector<Access>::const_iterator;

void add_global(Iterator first, Iterator last, uint64_t kernel) {
  GlobalRequest request{kernel, ~0ull, 0, 0, 0, 0, first->write, first->atomic};
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (Iterator access = first; access != last; ++access) {
    ranges.emplace_back(access->address, access->address + access->bytes);
    ++request.lanes;
    request.lane_bytes += access->bytes;
  }
  std::sort(ranges.begin(), ranges.end());
  request.address = ranges.front().first;
  uint64_t covered = 0, next_sector = 0;  // everything below them has been counted
  for (auto [begin, end] : ranges) {
    const uint64_t first_sector = std::max(begin / 32, next_sector), end_sector = (end - 1) / 32 + 1;
    if (end_sector > first_sector) request.sectors += uint32_t(end_sector - first_sector), next_sector = end_sector;
    begin = std::max(begin, covered);
    if (end > begin) request.bytes += uint32_t(end - begin), covered = end;
  }
  requests.push_back(request);
}

void add_shared(Iterator first, Iterator last, SharedTraffic& traffic) {
  ++traffic.requests;
  const uint32_t widest = std::max_element(first, last, [](auto& a, auto& b) { return a.bytes < b.bytes; })->bytes;
  const uint32_t lanes_at_once = widest <= 4 ? 32 : widest <= 8 ? 16 : 8;
  for (uint32_t begin = 0; begin < 32; begin += lanes_at_once) {
    std::array<std::vector<uint64_t>, 32> words;  // of each bank
    for (Iterator access = first; access != last; ++access) {
      if (access->lane < begin || access->lane >= begin + lanes_at_once) continue;
      for (uint64_t word = access->address / 4; word <= (access->address + access->bytes - 1) / 4; ++word) {
        auto& bank = words[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    size_t wavefronts = 0, all_words = 0;
    for (const auto& bank : words) wavefronts = std::max(wavefronts, bank.size()), all_words += bank.size();
    traffic.wavefronts += wavefronts;
    traffic.least_wavefronts += (all_words + 31) / 32;
  }
}

void end_block(const Block& block) {
  std::vector<Access>& all = accesses_of_block[&block];
  std::stable_sort(all.begin(), all.end(), [](const Access& a, const Access& b) { return a.request() < b.request(); });
  const uint64_t kernel = reinterpret_cast<uint64_t>(current_grid->kernel);
  for (Iterator first = all.begin(); first != all.end();) {
    Iterator last = first;
    while (last != all.end() && last->request() == first->request()) ++last;
    switch (memory_of(block, reinterpret_cast<const void*>(first->address))) {
      case Memory::kShared:
        add_shared(first, last, shared_of(kernel));
        break;
      case Memory::kRemoteShared:
        for (Iterator access = first; access != last; ++access) shared_of(kernel).remote_bytes += access->bytes;
        break;
      case Memory::kGlobal:
        add_global(first, last, kernel);
        break;
    }
    first = last;
  }
  accesses_of_block.erase(&block);
  occurrences.erase(&block);
}

}  // namespace

void begin_traffic() {
  requests.clear();
  shared.clear();
  accesses_of_block.clear();
  occurrences.clear();
  block_ended = end_block;
  recording = true;
}

void end_traffic() {
  recording = false;
  block_ended = nullptr;
}

const std::vector<GlobalRequest>& global_requests() { return requests; }
const std::vector<SharedTraffic>& shared_traffic() { return shared; }

}  // namespace attnkernels::emulation

// What -fsanitize=thread makes kernels call.
using attnkernels::emulation::note;

#define ATTNKERNELS_CALLER __builtin_return_address(0)
#define ATTNKERNELS_ACCESS(bytes)                                                                             \
  extern "C" void __tsan_read##bytes(void* p) { note(p, bytes, false, false, ATTNKERNELS_CALLER); }           \
  extern "C" void __tsan_write##bytes(void* p) { note(p, bytes, true, false, ATTNKERNELS_CALLER); }           \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { note(p, bytes, false, false, ATTNKERNELS_CALLER); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { note(p, bytes, true, false, ATTNKERNELS_CALLER); }
ATTNKERNELS_ACCESS(1)
ATTNKERNELS_ACCESS(2)
ATTNKERNELS_ACCESS(4)
ATTNKERNELS_ACCESS(8)
ATTNKERNELS_ACCESS(16)
extern "C" void __tsan_read_range(void* p, unsigned long bytes) { note(p, bytes, false, false, ATTNKERNELS_CALLER); }
extern "C" void __tsan_write_range(void* p, unsigned long bytes) { note(p, bytes, true, false, ATTNKERNELS_CALLER); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

// An atomic counts once, as the write that it is on a GPU; the load before a compare-and-swap loop does not count.
#define ATTNKERNELS_ATOMIC(bits, T)                                                                                  \
  extern "C" T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  extern "C" void __tsan_atomic##bits##_store(volatile T* p, T value, int) {                                         \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                                    \
  }                                                                                                                  \
  extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T value, int, int) {      \
    note(const_cast<T*>(p), sizeof(T), true, true, ATTNKERNELS_CALLER);                                              \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);               \
  }                                                                                                                  \
  extern "C" T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T expected, T value, int, int) {            \
    note(const_cast<T*>(p), sizeof(T), true, true, ATTNKERNELS_CALLER);                                              \
    __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
    return expected;                                                                                                 \
  }
ATTNKERNELS_ATOMIC(8, uint8_t)
ATTNKERNELS_ATOMIC(16, uint16_t)
ATTNKERNELS_ATOMIC(32, uint32_t)
ATTNKERNELS_ATOMIC(64, uint64_t)
