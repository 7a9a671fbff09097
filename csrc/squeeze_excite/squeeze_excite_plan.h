// Which kernels run a call, and how a sample is cut into blocks: pure functions of sizes and device limits, no CUDA.
//
// Neither path has counters or atomics. Instead of the last block of a sample computing its gates alone, every block of
// the scaling kernel computes those that it needs (the hidden layer, if small, redundantly): the weights are read by
// the whole grid at once rather than by one multiprocessor (2048 x 128 in bfloat16 are 1 MB, 10 us for one), two
// launches suffice, and nothing has to be zeroed first, so that graph replay and concurrent streams need no care.
#pragma once
#include <algorithm>
#include <cstddef>

#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

struct Limits {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes_per_block;            // the opt-in limit
  int threads = 256, cluster_threads = 512;  // of a block; a cluster's may be alone on its multiprocessor
};

struct ElementSize {
  int64_t element, sum;  // bytes of an element and of the type in which sums are held
  int64_t vector() const { return 16 / element; }
};

// How one pass cuts a sample into blocks: `tiles` of channels times `splits` of each.
struct Tiles {
  int threads = 0;
  int64_t tiles = 1, splits = 1;
  int64_t channels = 0;  // of a tile; for planes in the scaling pass: at most so many, plus 2, are touched by a block
  int64_t span = 0;      // pixels of a split; for planes in the scaling pass: elements of a block
  int segments = 1, lanes = 32;  // sums over planes: groups of `lanes` threads, `segments` groups a plane
  bool staged = false;           // sums over planes: through shared memory
  size_t shared_bytes = 0;
  int64_t blocks() const { return tiles * splits; }
};

struct Plan {
  int cluster = 0;          // blocks that hold one sample in their shared memory; 0: two passes over x
  int64_t channels = 0;     // of a block of the cluster
  int threads = 0;          // of a block of the cluster
  size_t shared_bytes = 0;  // of a block of the cluster
  bool fused_hidden =
      false;         // two passes, forward: the second computes the hidden layer itself, without a kernel in between
  int64_t wave = 0;  // two passes: samples whose second pass follows before the next samples' first
  Tiles sums, map;
  const char* reason = "";
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Weights of the hidden layer that every block of the second pass may read: less than the x that it reads (16 to 64
// KB).
inline constexpr int64_t kFusedHiddenBytes = 32 * 1024;
// Vectors that one block keeps in shared memory between steps (means, hidden): six blocks still fit a multiprocessor of
// the architectures that have the least shared memory.
inline constexpr int64_t kVectorBytes = 8 * 1024;
// One operand's tile of short planes in shared memory: two 16-byte loads by each of 256 threads.
inline constexpr int64_t kStagedBytes = 8 * 1024;
// Planes below this are summed through shared memory: a warp loads 512 bytes at once, and shorter planes, or ones that
// start between 128-bit boundaries, would leave most of its lanes idle.
inline constexpr int64_t kStagedPlaneBytes = 1024;
// Column tiles are 32 vectors wide: 512 contiguous bytes of a pixel.
inline constexpr int64_t kColumnVectors = 32;
// Pixels or elements that one block walks: they are counted in 32 bits.
inline constexpr int64_t kLongestWalk = int64_t(1) << 30;
// A grid's second dimension, which counts samples.
inline constexpr int64_t kMostSamples = 65535;
// Planes touched by one block of the scaling pass (their gates lie in shared memory).
inline constexpr int64_t kMappedPlanes = 1024;

inline int power_of_two_lanes(int64_t count) {
  int lanes = 1;
  while (lanes < 32 && lanes < count) lanes *= 2;
  return lanes;
}

// Partial sums over `splits` are added up by every block of the second pass: only where that is few numbers.
inline bool may_split(const Shape& shape, ElementSize size) { return shape.channels * size.sum <= kVectorBytes; }

inline Tiles plan_sums(const Shape& shape, ElementSize size, const Limits& limits, int operands) {
  Tiles tiles;
  tiles.threads = limits.threads;
  const int64_t plane_bytes = std::max<int64_t>(1, shape.pixels) * size.element;
  const int64_t wanted = 4 * int64_t(limits.multiprocessors);  // blocks: four of 256 threads on each multiprocessor
  if (shape.channels_last) {
    const int64_t vectors = ceil_div(shape.channels, size.vector());
    tiles.tiles = ceil_div(vectors, kColumnVectors);
    tiles.channels = ceil_div(vectors, tiles.tiles) * size.vector();
    tiles.tiles = ceil_div(shape.channels, tiles.channels);
    const int64_t rows = std::max<int64_t>(1, tiles.threads / (tiles.channels / size.vector()));
    // Four pixels a thread: as many loads as are in flight.
    const int64_t most = may_split(shape, size) ? std::max<int64_t>(1, shape.pixels / (4 * rows)) : 1;
    tiles.splits =
        std::max(std::min(ceil_div(wanted, shape.samples * tiles.tiles), most), ceil_div(shape.pixels, kLongestWalk));
    tiles.span = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.splits));
    tiles.splits = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.span));
    tiles.shared_bytes = size_t(tiles.threads * size.vector() * size.sum);
    return tiles;
  }
  tiles.span = shape.pixels;
  tiles.staged = plane_bytes < kStagedPlaneBytes;
  if (tiles.staged) {
    // At least 8 planes: a block's fixed costs are those of a few hundred bytes.
    const int64_t even = std::max<int64_t>(8, ceil_div(shape.samples * shape.channels, wanted));
    tiles.channels = std::min({kStagedBytes / plane_bytes, even, int64_t(tiles.threads), shape.channels});
    tiles.channels = std::max<int64_t>(1, tiles.channels);
    tiles.lanes = power_of_two_lanes(ceil_div(plane_bytes, 16));
    tiles.shared_bytes =
        size_t(operands * round_up(tiles.channels * shape.pixels + size.vector(), size.vector()) * size.element);
  } else {
    const int64_t warps = tiles.threads / 32, planes = shape.samples * shape.channels;
    // More warps a plane while there are fewer than 32 of them on each multiprocessor, down to 1 KB each.
    while (tiles.segments < warps && planes * tiles.segments < 32 * limits.multiprocessors &&
           plane_bytes / (2 * tiles.segments) >= 1024)
      tiles.segments *= 2;
    tiles.channels = warps / tiles.segments;
    if (tiles.segments == warps && may_split(shape, size))
      tiles.splits = std::clamp<int64_t>(ceil_div(wanted, planes), 1, std::max<int64_t>(1, plane_bytes / (16 * 1024)));
    tiles.splits = std::max(tiles.splits, ceil_div(shape.pixels, kLongestWalk));
    tiles.span = round_up(ceil_div(shape.pixels, tiles.splits), size.vector());
    tiles.splits = ceil_div(shape.pixels, tiles.span);
  }
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  tiles.shared_bytes += size_t(tiles.channels * tiles.segments * size.sum);
  return tiles;
}

