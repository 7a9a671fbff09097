// Lets the threads of resident blocks take turns.
#pragma once
#include <deque>
#include <vector>

#include "emulation/state.h"

namespace attnkernels::emulation {

// Blocks of one launch that are resident together: those of a cluster, of the whole grid in a cooperative launch, or
// those that start before the primary grid is over.
class Residents {
 public:
  Residents(LaunchState& launch, std::deque<Cluster> clusters);

  // Runs the threads until all have returned, while the primary grid is not over until none can go on without it.
  // After an error of any launch of the chain, unwinds them.
  void run();

  std::deque<Cluster>& clusters() { return clusters_; }

 private:
  void start(ThreadState& thread);
  void resume(ThreadState& thread);
  void step();
  void wake(ThreadState& thread);
  void wake_all(BlockState& block, State waiting);
  void wake_all(State waiting);
  void at_block(ThreadState& thread, BlockState& block);
  void complete_block(BlockState& block);
  void complete_cluster(Cluster& cluster);
  void complete_grid();
  void at_warp(ThreadState& thread, BlockState& block);
  void complete_warp(const ThreadState& thread, BlockState& block);
  void done(ThreadState& thread, BlockState& block);
  void report_deadlock();
  void unwind();

  LaunchState& launch_;
  std::deque<Cluster> clusters_;
  std::vector<ThreadState*> ready_;
  size_t live_ = 0, idle_yields_ = 0;
};

}  // namespace attnkernels::emulation
