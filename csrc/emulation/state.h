// What the scheduler knows of threads, warps, blocks and clusters; scheduler.cpp, residents.cpp and launch.cpp share
// it.
#pragma once
#include <array>
#include <boost/context/fiber.hpp>
#include <deque>
#include <exception>
#include <string>
#include <vector>

#include "emulation/sanitizers.h"
#include "emulation/scheduler.h"

namespace attnkernels::emulation {

inline constexpr size_t kMaxSharedArrays = 32;     // reserved at once: to TSan, a fiber must not make a vector grow
inline constexpr size_t kStaticBytes = 48 * 1024;  // static shared memory of a block: the most that ptxas accepts
inline constexpr size_t kArenaBytes = kStaticBytes + 128 * kMaxSharedArrays;

enum class State : uint8_t { kReady, kAtBlock, kArrivesAtCluster, kAtCluster, kAtGrid, kAtWarp, kAtPrimary, kDone };
struct Unwind {};  // thrown into every waiting thread when another one has failed

// Names, for TSan, of the order that a barrier makes: one for its even and one for its odd uses. A thread that has
// passed the barrier may come to its next use before another has resumed from this one, which must not learn of it.
using Order = std::array<uint64_t, 2>;

struct ThreadState : Thread {
  boost::context::fiber self, scheduler;
  char* stack = nullptr;
  FiberShadow shadow;
  State state = State::kReady;
  const char* waits_at = "";
  Location where;
  int predicate = 0;
  bool arrived_at_cluster = false;
  bool waited_for_primary = false;
  void* cluster_order = nullptr;  // of the cluster barrier at which it has arrived
  // The warp exchange that it takes part in.
  Exchange kind = Exchange::kSync;
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;
  Order syncwarp_order{};
  unsigned syncwarps = 0;
  // Atomics order nothing by themselves; a fence before one releases, a fence after one acquires.
  bool fenced = false;
  std::array<void*, 8> observed{};
  size_t observed_count = 0;
};

struct Barrier {
  size_t members = 0, arrived = 0, uses = 0;
  void leave(bool had_arrived) {  // a thread that has returned counts as arrived, as on a GPU
    --members;
    arrived -= had_arrived;
  }
  // Whether all have arrived; if so, it is ready for its next use.
  bool complete() {
    if (arrived == 0 || arrived < members) return false;
    arrived = 0;
    ++uses;
    return true;
  }
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

// To TSan, the addresses in a block stand for its barriers: blocks of one launch must not share them.
struct BlockState : Block {
  std::vector<ThreadState> threads;
  std::vector<Warp> warps;
  std::vector<SharedArray> arrays;
  // Under TSan, the memory of static arrays: allocated by a thread of the block, it would seem written by that thread.
  char* arena = nullptr;
  size_t arena_used = 0;
  Barrier barrier;
  Order order{}, cluster_order{};  // the second: in the first block of each cluster
  Cluster* cluster = nullptr;
  bool started = false;
  size_t returned = 0;
};

// One launch of a chain: of a plain launch and the dependent ones after it.
struct LaunchState {
  const Grid grid;
  const Call& call;
  LaunchState* primary = nullptr;  // the launch before it in the chain
  bool over = false;
  Barrier grid_barrier;
  Order grid_order{};
  uint64_t begin = 0, end = 0;  // TSan's names for "before every thread" and "after every thread"
};

struct Cluster {
  LaunchState* launch;
  std::vector<BlockState*> blocks;
  Barrier barrier;
};

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

extern Random random_order;
extern std::exception_ptr error;  // of the chain that runs; every thread unwinds when it is set
extern SchedulerShadow scheduler_shadow;
extern std::vector<void*> free_fibers;

inline BlockState& block_of(const Thread& thread) { return *static_cast<BlockState*>(thread.block); }
inline LaunchState& launch_of(const Thread& thread) { return *block_of(thread).cluster->launch; }

void set_error(const std::string& text);  // keeps the first
std::string describe(const ThreadState& thread);

// The first thread of a block to start, and the last to return, mark where its shared memory begins and ends to be.
void start_thread(BlockState& block);
void end_thread(const ThreadState& thread);

}  // namespace attnkernels::emulation
