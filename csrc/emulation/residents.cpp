// Lets the threads of resident blocks take turns, and opens barriers and warp exchanges when all have come.
#include "emulation/residents.h"

#include <bit>
#include <cstdio>
#include <cstdlib>

#include "emulation/memory.h"

namespace attnkernels::emulation {
namespace {

namespace context = boost::context;

// __nanosleep calls in a row, with nothing else happening, that are a livelock.
constexpr size_t kMaxIdleYields = 100000;

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
    if (stack_overflowed(thread->stack)) {
      std::fprintf(stderr, "emulation: a thread needed more than %zu bytes of stack\n", kStackBytes);
      std::abort();  // what lay beside the stack is gone
    }
    free_stack(thread->stack);
  }
};

class Turns final : public Residents {
 public:
  Turns(LaunchState& launch, std::deque<Cluster> clusters) : Residents(std::move(clusters)), launch_(launch) {
    for (Cluster& cluster : clusters_)
      for (BlockState* block : cluster.blocks)
        for (ThreadState& thread : block->threads) start(thread);
    live_ = ready_.size();
    launch_.grid_barrier = Barrier{live_};
  }

  void run() override {
    current_grid = &launch_.grid;
    current_call = &launch_.call;
    blockDim = launch_.grid.block;
    gridDim = launch_.grid.grid;
    const bool early = launch_.primary && !launch_.primary->over;
    if (!early) wake_all(State::kAtPrimary);
    idle_yields_ = 0;
    while (live_ > 0 && !error) {
      const bool spins = idle_yields_ > kMaxIdleYields + ready_.size();
      if (early && (ready_.empty() || spins)) break;
      if (ready_.empty())
        report_deadlock();
      else if (spins)
        set_error("livelock: threads spin in __nanosleep, nothing else can run");
      else
        step();
    }
    if (error) unwind();
    current_thread = nullptr;
  }

 private:
  void start(ThreadState& thread) {
    take_fiber(thread.shadow, free_fibers);
    thread.self = context::fiber(std::allocator_arg, StackOf{&thread}, [this, &thread](context::fiber&& scheduler) {
      thread.scheduler = std::move(scheduler);
      after_suspend(scheduler_shadow, thread.shadow);
      acquire(&launch_.begin);
      if (!error) try {
          start_thread(block_of(thread));
          launch_.call.make();
          end_thread(thread);
        } catch (Unwind) {
        } catch (...) {
          if (!error) error = std::current_exception();
        }
      thread.state = State::kDone;
      release(&launch_.end);
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
      case State::kAtPrimary:
        break;  // its arrival has been counted, or is none
      case State::kAtGrid:
        ++launch_.grid_barrier.arrived;
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

  void wake_all(State waiting) {
    for (Cluster& cluster : clusters_)
      for (BlockState* block : cluster.blocks) wake_all(*block, waiting);
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
    wake_all(block, State::kAtBlock);
  }

  void complete_cluster(Cluster& cluster) {
    if (!cluster.barrier.complete()) return;
    for (BlockState* block : cluster.blocks) {
      for (ThreadState& thread : block->threads) thread.arrived_at_cluster = false;
      wake_all(*block, State::kAtCluster);
    }
  }

  void complete_grid() {
    if (launch_.grid_barrier.complete()) wake_all(State::kAtGrid);
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
    unsigned votes = 0, odd = 0;  // lanes whose value is not 0; lanes whose __syncwarp is an odd one
    for (unsigned rest = needed; rest; rest &= rest - 1) {
      const ThreadState& lane = lanes[std::countr_zero(rest)];
      if (lane.mask != thread.mask || lane.kind != thread.kind) return;
      if (lane.value != 0) votes |= 1u << lane.lane;
      if (lane.syncwarps % 2 != 0) odd |= 1u << lane.lane;
    }
    for (unsigned rest = needed; rest; rest &= rest - 1) {
      ThreadState& lane = lanes[std::countr_zero(rest)];
      if (lane.kind == Exchange::kShuffle) {
        if (!(needed >> lane.source & 1))
          return set_error("reads lane " + std::to_string(lane.source) +
                           ", which is not in the mask or has returned: " + describe(lane));
        lane.result = lanes[lane.source].value;
      } else {
        lane.result = lane.kind == Exchange::kVote ? votes : uint64_t(odd) << 32 | needed;
      }
    }
    warp.waiting &= ~needed;
    for (unsigned rest = needed; rest; rest &= rest - 1) wake(lanes[std::countr_zero(rest)]);
  }

  void done(ThreadState& thread, BlockState& block) {
    --live_;
    block.barrier.leave(false);
    launch_.grid_barrier.leave(false);
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

  LaunchState& launch_;
  std::vector<ThreadState*> ready_;
  size_t live_ = 0, idle_yields_ = 0;
};

}  // namespace

std::unique_ptr<Residents> make_residents(LaunchState& launch, std::deque<Cluster> clusters) {
  return std::make_unique<Turns>(launch, std::move(clusters));
}

}  // namespace attnkernels::emulation