inline Tiles plan_map(const Shape& shape, ElementSize size, const Limits& limits) {
  Tiles tiles;
  tiles.threads = limits.threads;
  const int64_t wanted = 8 * int64_t(limits.multiprocessors);
  if (shape.channels_last) {
    const int64_t vectors = ceil_div(shape.channels, size.vector());
    tiles.tiles = ceil_div(vectors, kColumnVectors);
    tiles.channels = ceil_div(vectors, tiles.tiles) * size.vector();
    tiles.tiles = ceil_div(shape.channels, tiles.channels);
    const int64_t rows = std::max<int64_t>(1, tiles.threads / (tiles.channels / size.vector()));
    const int64_t most = std::max<int64_t>(1, shape.pixels / (4 * rows));
    tiles.splits =
        std::max(std::min(ceil_div(wanted, shape.samples * tiles.tiles), most), ceil_div(shape.pixels, kLongestWalk));
    tiles.span = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.splits));
    tiles.splits = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.span));
    return tiles;
  }
  const int64_t elements = std::max<int64_t>(1, shape.channels * shape.pixels);
  const int64_t chunk = 4 * tiles.threads * size.vector();  // four loads in flight by each thread
  const int64_t blocks = std::clamp<int64_t>(ceil_div(wanted, shape.samples), 1, ceil_div(elements, chunk));
  tiles.span = std::min(
      {round_up(ceil_div(elements, blocks), chunk), kLongestWalk, kMappedPlanes * std::max<int64_t>(1, shape.pixels)});
  tiles.splits = ceil_div(elements, tiles.span);
  tiles.channels = std::min(shape.channels, ceil_div(tiles.span, std::max<int64_t>(1, shape.pixels)) + 1);
  return tiles;
}

// Shared memory of one block of a cluster; `resident` operands of each element are kept.
inline size_t cluster_shared_bytes(const Shape& shape, ElementSize size, int64_t channels, int threads, int resident,
                                   bool backward) {
  const int64_t data = resident * round_up(channels * shape.pixels + size.vector(), size.vector()) * size.element;
  const int64_t gathered = shape.hidden ? 2 * shape.hidden : shape.channels;
  const bool columns = shape.channels_last || backward;  // sums over columns need a cell per thread and vector lane
  const int64_t cells =
      std::max<int64_t>(columns ? threads * size.vector() : 0, std::max<int64_t>(channels, threads / 32));
  return size_t(data + (2 * channels + gathered + cells) * size.sum);
}

