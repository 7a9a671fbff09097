// Which kernels run a call, and how a sample is cut into blocks: pure functions of sizes and device limits, no CUDA.
//
// Neither path has counters or atomics, and nothing has to be zeroed first: graph replay and concurrent streams need no
// care. The layers between the passes have launches of their own, in which every multiprocessor reads weights.
#pragma once
#include <algorithm>
#include <cstddef>

#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

struct Limits {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes_per_block;  // the opt-in limit
  // Of a block. Small blocks leave little idle at the end of a launch; a cluster's may be alone on its multiprocessor.
  int threads = 128, cluster_threads = 512;
};

struct ElementSize {
  int64_t element, sum;  // bytes of an element and of the type in which sums are held
  int64_t vector() const { return 16 / element; }
};

// How one pass cuts a sample into blocks: `tiles` of channels times `splits` of each.
struct Tiles {
  int threads = 0;
  int64_t tiles = 1, splits = 1;
  int64_t channels = 0;          // of a tile; where flat: at most so many are touched by a block
  int64_t span = 0;              // pixels of a split; where flat: elements of a block
  int segments = 1, lanes = 32;  // planes: groups of `lanes` threads, `segments` groups a plane
  bool staged = false;           // sums over short planes: through shared memory
  bool flat = false;             // maps of short planes: contiguous elements, whichever their planes
  size_t shared_bytes = 0;
  int64_t blocks() const { return tiles * splits; }
};

struct Plan {
  int cluster = 0;          // blocks that hold one sample in their shared memory; 0: two passes over x
  int64_t channels = 0;     // of a block of the cluster
  int threads = 0;          // of a block of the cluster
  size_t shared_bytes = 0;  // of a block of the cluster
  bool own_gates = false;   // two passes, forward: the gates have a launch of their own
  bool streams = false;     // two passes: more than the cache holds; what is written shall not push out what is read
  Tiles sums, map;
  const char* reason = "";
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// One operand's tile of short planes in shared memory: four 16-byte loads by each of 128 threads.
inline constexpr int64_t kStagedBytes = 8 * 1024;
// Planes below this are not walked by warps of their own: a warp loads 512 bytes at once, and shorter planes, or ones
// that start between 128-bit boundaries, would leave most of its lanes idle.
inline constexpr int64_t kShortPlaneBytes = 1024;
// Column tiles of a pass are 8 vectors wide: a cache line of 128 bytes of each pixel, and so few splits of the pixels.
inline constexpr int64_t kTileVectors = 8;
// Vectors of columns that a block walks at a time where it has more of them.
inline constexpr int64_t kColumnVectors = 32;
// Pixels or elements that one block walks: they are counted in 32 bits.
inline constexpr int64_t kLongestWalk = int64_t(1) << 30;
// Partial sums that the first layer adds up for each channel, in each of its blocks.
inline constexpr int64_t kMostSplits = 32;
// Weights that the L2 cache of an H100 delivers during one launch, about 2 us: reading no more than these again is
// cheaper than another launch.
inline constexpr int64_t kBytesPerLaunch = 8 << 20;

inline int power_of_two_lanes(int64_t count) {
  int lanes = 1;
  while (lanes < 32 && lanes < count) lanes *= 2;
  return lanes;
}

// Blocks of a pass: 8 of 128 threads on each multiprocessor.
inline int64_t wanted_blocks(const Limits& limits) { return 8 * int64_t(limits.multiprocessors); }

// Columns: `loads` pixels a thread at least.
inline Tiles plan_columns(const Shape& shape, ElementSize size, const Limits& limits, int64_t loads,
                          int64_t most_splits) {
  Tiles tiles;
  tiles.threads = limits.threads;
  const int64_t vectors = ceil_div(shape.channels, size.vector());
  tiles.channels = ceil_div(vectors, ceil_div(vectors, kTileVectors)) * size.vector();
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  const int64_t rows = std::max<int64_t>(1, tiles.threads / (tiles.channels / size.vector()));
  const int64_t most = std::clamp<int64_t>(ceil_div(shape.pixels, loads * rows), 1, most_splits);
  tiles.splits = std::max(std::min(ceil_div(wanted_blocks(limits), shape.samples * tiles.tiles), most),
                          ceil_div(shape.pixels, kLongestWalk));
  tiles.span = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.splits));
  tiles.splits = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.span));
  return tiles;
}

