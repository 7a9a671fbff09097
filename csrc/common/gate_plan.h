// How a sample is cut into blocks by the two passes of an op that scales a map by gates, sums and then the map: pure
// functions of sizes and device limits, no CUDA.
//
// What computes the gates from the sums comes between them, or in the blocks of the second pass. There are no counters
// and no atomics: nothing has to be zeroed first, so that graph replay and concurrent streams need no care. On compute
// capability 9.0 launches overlap (programmatic dependent launch), and each kernel asks for what it can have before the
// one before it has ended.
#pragma once
#include <algorithm>
#include <cstddef>

#include "common/cuda_launch.h"
#include "common/gate.h"

namespace attnkernels::gate {

struct Limits {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int64_t l2_bytes;
  bool dependent_launches;  // the device and the library have them
};

// Numbers that measurements decide: tools/tune finds them. These are an H100's; the figures beside them are its
// microseconds, bfloat16, in a CUDA graph.
struct Tuning {
  bool dependent = true;  // launches overlap, where they can: 8x256x56x56 forward 14.6 : 15.8
  // Blocks of a pass on each multiprocessor. Maps: all at once, since each block waits for its coefficients before it
  // streams (8x256x56x56 forward, 2, 3, 4, 8 of them: 15.4, 13.9, 13.4, 21.7), but for maps beyond the cache, where
  // blocks that come later fill the gaps (32x256x56x56 forward, 3, 6: 56.2, 53.6; backward, 2, 8: 90.1, 85.3).
  int64_t map_blocks = 4, grad_map_blocks = 2, large_map_blocks = 8;
  // Sums of short planes: one wave as well (32x480x14x14 backward, 2, 8: 18.6, 25.1). Sums of columns: few, since
  // somebody adds up their sums.
  int64_t sum_blocks = 4, grad_sum_blocks = 3, column_sum_blocks = 2;
  // Of a plane that a thread adds up, operands together. 8x256x56x56 forward, 64, 128: 7.9, 6.2 for the sums alone.
  int64_t segment_bytes = 128, grad_segment_bytes = 256;
  int64_t most_splits = 8;  // of a sum: 1x256x56x56 channels_last forward, 8, 16: 9.6, 11.1
  // Maps that take more than 1 / so much of the cache are stored as if not read again: they would push out what is
  // (32x256x56x56 forward 55.4 : 59.0, 8x256x56x56 backward 27.6 : 31.5).
  int64_t streamed_part = 2;
  // The backward reads x, which only its first pass needs, as if not read again where its maps together take more than
  // 1 / so much of the cache (32x256x56x56 80.5 : 83.3, 8x256x56x56 with an output activation 32.7 : 36.1; but
  // 8x256x56x56 channels_last 21.5 : 20.0, whose 38 of 50 MB the cache holds).
  int64_t once_part = 1;
};

// A grid's second dimension, which counts samples.
inline constexpr int64_t kMostSamples = 65535;

struct ElementSize {
  int64_t element, sum;  // bytes of an element and of the type in which sums are held
  int64_t vector() const { return 16 / element; }
};

inline ElementSize element_size(DataType type) {
  if (type == DataType::kDouble) return {8, 8};
  return {type == DataType::kFloat ? 4 : 2, 4};
}

// How one pass cuts a sample into blocks: `tiles` of channels times `splits` of each.
struct Tiles {
  int threads = 0;
  int64_t tiles = 1, splits = 1;
  int64_t channels = 0;          // of a tile; for planes in the scaling pass: at most so many are touched by a block
  int64_t span = 0;              // pixels of a split; for planes in the scaling pass: elements of a block
  int segments = 1, lanes = 32;  // sums over planes: groups of `lanes` threads, `segments` groups a plane
  bool short_planes = false;     // sums over planes: by vectors, whatever planes they lie in
  size_t shared_bytes = 0;
  int64_t blocks() const { return tiles * splits; }
};

struct Plan {
  Tiles sums, map;
  bool dependent = false;      // launches overlap
  bool stream_output = false;  // maps are stored as if not read again
  bool stream_input = false;   // the first pass of the backward reads x as if not read again
  int64_t samples_at_once = kMostSamples;

