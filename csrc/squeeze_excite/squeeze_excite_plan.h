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
  int64_t shared_bytes_per_block;  // the opt-in limit
  int64_t shared_bytes_per_multiprocessor;
  int64_t memory_bytes_per_microsecond;
  int threads = 256, cluster_threads = 384;  // of a block
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
  bool short_planes = false;     // sums over planes: by vectors, whatever planes they lie in
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

// Weights of the hidden layer that every block of the second pass may read: less than the x that it reads.
inline constexpr int64_t kFusedHiddenBytes = 32 * 1024;
// Vectors that one block keeps in shared memory (means, hidden): six blocks still fit a multiprocessor of the
// architectures that have the least of it.
inline constexpr int64_t kVectorBytes = 8 * 1024;
// Planes below this are summed vector by vector: a warp loads 512 bytes at once, and planes of few such loads, or ones
// that start between 128-bit boundaries, would leave most of its lanes idle.
inline constexpr int64_t kShortPlaneBytes = 1024;
// Four 16-byte loads, all in flight at once, by each thread of a block, or of a warp.
inline constexpr int64_t kThreadBytes = 64;
// Tiles of columns are 8 vectors wide: 128 contiguous bytes of a pixel, a cache line. Narrow ones leave more of the
// pixels to one block, and so fewer partial sums to be added up.
inline constexpr int64_t kTileVectors = 8;
// More splits than this take longer to add up than they save.
inline constexpr int64_t kMostSplits = 16;
// Lanes that walk a row of columns side by side: 512 contiguous bytes.
inline constexpr int kColumnVectors = 32;
// Pixels or elements that one block walks: they are counted in 32 bits.
inline constexpr int64_t kLongestWalk = int64_t(1) << 30;
// A grid's first dimension, and its second one, which counts samples.
inline constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1, kMostSamples = 65535;
// Planes touched by one block of the scaling pass (their gates lie in shared memory).
inline constexpr int64_t kMappedPlanes = 1024;
// A wave costs three launches, each with some 4 us in which the memory is not busy. It has to save more than that.
inline constexpr int64_t kWaveMicroseconds = 12;

// Numbers in shared memory are padded so that what follows starts at a 128-bit boundary.
constexpr int64_t padded(int64_t count) { return round_up(count, 4); }
// The place of `count` sums in shared memory; 0 where they are too many and stay in global memory.
template <class Sum>
constexpr int64_t staged_length(int64_t count) {
  return count * int64_t(sizeof(Sum)) <= kVectorBytes ? padded(count) : 0;
}
inline int64_t staged_length(int64_t count, ElementSize size) {
  return size.sum == 8 ? staged_length<double>(count) : staged_length<float>(count);
}
// Elements of a cluster's block in shared memory: a copy is aligned as its original.
constexpr int64_t slab_elements(int64_t channels, int64_t pixels, int64_t vector) {
  return round_up(channels * pixels + vector, vector);
}

inline int power_of_two_lanes(int64_t count) {
  int lanes = 1;
  while (lanes < 32 && lanes < count) lanes *= 2;
  return lanes;
}

inline bool has_short_planes(const Shape& shape, ElementSize size) {
  return !shape.channels_last && shape.pixels * size.element < kShortPlaneBytes && shape.pixels >= size.vector();
}
inline int64_t short_plane_cells(const Shape& shape, ElementSize size, int64_t channels) {
  return channels * shape.pixels / size.vector() + 3 + channels;
}

// Tiles of columns and splits of their pixels; a thread keeps at least `pixels_each` pixels.
inline Tiles plan_columns(const Shape& shape, ElementSize size, const Limits& limits, int64_t wanted,
                          int64_t pixels_each, int64_t most_splits) {
  Tiles tiles;
  tiles.threads = limits.threads;
  const int64_t vectors = ceil_div(shape.channels, size.vector());
  tiles.tiles = ceil_div(vectors, kTileVectors);
  tiles.channels = ceil_div(vectors, tiles.tiles) * size.vector();
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  const int64_t rows = std::max<int64_t>(1, tiles.threads / (tiles.channels / size.vector()));
  most_splits = std::min(most_splits, std::max<int64_t>(1, shape.pixels / (pixels_each * rows)));
  tiles.splits = std::max(std::min(ceil_div(wanted, shape.samples * tiles.tiles), most_splits),
                          ceil_div(shape.pixels, kLongestWalk));
  tiles.span = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.splits));
  tiles.splits = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.span));
  return tiles;
}

