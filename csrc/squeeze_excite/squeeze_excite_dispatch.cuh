// What the launchers share.
#pragma once
#include "common/cuda_dispatch.cuh"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {

inline dim3 grid_of(int64_t blocks, int64_t samples) { return dim3(unsigned(blocks), unsigned(samples)); }

// Whether the blocks of a layer's own kernel take several samples each: not where a block for every sample leaves
// multiprocessors idle, nor where each has to add up the sums of splits.
inline bool samples_share_weights(int64_t blocks, int64_t samples, int64_t splits) {
  constexpr int64_t kFewBlocks = 128;
  return splits == 1 && samples * blocks > kFewBlocks;
}

// run(first sample, count): all samples together, but for those beyond a grid's limit
template <class Run>
Result for_each_part(int64_t samples, const Plan& plan, Run run) {
  for (int64_t first = 0; first < samples; first += plan.samples_at_once) {
    const Result done = run(first, std::min(plan.samples_at_once, samples - first));
    if (done.error) return done;
  }
  return {};
}

}  // namespace attnkernels::squeeze_excite
