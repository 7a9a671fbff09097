// What orders more than a block: the part of cooperative groups that kernels use (this_thread_block, this_grid,
// this_cluster), and programmatic dependent launch.
#pragma once
#include "emulation/warp.h"

namespace cooperative_groups {

class thread_block {
 public:
  void sync(ATTNKERNELS_HERE) const { __syncthreads(where); }
  unsigned thread_rank() const { return attnkernels::emulation::current_thread->rank; }
  unsigned num_threads() const { return size(); }
  unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
};
inline thread_block this_thread_block() { return {}; }

class grid_group {
 public:
  void sync(ATTNKERNELS_HERE) const { attnkernels::emulation::grid_barrier(where); }
  bool is_valid() const { return attnkernels::emulation::current_grid->cooperative; }
};
inline grid_group this_grid() { return {}; }

class cluster_group {
 public:
  void sync(ATTNKERNELS_HERE) const {
    attnkernels::emulation::cluster_arrive(where);
    attnkernels::emulation::cluster_wait(where);
  }
  void barrier_arrive(ATTNKERNELS_HERE) const { attnkernels::emulation::cluster_arrive(where); }
  void barrier_wait(ATTNKERNELS_HERE) const { attnkernels::emulation::cluster_wait(where); }
  unsigned block_rank() const { return attnkernels::emulation::current_thread->block->cluster_rank; }
  unsigned num_blocks() const { return attnkernels::emulation::current_thread->block->cluster_size; }
  template <class T>
  T* map_shared_rank(T* address, unsigned rank) const {
    return static_cast<T*>(attnkernels::emulation::map_shared(address, rank));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups

namespace attnkernels {

inline void wait_for_primary_grid(ATTNKERNELS_HERE) { emulation::wait_for_primary(where); }
inline void launch_dependent_grids() {}  // a dependent launch starts early enough without it

}  // namespace attnkernels