inline Tiles plan_sums(const Shape& shape, ElementSize size, const Limits& limits) {
  const int64_t plane_bytes = std::max<int64_t>(1, shape.pixels) * size.element;
  const int64_t wanted = 4 * int64_t(limits.multiprocessors);  // blocks: four of 256 threads on each multiprocessor
  // Every block of the second pass adds up the splits' sums: only where these are few.
  const int64_t most_splits = shape.channels * size.sum <= kVectorBytes ? kMostSplits : 1;
  if (shape.channels_last) {
    Tiles tiles = plan_columns(shape, size, limits, wanted, 2, most_splits);
    tiles.shared_bytes = size_t(tiles.threads * size.vector() * size.sum);
    return tiles;
  }
  Tiles tiles;
  tiles.threads = limits.threads;
  tiles.span = shape.pixels;
  tiles.short_planes = has_short_planes(shape, size);
  if (tiles.short_planes) {
    // At least 8 planes: a block's fixed costs are those of a few hundred bytes.
    const int64_t even = std::max<int64_t>(8, ceil_div(shape.samples * shape.channels, wanted));
    tiles.channels = std::min({tiles.threads * kThreadBytes / plane_bytes, even, shape.channels});
    tiles.channels = std::max<int64_t>(1, tiles.channels);
    tiles.shared_bytes = size_t(short_plane_cells(shape, size, tiles.channels) * size.sum);
  } else if (shape.pixels < size.vector()) {
    tiles.lanes = power_of_two_lanes(shape.pixels);
    tiles.channels = tiles.threads / tiles.lanes;
    tiles.shared_bytes = size_t(tiles.channels * size.sum);
  } else {
    const int64_t warps = tiles.threads / 32, planes = shape.samples * shape.channels;
    // So many warps a plane that each has one round of loads.
    while (tiles.segments < warps && plane_bytes > 32 * kThreadBytes * tiles.segments) tiles.segments *= 2;
    tiles.channels = warps / tiles.segments;
    if (tiles.segments == warps)
      tiles.splits = std::clamp<int64_t>(
          ceil_div(wanted, planes), 1,
          std::min(most_splits, std::max<int64_t>(1, plane_bytes / (tiles.threads * kThreadBytes))));
    tiles.splits = std::max(tiles.splits, ceil_div(shape.pixels, kLongestWalk));
    tiles.span = round_up(ceil_div(shape.pixels, tiles.splits), size.vector());
    tiles.splits = ceil_div(shape.pixels, tiles.span);
    tiles.shared_bytes = size_t(tiles.channels * tiles.segments * size.sum);
  }
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  return tiles;
}

inline Tiles plan_map(const Shape& shape, ElementSize size, const Limits& limits) {
  const int64_t wanted = 8 * int64_t(limits.multiprocessors);
  if (shape.channels_last) return plan_columns(shape, size, limits, wanted, 2, kLongestWalk);
  Tiles tiles;
  tiles.threads = limits.threads;
  const int64_t pixels = std::max<int64_t>(1, shape.pixels), elements = std::max<int64_t>(1, shape.channels * pixels);
  const int64_t chunk = tiles.threads * size.vector();
  const int64_t blocks = std::clamp<int64_t>(ceil_div(wanted, shape.samples), 1, ceil_div(elements, chunk));
  tiles.span = std::min({round_up(ceil_div(elements, blocks), chunk), kLongestWalk, kMappedPlanes * pixels});
  tiles.splits = ceil_div(elements, tiles.span);
  tiles.channels = std::min(shape.channels, ceil_div(tiles.span, pixels) + 1);
  return tiles;
}