// Planes that warps, or several warps each, walk.
inline Tiles plan_long_planes(const Shape& shape, ElementSize size, const Limits& limits) {
  Tiles tiles;
  tiles.threads = limits.threads;
  const int64_t plane_bytes = shape.pixels * size.element;
  const int64_t warps = tiles.threads / 32, planes = shape.samples * shape.channels;
  // More warps a plane while there are fewer than 32 of them on each multiprocessor, down to 1 KB each.
  while (tiles.segments < warps && planes * tiles.segments < 32 * limits.multiprocessors &&
         plane_bytes / (2 * tiles.segments) >= 1024)
    tiles.segments *= 2;
  tiles.channels = warps / tiles.segments;
  if (tiles.segments == warps)
    tiles.splits = std::clamp<int64_t>(ceil_div(wanted_blocks(limits), planes), 1,
                                       std::clamp<int64_t>(plane_bytes / (8 * 1024), 1, kMostSplits));
  tiles.splits = std::max(tiles.splits, ceil_div(shape.pixels, kLongestWalk));
  tiles.span = round_up(ceil_div(shape.pixels, tiles.splits), size.vector());
  tiles.splits = ceil_div(shape.pixels, tiles.span);
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  return tiles;
}

inline bool short_planes(const Shape& shape, ElementSize size) {
  return shape.pixels * size.element < kShortPlaneBytes;
}

inline Tiles plan_sums(const Shape& shape, ElementSize size, const Limits& limits, int operands) {
  if (shape.channels_last) {
    Tiles tiles = plan_columns(shape, size, limits, 4, kMostSplits);  // as many loads as are in flight
    tiles.shared_bytes = size_t(tiles.threads * size.vector() * size.sum);
    return tiles;
  }
  if (!short_planes(shape, size)) {
    Tiles tiles = plan_long_planes(shape, size, limits);
    tiles.shared_bytes = size_t(tiles.channels * tiles.segments * size.sum);
    return tiles;
  }
  Tiles tiles;
  tiles.threads = limits.threads;
  tiles.staged = true;
  tiles.span = shape.pixels;
  const int64_t plane_bytes = std::max<int64_t>(1, shape.pixels) * size.element;
  // At least 8 planes: a block's fixed costs are those of a few hundred bytes.
  const int64_t even = std::max<int64_t>(8, ceil_div(shape.samples * shape.channels, wanted_blocks(limits)));
  tiles.channels = std::min({kStagedBytes / plane_bytes, even, int64_t(tiles.threads), shape.channels});
  tiles.channels = std::max<int64_t>(1, tiles.channels);
  tiles.lanes = power_of_two_lanes(ceil_div(plane_bytes, 16));
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  tiles.shared_bytes =
      size_t(operands * round_up(tiles.channels * shape.pixels + size.vector(), size.vector()) * size.element +
             tiles.channels * size.sum);
  return tiles;
}

inline Tiles plan_map(const Shape& shape, ElementSize size, const Limits& limits) {
  if (shape.channels_last) return plan_columns(shape, size, limits, 1, kLongestWalk);
  if (!short_planes(shape, size)) return plan_long_planes(shape, size, limits);
  Tiles tiles;
  tiles.threads = limits.threads;
  tiles.flat = true;
  const int64_t pixels = std::max<int64_t>(1, shape.pixels);
  const int64_t elements = std::max<int64_t>(1, shape.channels * shape.pixels);
  const int64_t step = tiles.threads * size.vector();  // one load by each thread
  const int64_t blocks =
      std::clamp<int64_t>(ceil_div(wanted_blocks(limits), shape.samples), 1, ceil_div(elements, step));
  // 8 loads of a thread at most, so that the gates of a block's planes fit in its shared memory even at 1 x 1 pixels.
  tiles.span = std::min(round_up(ceil_div(elements, blocks), step), 8 * step);
  tiles.splits = ceil_div(elements, tiles.span);
  tiles.channels = std::min({shape.channels, ceil_div(tiles.span, pixels) + 1, tiles.span});
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
  return backward && !shape.channels_last && shape.pixels * size.element < kShortPlaneBytes ? 2 : 1;
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
    plan.sums.staged = !shape.channels_last && shape.pixels * size.element < kShortPlaneBytes;
    plan.reason = "a sample fits in the shared memory of a cluster";
    return plan;
  }
  plan.reason = "a sample does not fit in the shared memory of a cluster";
  return plan;
}

