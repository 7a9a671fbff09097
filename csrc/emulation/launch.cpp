// Makes the blocks of a launch and runs those that are resident together, in random order.
#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "emulation/device.h"
#include "emulation/memory.h"
#include "emulation/state.h"

namespace attnkernels::emulation {
namespace {

uint64_t first_state(uint64_t seed) { return (seed * 0x9E3779B97F4A7C15ull) | 1; }  // never 0
uint64_t seed_of_environment() {
  const char* text = std::getenv("ATTNKERNELS_EMULATION_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}

std::vector<LaunchRecord> records;
bool recording = false;

class Launch {
 public:
  explicit Launch(const Grid& grid) : grid_(grid) {}

  void run(const std::function<void()>& body) {
    const dim3 grid = grid_.grid, size = grid_.cluster;
    std::vector<uint3> corners;
    for (unsigned z = 0; z < grid.z; z += size.z)
      for (unsigned y = 0; y < grid.y; y += size.y)
        for (unsigned x = 0; x < grid.x; x += size.x) corners.push_back({x, y, z});
    for (size_t i = corners.size(); i > 1; --i) std::swap(corners[i - 1], corners[random_order() % i]);
    for (const uint3& corner : corners) {
      add_cluster(corner);
      if (!grid_.cooperative) run_together(body);
      if (error) break;
    }
    if (grid_.cooperative) run_together(body);
    acquire(&launch_end);
    if (kThreadSanitizer)
      for (const BlockState& block : blocks_)
        for (const ThreadState& thread : block.threads) free_fibers.push_back(thread.shadow.tsan_fiber);
    end_launch();
  }

  size_t static_shared() const { return static_shared_; }

 private:
  void add_cluster(const uint3& corner) {
    const dim3 size = grid_.cluster;
    Cluster& cluster = clusters_.emplace_back();
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
    const dim3 size = grid_.block;
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
    if (grid_.dynamic_shared > 0) {
      block.dynamic_shared = allocate_shared(grid_.dynamic_shared);
      block.arrays.push_back({nullptr, block.dynamic_shared, grid_.dynamic_shared});
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

  void run_together(const std::function<void()>& body) {
    release(&launch_begin);
    run_residents(clusters_, body);
    current_thread = nullptr;
    for (Cluster& cluster : clusters_)
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
    clusters_.clear();
  }

  const Grid& grid_;
  std::deque<BlockState> blocks_;
  std::vector<BlockState*> free_blocks_;
  std::deque<Cluster> clusters_;
  size_t static_shared_ = 0;
};

}  // namespace

Random random_order{first_state(seed_of_environment())};

void set_seed(uint64_t seed) { random_order.state = first_state(seed); }

void record_launches(bool on) {
  recording = on;
  if (on) records.clear();
}
const std::vector<LaunchRecord>& recorded_launches() { return records; }

cudaError_t run(const Grid& grid, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  std::string explanation;
  if (const cudaError_t refused = check_configuration(grid, explanation); refused != cudaSuccess)
    return set_last_error(refused, explanation);
  error = nullptr;
  current_grid = &grid;
  blockDim = grid.block;
  gridDim = grid.grid;
  size_t static_shared;
  {
    Launch launch(grid);
    launch.run(body);
    static_shared = launch.static_shared();
  }
  current_grid = nullptr;
  if (recording) records.push_back({grid, static_shared});
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
  return cudaSuccess;
}

}  // namespace attnkernels::emulation
