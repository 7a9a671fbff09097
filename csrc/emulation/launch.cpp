// Makes the blocks of launches and runs those that are resident together, in random order.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "emulation/device.h"
#include "emulation/memory.h"
#include "emulation/residents.h"
#include "emulation/state.h"

namespace attnkernels::emulation {
namespace {

// Of a dependent launch, so many threads start early, or those of one cluster; before so many launches at most. A third
// one sees what the first has not written yet, and more would only take memory.
constexpr size_t kMostEarlyThreads = 2048, kMostLaunchesAhead = 3;
// Under TSan a chain is cut here: each of its threads needs a fiber of its own, of which TSan has 8128.
constexpr size_t kMostThreadsOfChain = 6000;

uint64_t first_state(uint64_t seed) { return (seed * 0x9E3779B97F4A7C15ull) | 1; }  // never 0
uint64_t seed_of_environment() {
  const char* text = std::getenv("ATTNKERNELS_EMULATION_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}

size_t volume(const dim3& size) { return size_t(size.x) * size.y * size.z; }

std::vector<LaunchRecord> records;
bool recording = false;

// The device: globals hold what runs on it.
std::mutex one_at_a_time;

struct Pending {
  Grid grid;
  std::unique_ptr<const Call> call;
};
thread_local std::vector<Pending> pending;  // a launch, and the dependent ones after it

class Launch {
 public:
  Launch(const Pending& what, Launch* primary)
      : state_{.grid = what.grid, .call = *what.call, .primary = primary ? &primary->state_ : nullptr} {
    const dim3 grid = state_.grid.grid, size = state_.grid.cluster;
    for (unsigned z = 0; z < grid.z; z += size.z)
      for (unsigned y = 0; y < grid.y; y += size.y)
        for (unsigned x = 0; x < grid.x; x += size.x) corners_.push_back({x, y, z});
    for (size_t i = corners_.size(); i > 1; --i) std::swap(corners_[i - 1], corners_[random_order() % i]);
  }

  // Some clusters of a dependent launch come to wait_for_primary_grid() before the primary grid runs, and so see memory
  // as it is without it.
  void start_early() {
    const Grid& grid = state_.grid;
    const size_t most = std::max<size_t>(kMostEarlyThreads / (volume(grid.cluster) * volume(grid.block)), 1);
    early_ = next_residents(grid.cooperative ? corners_.size() : 1 + random_order() % std::min(most, corners_.size()));
    early_->run();
  }

  void run() {
    if (early_) run_to_end(std::move(early_));
    while (next_ < corners_.size() && !error) run_to_end(next_residents(state_.grid.cooperative ? corners_.size() : 1));
    state_.over = true;
    if (recording) records.push_back({state_.grid, static_shared_});
  }

  // After all launches of the chain: what is given back here must not seem ordered before what still runs.
  void end() {
    if (early_) run_to_end(std::move(early_));  // left by an error of another launch
    acquire(&state_.end);
    if (!kThreadSanitizer) return;
    for (const BlockState& block : blocks_)
      for (const ThreadState& thread : block.threads) free_fibers.push_back(thread.shadow.tsan_fiber);
  }

 private:
  // The next clusters of the grid.
  std::unique_ptr<Residents> next_residents(size_t count) {
    std::deque<Cluster> clusters;
    for (; count > 0; --count) add_cluster(clusters, corners_[next_++]);
    auto residents = make_residents(state_, std::move(clusters));
    release(&state_.begin);
    return residents;
  }

  void add_cluster(std::deque<Cluster>& clusters, const uint3& corner) {
    const dim3 size = state_.grid.cluster;
    Cluster& cluster = clusters.emplace_back();
    cluster.launch = &state_;
    const unsigned blocks = size.x * size.y * size.z;
    for (unsigned rank = 0; rank < blocks; ++rank) {
      BlockState& block = take_block();
      block.index = {corner.x + rank % size.x, corner.y + rank / size.x % size.y, corner.z + rank / (size.x * size.y)};
      block.cluster_rank = rank;
      block.cluster_size = blocks;
      block.cluster = &cluster;
      cluster.blocks.push_back(&block);
      cluster.barrier.members += block.threads.size();
    }
  }

  // Deleted with the launch, no earlier: to TSan, that would race with their threads.
  BlockState& take_block() {
    if (free_blocks_.empty()) free_blocks_.push_back(&blocks_.emplace_back());
    BlockState& block = *free_blocks_.back();
    free_blocks_.pop_back();
    const dim3 size = state_.grid.block;
    const unsigned threads = size.x * size.y * size.z;
    block.threads.clear();
    block.threads.resize(threads);
    block.warps.assign((threads + 31) / 32, Warp{});
    block.arrays.reserve(kMaxSharedArrays);
    block.barrier = Barrier{threads};
    block.started = false;
    block.returned = 0;
    block.dynamic_shared = nullptr;
    if (kThreadSanitizer) block.arena = allocate_shared(kArenaBytes);
    block.arena_used = 0;
    if (const size_t bytes = state_.grid.dynamic_shared; bytes > 0) {
      block.dynamic_shared = allocate_shared(bytes);
      block.arrays.push_back({nullptr, block.dynamic_shared, bytes});
    }
    for (unsigned i = 0; i < threads; ++i) {
      ThreadState& thread = block.threads[i];
      thread.block = &block;
      thread.rank = i;
      thread.lane = i % 32;
      thread.warp = i / 32;
      thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
      block.warps[thread.warp].alive |= 1u << thread.lane;
    }
    return block;
  }

  void run_to_end(std::unique_ptr<Residents> residents) {
    residents->run();
    for (Cluster& cluster : residents->clusters())
      for (BlockState* block : cluster.blocks) {
        size_t bytes = 0;
        for (const SharedArray& array : block->arrays) {
          bytes += array.key ? array.bytes : 0;
          if (!kThreadSanitizer || !array.key) free_shared(array.data, array.bytes);
        }
        if (kThreadSanitizer) free_shared(block->arena, kArenaBytes);
        static_shared_ = std::max(static_shared_, bytes);
        block->arrays.clear();
        if (!kThreadSanitizer) free_blocks_.push_back(block);  // there, an address stands for one block's barriers
      }
  }

  LaunchState state_;
  std::vector<uint3> corners_;  // of the clusters, in the order in which they run
  size_t next_ = 0;
  std::deque<BlockState> blocks_;
  std::vector<BlockState*> free_blocks_;
  std::unique_ptr<Residents> early_;
  size_t static_shared_ = 0;
};

void run_chain(const std::vector<Pending>& chain) {
  std::deque<Launch> launches;
  for (const Pending& each : chain) launches.emplace_back(each, launches.empty() ? nullptr : &launches.back());
  size_t started = 1;
  for (size_t i = 0; i < launches.size() && !error; ++i) {
    for (; started < std::min(launches.size(), i + kMostLaunchesAhead) && !error; ++started)
      launches[started].start_early();
    if (!error) launches[i].run();
  }
  for (Launch& launch : launches) launch.end();
  end_launch();
}

}  // namespace

Random random_order{first_state(seed_of_environment())};

void set_seed(uint64_t seed) { random_order.state = first_state(seed); }

void record_launches(bool on) {
  recording = on;
  if (on) records.clear();
}
const std::vector<LaunchRecord>& recorded_launches() { return records; }

Place place_of(const void* kernel) {
  Dl_info info{};
  if (!dladdr(kernel, &info)) return {"", 0};
  return {info.dli_fname, uint64_t(static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase))};
}

cudaError_t enqueue(const Grid& grid, std::unique_ptr<const Call> call) {
  {
    const std::lock_guard lock(one_at_a_time);
    std::string explanation;
    cudaError_t refused = check_configuration(grid, explanation);
    if (refused == cudaSuccess && grid.dependent && pending.empty()) {
      refused = cudaErrorInvalidValue;
      explanation = "a dependent launch follows no other: what it reads may be of a kernel that still runs";
    }
    if (refused != cudaSuccess) return set_last_error(refused, explanation);
  }
  size_t threads = volume(grid.grid) * volume(grid.block);
  for (const Pending& each : pending) threads += volume(each.grid.grid) * volume(each.grid.block);
  if (!grid.dependent || (kThreadSanitizer && threads > kMostThreadsOfChain)) synchronize();
  pending.push_back({grid, std::move(call)});
  return cudaSuccess;
}

void synchronize() {
  if (pending.empty()) return;
  const std::vector<Pending> chain = std::exchange(pending, {});
  const std::lock_guard lock(one_at_a_time);
  error = nullptr;
  run_chain(chain);
  current_grid = nullptr;
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
}

}  // namespace attnkernels::emulation
