#include "emulation/scheduler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <boost/context/fiber.hpp>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "emulation/device.h"
#include "emulation/memory.h"
#include "emulation/sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace attnkernels::emulation {

Thread* current_thread = nullptr;
const Grid* current_grid = nullptr;
void (*block_ended)(const Block& block) = nullptr;

namespace {

namespace context = boost::context;

constexpr size_t kMaxSharedArrays = 32;  // reserved at once: a fiber must not make a vector grow (TSan watches malloc)
constexpr size_t kStaticBytes = 48 * 1024;  // static shared memory of a block: the most that ptxas accepts
constexpr size_t kArenaBytes = kStaticBytes + 128 * kMaxSharedArrays;
constexpr size_t kMaxIdleYields =
    100000;  // __nanosleep calls in a row, with nothing else happening, that are a livelock

enum class State : uint8_t { kReady, kAtBlock, kArrivesAtCluster, kAtCluster, kAtGrid, kAtWarp, kDone };
struct Unwind {};  // thrown into every waiting thread when another one has failed

struct ThreadState : Thread {
  context::fiber self, scheduler;
  char* stack = nullptr;
  FiberShadow shadow;
  State state = State::kReady;
  const char* waits_at = "";
  Location where;
  int predicate = 0;
  bool arrived_at_cluster = false;
  // The warp exchange that it takes part in.
  Exchange kind = Exchange::kSync;
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;
  // Atomics order nothing by themselves; a fence before one releases, a fence after one acquires.
  bool fenced = false;
  std::array<void*, 8> observed{};
  size_t observed_count = 0;
};

struct Barrier {
  size_t members = 0, arrived = 0;
  void leave(bool had_arrived) {  // a thread that has returned counts as arrived, as on a GPU
    --members;
    arrived -= had_arrived;
  }
  bool complete() const { return arrived > 0 && arrived == members; }
};

struct Warp {
  unsigned alive = 0, waiting = 0;  // masks of lanes
};

struct SharedArray {
  const void* key;  // of its declaration; null: the dynamic one
  char* data;
  size_t bytes;
};

struct Cluster;

struct BlockState : Block {
  // Under TSan, the memory of static arrays: allocated by a thread of the block, it would seem written by that thread.
  char* arena = nullptr;
  size_t arena_used = 0;
  std::vector<ThreadState> threads;
  std::vector<Warp> warps;
  std::vector<SharedArray> arrays;
  Barrier barrier;
  Cluster* cluster = nullptr;
  bool started = false;
  size_t returned = 0;
};

struct Cluster {
  std::vector<BlockState*> blocks;
  Barrier barrier;
};

// What stands for the order that a cluster's barriers make; like every such object, it must not be used again by
// others.
void* order_of_cluster(const BlockState& block) { return &block.cluster->blocks.front()->cluster; }

// xorshift64: fast, and the same on every machine.
struct Random {
  uint64_t state;
  uint64_t operator()() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
};
uint64_t first_state(uint64_t seed) { return (seed * 0x9E3779B97F4A7C15ull) | 1; }  // never 0
uint64_t seed_of_environment() {
  const char* text = std::getenv("ATTNKERNELS_EMULATION_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}

Random random_order{first_state(seed_of_environment())};
std::exception_ptr error;
SchedulerShadow scheduler_shadow;
std::vector<LaunchRecord> records;
bool recording = false;
char launch_begin, launch_end;  // TSan's names for "before every thread" and "after every thread" of a launch
std::vector<void*> free_fibers;

ThreadState& me() { return *static_cast<ThreadState*>(current_thread); }
BlockState& block_of(const Thread& thread) { return *static_cast<BlockState*>(thread.block); }

void set_error(const std::string& text) {
  if (!error) error = std::make_exception_ptr(std::runtime_error("emulation: " + text));
}

std::string describe(const ThreadState& thread) {
  const uint3 block = thread.block->index;
  return "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " + std::to_string(block.z) +
         ") thread " + std::to_string(thread.rank) + " waits at " + thread.waits_at + " (" + thread.where.file_name() +
         ":" + std::to_string(thread.where.line()) + ")";
}

// Gives control to the scheduler until what `state` stands for has happened.
void suspend(State state, const char* name, Location where) {
  ThreadState& thread = me();
  thread.state = state;
  thread.waits_at = name;
  thread.where = where;
  before_suspend(scheduler_shadow, thread.shadow, false);
  thread.scheduler = std::move(thread.scheduler).resume();
  after_suspend(scheduler_shadow, thread.shadow);
  if (error) throw Unwind{};
}

void barrier(State state, void* object, const char* name, Location where) {
  release(object);
  suspend(state, name, where);
  acquire(object);
  me().fenced = false;  // an earlier fence does not cover what the others wrote before this barrier
}

void start_block(BlockState& block) {
  if (block.started) return acquire(&block.started);
  block.started = true;
  for (SharedArray& array : block.arrays) {
    fill_with_nan(array.data, array.bytes);
    mark_written(array.data, array.bytes);
  }
  release(&block.started);
}

// The shared memory of a block ends with its last thread: whoever still looks at it from another block is wrong.
void end_thread(BlockState& block) {
  release(&block.returned);
  if (++block.returned < block.threads.size() || block.cluster_size == 1) return;
  acquire(&block.returned);
  for (SharedArray& array : block.arrays) {
    fill_with_nan(array.data, array.bytes);
    mark_written(array.data, array.bytes);
    forbid(array.data, array.bytes);
  }
}

struct StackOf {  // Boost.Context's allocator interface
  ThreadState* thread;
  context::stack_context allocate() {
    thread->stack = allocate_stack();
    context::stack_context stack;
    stack.size = kStackBytes;
    stack.sp = thread->stack + kStackBytes;
    return stack;
  }
  void deallocate(context::stack_context&) noexcept {
    if (stack_overflowed(thread->stack)) std::abort();  // neighbouring memory is gone
    free_stack(thread->stack);
  }
};

// The blocks that are resident together: those of one cluster, or of the whole grid in a cooperative launch.
class Residents {
 public:
  Residents(std::deque<Cluster>& clusters, const std::function<void()>& body) : clusters_(clusters) {
    for (Cluster& cluster : clusters)
      for (BlockState* block : cluster.blocks)
        for (ThreadState& thread : block->threads) start(thread, body);
    live_ = grid_.members = ready_.size();
  }

  void run() {
    while (live_ > 0 && !error) {
      if (ready_.empty())
        report_deadlock();
      else if (idle_yields_ > kMaxIdleYields + ready_.size())
        set_error("livelock: threads spin in __nanosleep, nothing else can run");
      else
        step();
    }
    if (error) unwind();
  }

 private:
  void start(ThreadState& thread, const std::function<void()>& body) {
    take_fiber(thread.shadow, free_fibers);
    thread.self = context::fiber(std::allocator_arg, StackOf{&thread}, [&thread, &body](context::fiber&& scheduler) {
      thread.scheduler = std::move(scheduler);
      after_suspend(scheduler_shadow, thread.shadow);
      acquire(&launch_begin);
      if (!error) try {
          start_block(block_of(thread));
          body();
          end_thread(block_of(thread));
        } catch (Unwind) {
        } catch (...) {
          if (!error) error = std::current_exception();
        }
      thread.state = State::kDone;
      release(&launch_end);
      before_suspend(scheduler_shadow, thread.shadow, true);
      return std::move(thread.scheduler);
    });
    ready_.push_back(&thread);
  }

  void resume(ThreadState& thread) {
    current_thread = &thread;
    threadIdx = thread.index;
    blockIdx = thread.block->index;
    before_resume(scheduler_shadow, thread.shadow, thread.stack, kStackBytes);
    thread.self = std::move(thread.self).resume();
    after_resume(scheduler_shadow);
  }

  void step() {
    const size_t pick = random_order() % ready_.size();
    ThreadState& thread = *ready_[pick];
    ready_[pick] = ready_.back();
    ready_.pop_back();
    resume(thread);
    if (error) return;
    idle_yields_ = thread.state == State::kReady ? idle_yields_ + 1 : 0;
    BlockState& block = block_of(thread);
    switch (thread.state) {
      case State::kReady:
        ready_.push_back(&thread);
        break;
      case State::kAtBlock:
        at_block(thread, block);
        break;
      case State::kArrivesAtCluster:
        ++block.cluster->barrier.arrived;
        thread.arrived_at_cluster = true;
        wake(thread);
        complete_cluster(*block.cluster);
        break;
      case State::kAtCluster:
        break;  // its arrival has been counted
      case State::kAtGrid:
        ++grid_.arrived;
        complete_grid();
        break;
      case State::kAtWarp:
        at_warp(thread, block);
        break;
      case State::kDone:
        done(thread, block);
        break;
    }
  }

  void wake(ThreadState& thread) {
    thread.state = State::kReady;
    ready_.push_back(&thread);
  }

  void wake_all(BlockState& block, State waiting) {
    for (ThreadState& thread : block.threads)
      if (thread.state == waiting) wake(thread);
  }

  void at_block(ThreadState& thread, BlockState& block) {
    for (const ThreadState& other : block.threads)  // the first one that waits is enough
      if (other.state == State::kAtBlock && &other != &thread) {
        if (other.where.line() != thread.where.line() || other.where.column() != thread.where.column())
          set_error("threads of one block wait at different barriers: " + describe(thread) + "; " + describe(other));
        break;
      }
    ++block.barrier.arrived;
    complete_block(block);
  }

  void complete_block(BlockState& block) {
    if (!block.barrier.complete()) return;
    block.votes = 0;
    for (const ThreadState& thread : block.threads)
      if (thread.state == State::kAtBlock) block.votes += thread.predicate != 0;
    block.barrier.arrived = 0;
    wake_all(block, State::kAtBlock);
  }

  void complete_cluster(Cluster& cluster) {
    if (!cluster.barrier.complete()) return;
    cluster.barrier.arrived = 0;
    for (BlockState* block : cluster.blocks) {
      for (ThreadState& thread : block->threads) thread.arrived_at_cluster = false;
      wake_all(*block, State::kAtCluster);
    }
  }

  void complete_grid() {
    if (!grid_.complete()) return;
    grid_.arrived = 0;
    for (Cluster& cluster : clusters_)
      for (BlockState* block : cluster.blocks) wake_all(*block, State::kAtGrid);
  }

  void at_warp(ThreadState& thread, BlockState& block) {
    if (!(thread.mask >> thread.lane & 1))
      return set_error("the calling lane is not in its own mask: " + describe(thread));
    block.warps[thread.warp].waiting |= 1u << thread.lane;
    complete_warp(thread, block);
  }

  // Completes the exchange that `thread` waits in, once every lane of its mask that has not returned is there.
  void complete_warp(const ThreadState& thread, BlockState& block) {
    Warp& warp = block.warps[thread.warp];
    const unsigned needed = thread.mask & warp.alive;
    if ((warp.waiting & needed) != needed) return;
    ThreadState* lanes = &block.threads[thread.warp * 32];
    unsigned votes = 0;
    for (unsigned rest = needed; rest; rest &= rest - 1) {
      const ThreadState& lane = lanes[std::countr_zero(rest)];
      if (lane.mask != thread.mask || lane.kind != thread.kind) return;
      if (lane.value != 0) votes |= 1u << lane.lane;
    }
    for (unsigned rest = needed; rest; rest &= rest - 1) {
      ThreadState& lane = lanes[std::countr_zero(rest)];
      if (lane.kind == Exchange::kShuffle) {
        if (!(needed >> lane.source & 1))
          return set_error("reads lane " + std::to_string(lane.source) +
                           ", which is not in the mask or has returned: " + describe(lane));
        lane.result = lanes[lane.source].value;
      } else {
        lane.result = votes;
      }
    }
    warp.waiting &= ~needed;
    for (unsigned rest = needed; rest; rest &= rest - 1) wake(lanes[std::countr_zero(rest)]);
  }

  void done(ThreadState& thread, BlockState& block) {
    --live_;
    block.barrier.leave(false);
    grid_.leave(false);
    block.cluster->barrier.leave(thread.arrived_at_cluster);
    thread.arrived_at_cluster = false;
    Warp& warp = block.warps[thread.warp];
    warp.alive &= ~(1u << thread.lane);
    if (block.barrier.members == 0 && block_ended) block_ended(block);
    complete_block(block);
    complete_cluster(*block.cluster);
    complete_grid();
    for (unsigned rest = warp.waiting; rest; rest &= warp.waiting & (rest - 1))
      complete_warp(block.threads[thread.warp * 32 + std::countr_zero(rest)], block);
  }

  void report_deadlock() {
    std::string text = "deadlock: a barrier or exchange not reached by every thread";
    int reported = 0;
    const char* last_name = nullptr;
    unsigned last_line = 0;
    for (const Cluster& cluster : clusters_)
      for (const BlockState* block : cluster.blocks)
        for (const ThreadState& thread : block->threads) {
          if (thread.state == State::kDone || reported == 4) continue;
          if (thread.waits_at == last_name && thread.where.line() == last_line) continue;
          text += "; " + describe(thread);
          last_name = thread.waits_at, last_line = thread.where.line();
          ++reported;
        }
    set_error(text);
  }

  void unwind() {
    for (Cluster& cluster : clusters_)
      for (BlockState* block : cluster.blocks)
        for (ThreadState& thread : block->threads)
          while (thread.state != State::kDone) resume(thread);
  }

  std::deque<Cluster>& clusters_;
  std::vector<ThreadState*> ready_;
  size_t live_ = 0, idle_yields_ = 0;
  Barrier grid_;
};

// One launch: makes the blocks, in random order, and runs those that are resident together.
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
      if (!grid_.cooperative) run_residents(body);
      if (error) break;
    }
    if (grid_.cooperative) run_residents(body);
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
    block.barrier = Barrier{threads, 0};
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

  void run_residents(const std::function<void()>& body) {
    release(&launch_begin);
    Residents(clusters_, body).run();
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

void fail(const std::string& text) { throw std::runtime_error("emulation: " + text); }

void block_barrier(int predicate, const char* name, Location where) {
  me().predicate = predicate;
  barrier(State::kAtBlock, current_thread->block, name, where);
}

void grid_barrier(Location where) {
  if (!current_grid->cooperative) fail("grid.sync() in a launch that is not cooperative");
  barrier(State::kAtGrid, const_cast<Grid*>(current_grid), "grid.sync", where);
}

void cluster_arrive(Location where) {
  if (me().arrived_at_cluster) fail("cluster barrier: arrived twice without waiting");
  release(order_of_cluster(block_of(me())));
  suspend(State::kArrivesAtCluster, "cluster arrive", where);
}

void cluster_wait(Location where) {
  if (me().arrived_at_cluster) suspend(State::kAtCluster, "cluster.sync", where);
  acquire(order_of_cluster(block_of(me())));
  me().fenced = false;
}

void yield() { suspend(State::kReady, "__nanosleep", Location::current()); }

uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source, const char* name, Location where) {
  ThreadState& thread = me();
  thread.kind = kind;
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  void* const warp = &block_of(thread).warps[thread.warp];
  if (kind == Exchange::kSync) release(warp);  // __syncwarp orders memory; shuffles and votes do not
  suspend(State::kAtWarp, name, where);
  if (kind == Exchange::kSync) acquire(warp);
  return me().result;
}

unsigned active_lanes() { return block_of(me()).warps[me().warp].alive; }

void* shared_array(const void* key, size_t bytes) {
  BlockState& block = block_of(me());
  for (const SharedArray& array : block.arrays)
    if (array.key == key) return array.data;
  if (block.arrays.size() == kMaxSharedArrays) fail("too many __shared__ variables");
  size_t static_bytes = bytes;
  for (const SharedArray& array : block.arrays) static_bytes += array.key ? array.bytes : 0;
  if (static_bytes > kStaticBytes)
    fail("the block's static shared memory, " + std::to_string(static_bytes) + " bytes, exceeds 48 KiB");
  if (static_bytes + current_grid->dynamic_shared > size_t(device.shared_per_block_opt_in))
    fail("the block's static and dynamic shared memory together exceed the device's");
  char* data = kThreadSanitizer ? block.arena + block.arena_used : allocate_shared(bytes);
  block.arena_used += (bytes + 127) / 128 * 128;  // arrays begin at bank 0
  fill_with_nan(data, bytes);
  block.arrays.push_back({key, data, bytes});
  return data;
}

void* map_shared(const void* address, unsigned rank) {
  const BlockState& block = block_of(me());
  if (rank >= block.cluster->blocks.size()) fail("map_shared_rank: no block " + std::to_string(rank));
  const char* place = static_cast<const char*>(address);
  for (const SharedArray& mine : block.arrays) {
    if (place < mine.data || place >= mine.data + mine.bytes) continue;
    for (const SharedArray& theirs : block.cluster->blocks[rank]->arrays)
      if (theirs.key == mine.key) return theirs.data + (place - mine.data);
    fail("map_shared_rank: block " + std::to_string(rank) + " has not come to that variable; cluster.sync() first");
  }
  fail("map_shared_rank: not an address of shared memory");
}

void fence() {
  if (!kThreadSanitizer) return;
  ThreadState& thread = me();
  for (size_t i = 0; i < std::min(thread.observed_count, thread.observed.size()); ++i) acquire(thread.observed[i]);
  thread.observed_count = 0;
  thread.fenced = true;
}

void atomic_access(void* address) {
  if (!kThreadSanitizer) return;
  ThreadState& thread = me();
  if (thread.fenced) release(address);
  thread.observed[thread.observed_count++ % thread.observed.size()] = address;
}

void set_seed(uint64_t seed) { random_order.state = first_state(seed); }

void record_launches(bool on) {
  recording = on;
  if (on) records.clear();
}
const std::vector<LaunchRecord>& recorded_launches() { return records; }

Memory memory_of(const Block& block, const void* address) {
  const BlockState& mine = static_cast<const BlockState&>(block);
  for (const BlockState* other : mine.cluster->blocks)
    for (const SharedArray& array : other->arrays)
      if (address >= array.data && address < array.data + array.bytes)
        return other == &mine ? Memory::kShared : Memory::kRemoteShared;
  return Memory::kGlobal;
}

bool is_bookkeeping(const Thread& thread, const void* address) {
  const char* stack = static_cast<const ThreadState&>(thread).stack;
  const auto within = [&](const auto* object) { return address >= object && address < object + 1; };
  return (address >= stack && address < stack + kStackBytes) || within(&thread) || within(thread.block) ||
         within(&threadIdx) || within(&blockIdx) || within(&blockDim) || within(&gridDim) || within(&current_thread) ||
         within(&current_grid) || within(current_grid);
}

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