inline Plan plan_two_passes(Shape shape, ElementSize size, const Limits& limits, bool backward, const char* reason) {
  Plan plan;
  plan.reason = reason;
  shape.samples = std::max<int64_t>(1, shape.samples);
  const int64_t map_bytes = shape.samples * shape.channels * shape.pixels * size.element;
  // What is read again, and what is written.
  plan.streams = 2 * map_bytes > limits.l2_bytes;
  plan.sums = plan_sums(shape, size, limits, backward ? 2 : 1);
  plan.map = plan_map(shape, size, limits);
  if (backward) return plan;
  const int64_t weight_bytes =
      shape.samples * plan.map.blocks() * plan.map.channels * shape.hidden * size.element;  // that all blocks read
  plan.own_gates = !shape.hidden || weight_bytes > std::max(kBytesPerLaunch, map_bytes);
  if (!plan.own_gates) plan.map.shared_bytes = size_t(plan.map.channels * size.sum);
  return plan;
}

// Where one pass is faster, measured on an H100 (microseconds forward / backward, bfloat16, one pass against two):
//   channels_last: 8 x 512 x 28^2 19 / 26 : 29 / 38, 32 x 1024 x 14^2 33 / 47 : 53 / 63,
//   32 x 480 x 14^2 28 / 38 : 43 / 44;
// and where not:
//   7^2: the layers outweigh the maps, and two passes spread them over every multiprocessor (32 x 2048: 50 : 44);
//   channels_last with rows below a cache line, 8 x 256 x 56^2: 45 : 43 backward;
//   planes: 32 x 1024 x 14^2 49 / 82 : 41 / 65;
//   few samples: one has 8 of 132 multiprocessors (1 x 256 x 56^2 26 : 18).
inline bool prefers_single_pass(const Shape& shape, ElementSize size, const Limits& limits, const Plan& plan) {
  return shape.channels_last && shape.pixels >= 128 && plan.channels * size.element >= 128 &&
         5 * shape.samples * plan.cluster >= 2 * int64_t(limits.multiprocessors);
}

// active_clusters(plan): how many such clusters the device runs at once (cudaOccupancyMaxActiveClusters).
template <class ActiveClusters>
Plan choose_path(const Shape& shape, ElementSize size, const Limits& limits, bool backward,
                 ActiveClusters active_clusters) {
  const Plan plan = plan_single_pass(shape, size, limits, backward);
  if (!plan.cluster) return plan_two_passes(shape, size, limits, backward, plan.reason);
  if (!prefers_single_pass(shape, size, limits, plan))
    return plan_two_passes(shape, size, limits, backward, "two passes are faster");
  if (active_clusters(plan) < 1) return plan_two_passes(shape, size, limits, backward, "no cluster can be scheduled");
  return plan;
}

template <class ActiveClusters>
Plan plan_forward(const Shape& shape, ElementSize size, const Limits& limits, ActiveClusters active_clusters) {
  return choose_path(shape, size, limits, false, active_clusters);
}

template <class ActiveClusters>
Plan plan_backward(const Shape& shape, ElementSize size, const Limits& limits, int needs,
                   ActiveClusters active_clusters) {
  if (!(needs & kNeedsX)) return plan_two_passes(shape, size, limits, true, "only grad_x needs a second pass over dz");
  return choose_path(shape, size, limits, true, active_clusters);
}

}  // namespace attnkernels::squeeze_excite
