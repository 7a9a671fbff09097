// What a thread does at barriers, exchanges, fences and shared memory.
#include "emulation/scheduler.h"

#include <algorithm>
#include <bit>
#include <sstream>
#include <stdexcept>

#include "emulation/device.h"
#include "emulation/memory.h"
#include "emulation/state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace attnkernels::emulation {

Thread* current_thread = nullptr;
const Grid* current_grid = nullptr;
const Call* current_call = nullptr;
void (*block_ended)(const Block& block) = nullptr;

std::exception_ptr error;
SchedulerShadow scheduler_shadow;
std::vector<void*> free_fibers;

namespace {

ThreadState& me() { return *static_cast<ThreadState*>(current_thread); }

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

void barrier(State state, const Barrier& barrier, Order& order, const char* name, Location where) {
  uint64_t* const this_use = &order[barrier.uses % 2];
  release(this_use);
  suspend(state, name, where);
  acquire(this_use);
  me().fenced = false;  // an earlier fence does not cover what the others wrote before this barrier
}

std::string name_of(const Thread& thread) {
  const uint3 block = thread.block->index;
  return "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " + std::to_string(block.z) +
         ") thread " + std::to_string(thread.rank);
}

// As sanitizers name a place in a program: tools/emulation.py's with_lines() finds its line.
std::string kernel_of(const Thread& thread) {
  const Place place = place_of(launch_of(thread).grid.kernel);
  std::ostringstream text;
  text << "kernel (" << place.file << "+0x" << std::hex << place.offset << ")";
  return text.str();
}

// Whether what earlier launches have written may still be missing.
bool is_early(const ThreadState& thread) { return launch_of(thread).grid.dependent && !thread.waited_for_primary; }

}  // namespace

void set_error(const std::string& text) {
  if (!error) error = std::make_exception_ptr(std::runtime_error("emulation: " + text));
}

std::string describe(const ThreadState& thread) {
  return name_of(thread) + " waits at " + thread.waits_at + " (" + thread.where.file_name() + ":" +
         std::to_string(thread.where.line()) + ")";
}

void start_thread(BlockState& block) {
  if (block.started) return acquire(&block.started);
  block.started = true;
  for (SharedArray& array : block.arrays) {
    fill_with_nan(array.data, array.bytes);
    mark_written(array.data, array.bytes);
  }
  release(&block.started);
}

void end_thread(const ThreadState& thread) {
  if (is_early(thread))
    fail(name_of(thread) + " of a dependent launch ended without wait_for_primary_grid(): " + kernel_of(thread));
  BlockState& block = block_of(thread);
  release(&block.returned);
  if (++block.returned < block.threads.size() || block.cluster_size == 1) return;
  acquire(&block.returned);
  for (SharedArray& array : block.arrays) {
    fill_with_nan(array.data, array.bytes);
    mark_written(array.data, array.bytes);
    forbid(array.data, array.bytes);
  }
}

void fail(const std::string& text) { throw std::runtime_error("emulation: " + text); }

void block_barrier(int predicate, const char* name, Location where) {
  BlockState& block = block_of(me());
  me().predicate = predicate;
  barrier(State::kAtBlock, block.barrier, block.order, name, where);
}

void grid_barrier(Location where) {
  if (!current_grid->cooperative) fail("grid.sync() in a launch that is not cooperative");
  LaunchState& launch = launch_of(me());
  barrier(State::kAtGrid, launch.grid_barrier, launch.grid_order, "grid.sync", where);
}

void cluster_arrive(Location where) {
  ThreadState& thread = me();
  if (thread.arrived_at_cluster) fail("cluster barrier: arrived twice without waiting");
  Cluster& cluster = *block_of(thread).cluster;
  thread.cluster_order = &cluster.blocks.front()->cluster_order[cluster.barrier.uses % 2];
  release(thread.cluster_order);
  suspend(State::kArrivesAtCluster, "cluster arrive", where);
}

void cluster_wait(Location where) {
  ThreadState& thread = me();
  if (!thread.cluster_order) fail("cluster barrier: waits without having arrived");
  if (thread.arrived_at_cluster) suspend(State::kAtCluster, "cluster.sync", where);
  acquire(thread.cluster_order);
  thread.cluster_order = nullptr;
  thread.fenced = false;
}

void wait_for_primary(Location where) {
  ThreadState& thread = me();
  LaunchState* const primary = launch_of(thread).primary;
  if (primary) {
    if (!primary->over) suspend(State::kAtPrimary, "wait_for_primary_grid", where);
    acquire(&primary->end);  // and so of all before: each of its threads has waited too
    thread.fenced = false;
  }
  thread.waited_for_primary = true;
}

void yield() { suspend(State::kReady, "__nanosleep", Location::current()); }

uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source, const char* name, Location where) {
  ThreadState& thread = me();
  thread.kind = kind;
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  if (kind != Exchange::kSync) {  // shuffles and votes order no memory
    suspend(State::kAtWarp, name, where);
    return thread.result;
  }
  release(&thread.syncwarp_order[++thread.syncwarps % 2]);
  suspend(State::kAtWarp, name, where);
  const uint32_t lanes = uint32_t(thread.result), odd = uint32_t(thread.result >> 32);
  if (kThreadSanitizer)
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
      const unsigned lane = std::countr_zero(rest);
      acquire(&block_of(thread).threads[thread.warp * 32 + lane].syncwarp_order[odd >> lane & 1]);
    }
  return 0;
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
  return (address >= stack && address < stack + kStackBytes) ||
         (address >= current_call->begin && address < current_call->end) || within(&thread) || within(thread.block) ||
         within(&threadIdx) || within(&blockIdx) || within(&blockDim) || within(&gridDim) || within(&current_thread) ||
         within(&current_grid) || within(current_grid);
}

void check_write(const Thread& thread, const void* address) {
  if (!is_early(static_cast<const ThreadState&>(thread)) || is_bookkeeping(thread, address)) return;
  if (memory_of(*thread.block, address) != Memory::kGlobal) return;
  set_error(name_of(thread) + " writes global memory before wait_for_primary_grid(): " + kernel_of(thread));
}

}  // namespace attnkernels::emulation