// Shared memory of one block of a cluster.
inline size_t cluster_shared_bytes(const Shape& shape, ElementSize size, int64_t channels, int threads, bool backward) {
  const int64_t vectors = padded(shape.hidden ? 2 * padded(shape.hidden) : shape.channels) + 2 * padded(channels);
  int64_t cells = std::max<int64_t>(channels, threads / 32);
  if (has_short_planes(shape, size)) cells = short_plane_cells(shape, size, channels);
  if (shape.channels_last || backward) cells = std::max(cells, threads * size.vector());  // sums over columns
  return size_t(slab_elements(channels, shape.pixels, size.vector()) * size.element + (vectors + cells) * size.sum);
}

// A cluster per sample, x (or dz) read from DRAM once; cluster == 0 where that is not the better way.
inline Plan plan_single_pass(const Shape& shape, ElementSize size, const Limits& limits, bool backward) {
  // The largest portable cluster: more multiprocessors share a sample's weights and latencies.
  constexpr int kCluster = 8;
  Plan plan;
  const int64_t sector = shape.channels_last ? 32 / size.element : 1;
  plan.channels = round_up(ceil_div(shape.channels, kCluster), sector);
  plan.threads = limits.cluster_threads;
  plan.shared_bytes = cluster_shared_bytes(shape, size, plan.channels, plan.threads, backward);
  plan.sums.short_planes = has_short_planes(shape, size);
  if (limits.compute_capability < 90) {
    plan.reason = "clusters need compute capability 9.0";
  } else if (shape.pixels == 0) {
    plan.reason = "no pixels";
  } else if (3 * shape.samples * kCluster < limits.multiprocessors) {
    plan.reason = "clusters would leave most multiprocessors idle";
  } else if (shape.samples > kMostBlocks / kCluster) {
    plan.reason = "more clusters than a grid can have";
  } else if (int64_t(plan.shared_bytes) > limits.shared_bytes_per_block) {
    plan.reason = "a sample does not fit in the shared memory of a cluster";
  } else if (2 * (int64_t(plan.shared_bytes) + 1024) > limits.shared_bytes_per_multiprocessor) {
    // Measured on an H100: 256 x 56 x 56 in bfloat16 is not faster than two passes.
    plan.reason = "one block per multiprocessor would load, compute and store in turn";
  } else {
    plan.cluster = kCluster;
    plan.reason = "a sample fits in the shared memory of a cluster";
  }
  return plan;
}

inline Plan plan_two_passes(const Shape& shape, ElementSize size, const Limits& limits, bool backward,
                            const char* reason) {
  Plan plan;
  plan.reason = reason;
  // In waves whose second pass finds what the first has read in half of the cache, where DRAM is slow enough.
  const int64_t sample_bytes = std::max<int64_t>(1, shape.channels * shape.pixels * size.element * (backward ? 2 : 1));
  const int64_t cached = std::max<int64_t>(1, limits.l2_bytes / 2);
  int64_t waves = ceil_div(shape.samples * sample_bytes, cached);
  if (cached < kWaveMicroseconds * limits.memory_bytes_per_microsecond) waves = 1;
  plan.wave = std::clamp<int64_t>(ceil_div(shape.samples, std::max<int64_t>(1, waves)), 1, kMostSamples);
  Shape wave = shape;
  wave.samples = plan.wave;
  plan.sums = plan_sums(wave, size, limits);
  plan.map = plan_map(wave, size, limits);
  if (backward) {
    const int64_t coefficients = 2 * (plan.map.channels + 2 * size.vector());
    plan.map.shared_bytes = size_t((coefficients + plan.map.threads * size.vector()) * size.sum);
    return plan;
  }
  // One launch less, where all blocks of the second pass run at once: each repeats the hidden layer.
  plan.fused_hidden = shape.hidden && shape.channels * shape.hidden * size.element <= kFusedHiddenBytes &&
                      staged_length(shape.channels, size) && staged_length(shape.hidden, size) &&
                      wave.samples * plan.map.blocks() <= 4 * limits.multiprocessors;
  const int64_t means = plan.fused_hidden || !shape.hidden ? staged_length(shape.channels, size) : 0;
  plan.map.shared_bytes = size_t((means + staged_length(shape.hidden, size) + plan.map.channels) * size.sum);
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