// Operands of the backward that stay in shared memory: short planes are summed there, which takes x too.
inline int resident_operands(const Shape& shape, ElementSize size, bool backward) {
  return backward && !shape.channels_last && shape.pixels * size.element < kStagedPlaneBytes ? 2 : 1;
}

// A cluster per sample, x (or dz) read from DRAM once; cluster == 0 where a sample does not fit.
inline Plan plan_single_pass(const Shape& shape, ElementSize size, const Limits& limits, bool backward) {
  Plan plan;
  if (limits.compute_capability < 90) {
    plan.reason = "clusters need compute capability 9.0";
    return plan;
  }
  if (shape.pixels == 0) {
    plan.reason = "no pixels";
    return plan;
  }
  plan.threads = limits.cluster_threads;
  const int64_t sector = shape.channels_last ? 32 / size.element : 1;
  // The largest portable cluster: more multiprocessors share a sample's weights and latencies.
  for (int cluster : {8}) {
    const int64_t channels = round_up(ceil_div(shape.channels, cluster), sector);
    const size_t bytes =
        cluster_shared_bytes(shape, size, channels, plan.threads, resident_operands(shape, size, backward), backward);
    if (int64_t(bytes) > limits.shared_bytes_per_block) continue;
    plan.cluster = cluster;
    plan.channels = channels;
    plan.shared_bytes = bytes;
    plan.sums.staged = !shape.channels_last && shape.pixels * size.element < kStagedPlaneBytes;
    plan.reason = "a sample fits in the shared memory of a cluster";
    return plan;
  }
  plan.reason = "a sample does not fit in the shared memory of a cluster";
  return plan;
}

inline Plan plan_two_passes(const Shape& shape, ElementSize size, const Limits& limits, bool backward,
                            const char* reason) {
  Plan plan;
  plan.reason = reason;
  plan.fused_hidden = !backward && shape.hidden && shape.channels * shape.hidden * size.element <= kFusedHiddenBytes &&
                      std::max(shape.channels, shape.hidden) * size.sum <= kVectorBytes;
  // Half of the cache for what the first pass reads: the second finds it there.
  const int64_t sample_bytes = std::max<int64_t>(1, shape.channels * shape.pixels * size.element * (backward ? 2 : 1));
  const int64_t waves = ceil_div(shape.samples * sample_bytes, std::max<int64_t>(1, limits.l2_bytes / 2));
  plan.wave = std::clamp<int64_t>(ceil_div(shape.samples, std::max<int64_t>(1, waves)), 1, kMostSamples);
  Shape wave = shape;
  wave.samples = plan.wave;
  plan.sums = plan_sums(wave, size, limits, backward ? 2 : 1);
  plan.map = plan_map(wave, size, limits);
  const int64_t staged_means = !backward && plan.sums.splits > 1 ? shape.channels : 0;
  const int64_t gates = (plan.map.channels + 2) * (backward ? 2 : 1);
  const int64_t fused = plan.fused_hidden ? shape.hidden : 0;
  const int64_t cells = backward ? plan.map.threads * size.vector() : 0;
  plan.map.shared_bytes = size_t((gates + staged_means + fused + cells) * size.sum);
  return plan;
}

// active_clusters(plan): how many such clusters the device runs at once (cudaOccupancyMaxActiveClusters).
template <class ActiveClusters>
Plan plan_forward(const Shape& shape, ElementSize size, const Limits& limits, ActiveClusters active_clusters) {
  const Plan plan = plan_single_pass(shape, size, limits, false);
  if (!plan.cluster) return plan_two_passes(shape, size, limits, false, plan.reason);
  if (active_clusters(plan) < 1) return plan_two_passes(shape, size, limits, false, "no cluster can be scheduled");
  return plan;
}

template <class ActiveClusters>
Plan plan_backward(const Shape& shape, ElementSize size, const Limits& limits, int needs,
                   ActiveClusters active_clusters) {
  if (!(needs & kNeedsX)) return plan_two_passes(shape, size, limits, true, "only grad_x needs a second pass over dz");
  const Plan plan = plan_single_pass(shape, size, limits, true);
  if (!plan.cluster) return plan_two_passes(shape, size, limits, true, plan.reason);
  if (active_clusters(plan) < 1) return plan_two_passes(shape, size, limits, true, "no cluster can be scheduled");
  return plan;
}

}  // namespace attnkernels::squeeze_excite