  // Numbers of a sample that the splits of its sums leave.
  int64_t partial_sums(const MapShape& shape) const { return sums.splits > 1 ? sums.splits * shape.channels : 0; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline constexpr int kThreads = 256;  // of every block
// Planes below this are summed vector by vector: a warp loads 512 bytes at once, and planes of few such loads, or ones
// that start between 128-bit boundaries, would leave most of its lanes idle.
inline constexpr int64_t kShortPlaneBytes = 1024;
// Of a block that sums short planes: four 16-byte loads by each thread.
inline constexpr int64_t kShortPlanesBytes = 64 * kThreads;
// Tiles of columns are 8 vectors wide: 128 contiguous bytes of a pixel, a cache line. Narrow ones leave more of the
// pixels to one block, and so fewer partial sums to be added up.
inline constexpr int64_t kTileVectors = 8;
// Lanes that walk a row of columns side by side: 512 contiguous bytes.
inline constexpr int kColumnVectors = 32;
// Pixels or elements that one block walks: they are counted in 32 bits.
inline constexpr int64_t kLongestWalk = int64_t(1) << 30;
// Planes touched by one block of the scaling pass (their gates lie in shared memory).
inline constexpr int64_t kMappedPlanes = 1024;

// Numbers in shared memory are padded so that what follows starts at a 128-bit boundary.
constexpr int64_t padded(int64_t count) { return round_up(count, 4); }

inline int power_of_two_lanes(int64_t count) {
  int lanes = 1;
  while (lanes < 32 && lanes < count) lanes *= 2;
  return lanes;
}

inline bool has_short_planes(const MapShape& shape, ElementSize size) {
  return !shape.channels_last && shape.pixels * size.element < kShortPlaneBytes && shape.pixels >= size.vector();
}
inline int64_t short_plane_cells(const MapShape& shape, ElementSize size, int64_t channels) {
  return channels * shape.pixels / size.vector() + 3 + channels;
}

// Tiles of columns and splits of their pixels; a thread keeps at least two pixels.
inline Tiles plan_columns(const MapShape& shape, ElementSize size, int64_t wanted, int64_t most_splits) {
  Tiles tiles;
  tiles.threads = kThreads;
  const int64_t vectors = ceil_div(shape.channels, size.vector());
  tiles.tiles = ceil_div(vectors, kTileVectors);
  tiles.channels = ceil_div(vectors, tiles.tiles) * size.vector();
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  const int64_t rows = std::max<int64_t>(1, tiles.threads / (tiles.channels / size.vector()));
  most_splits = std::min(most_splits, std::max<int64_t>(1, shape.pixels / (2 * rows)));
  tiles.splits = std::max(std::clamp<int64_t>(wanted / (shape.samples * tiles.tiles), 1, most_splits),
                          ceil_div(shape.pixels, kLongestWalk));
  tiles.span = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.splits));
  tiles.splits = std::max<int64_t>(1, ceil_div(shape.pixels, tiles.span));
  return tiles;
}

// most_splits: of a sum; somebody has to add up what they leave.
inline Tiles plan_sums(const MapShape& shape, ElementSize size, const Limits& limits, const Tuning& tuning,
                       bool backward, int64_t most_splits) {
  const int64_t plane_bytes = std::max<int64_t>(1, shape.pixels) * size.element;
  const int64_t wanted = limits.multiprocessors * (shape.channels_last ? tuning.column_sum_blocks
                                                   : backward          ? tuning.grad_sum_blocks
                                                                       : tuning.sum_blocks);
  if (shape.channels_last) {
    Tiles tiles = plan_columns(shape, size, wanted, most_splits);
    tiles.shared_bytes = size_t(tiles.threads * size.vector() * size.sum);
    return tiles;
  }
  Tiles tiles;
  tiles.threads = kThreads;
  tiles.span = shape.pixels;
  tiles.short_planes = has_short_planes(shape, size);
  if (tiles.short_planes) {
    // At least 8 planes: a block's fixed costs are those of a few hundred bytes.
    const int64_t even = std::max<int64_t>(8, ceil_div(shape.samples * shape.channels, wanted));
    tiles.channels = std::max<int64_t>(1, std::min({kShortPlanesBytes / plane_bytes, even, shape.channels}));
    tiles.shared_bytes = size_t(short_plane_cells(shape, size, tiles.channels) * size.sum);
  } else if (shape.pixels < size.vector()) {
    tiles.lanes = power_of_two_lanes(shape.pixels);
    tiles.channels = tiles.threads / tiles.lanes;
    tiles.shared_bytes = size_t(tiles.channels * size.sum);
  } else {
    const int64_t warps = tiles.threads / 32, planes = shape.samples * shape.channels;
    const int64_t segment = backward ? tuning.grad_segment_bytes : tuning.segment_bytes;
    while (tiles.segments < warps && plane_bytes > 32 * segment * tiles.segments) tiles.segments *= 2;
    // As many blocks as can run: few planes are spread over more warps.
    while (tiles.segments < warps && planes * tiles.segments < (backward ? 1 : 2) * warps * limits.multiprocessors &&
           plane_bytes > 32 * 16 * tiles.segments)
      tiles.segments *= 2;
    tiles.channels = warps / tiles.segments;
    if (tiles.segments == warps)
      tiles.splits = std::clamp<int64_t>(wanted / planes, 1,
                                         std::min(most_splits, std::max<int64_t>(1, plane_bytes / kShortPlanesBytes)));
    tiles.splits = std::max(tiles.splits, ceil_div(shape.pixels, kLongestWalk));
    tiles.span = round_up(ceil_div(shape.pixels, tiles.splits), size.vector());
    tiles.splits = ceil_div(shape.pixels, tiles.span);
    tiles.shared_bytes = size_t(tiles.channels * tiles.segments * size.sum);
  }
  tiles.tiles = ceil_div(shape.channels, tiles.channels);
  return tiles;
}

inline Tiles plan_map(const MapShape& shape, ElementSize size, int64_t wanted) {
  if (shape.channels_last) return plan_columns(shape, size, wanted, kLongestWalk);
  Tiles tiles;
  tiles.threads = kThreads;
  const int64_t pixels = std::max<int64_t>(1, shape.pixels), elements = std::max<int64_t>(1, shape.channels * pixels);
  const int64_t chunk = tiles.threads * size.vector();
  const int64_t blocks = std::clamp<int64_t>(wanted / shape.samples, 1, ceil_div(elements, chunk));
  tiles.span = std::min({round_up(ceil_div(elements, blocks), chunk), kLongestWalk, kMappedPlanes * pixels});
  tiles.splits = ceil_div(elements, tiles.span);
  tiles.channels = std::min(shape.channels, ceil_div(tiles.span, pixels) + 1);
  return tiles;
}

// has_clip: there is an output activation, whose result the backward reads.
inline Plan make_plan(MapShape shape, ElementSize size, const Limits& limits, const Tuning& tuning, bool backward,
                      bool has_clip, int64_t most_splits) {
  shape.samples = std::clamp<int64_t>(shape.samples, 1, kMostSamples);
  Plan plan;
  plan.dependent = tuning.dependent && limits.dependent_launches;
  plan.sums = plan_sums(shape, size, limits, tuning, backward, most_splits);
  const int64_t map_bytes = shape.samples * shape.channels * shape.pixels * size.element;
  int64_t map_blocks = map_bytes > limits.l2_bytes / 2 ? tuning.large_map_blocks
                       : backward                      ? tuning.grad_map_blocks
                                                       : tuning.map_blocks;
  if (limits.compute_capability >= 100) map_blocks = std::min<int64_t>(map_blocks, 3);  // as many as registers allow
  plan.map = plan_map(shape, size, map_blocks * limits.multiprocessors);
  plan.stream_output = (backward ? 3 : 2) * map_bytes > limits.l2_bytes / std::max<int64_t>(1, tuning.streamed_part);
  plan.stream_input =
      backward && (has_clip ? 5 : 3) * map_bytes > limits.l2_bytes / std::max<int64_t>(1, tuning.once_part);
  return plan;
}

}  // namespace attnkernels::gate
