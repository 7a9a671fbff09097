// Lets the threads of resident blocks take turns.
#pragma once
#include <deque>
#include <memory>
#include <utility>

#include "emulation/state.h"

namespace attnkernels::emulation {

// Blocks of one launch that are resident together: those of a cluster, of the whole grid in a cooperative launch, or
// those that start before the primary grid is over.
class Residents {
 public:
  virtual ~Residents() = default;

  // Runs the threads until all have returned, while the primary grid is not over until none can go on without it.
  // After an error of any launch of the chain, unwinds them.
  virtual void run() = 0;

  std::deque<Cluster>& clusters() { return clusters_; }

 protected:
  explicit Residents(std::deque<Cluster> clusters) : clusters_(std::move(clusters)) {}

  std::deque<Cluster> clusters_;
};

std::unique_ptr<Residents> make_residents(LaunchState& launch, std::deque<Cluster> clusters);

}  // namespace attnkernels::emulation
