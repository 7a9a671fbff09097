// How kernels that walk feature maps as dense matrices are cut into blocks (common/matrix.cuh): pure functions of sizes,
// no CUDA.
//
// The rows of a sample are its channels and the columns pixels or, channels_last, the other way round. A block has a
// tile of it; what is added up along rows or columns that have several tiles is put together by a second kernel. Numbers
// are those of an H100, bfloat16, in a CUDA graph, where figures in microseconds are given, and from reasoning elsewhere.
#pragma once
#include <initializer_list>

#include "common/gate_plan.h"

namespace attnkernels::matrix {

using gate::ceil_div;
using gate::kLongestWalk;
using gate::kThreads;
using gate::round_up;

// What a pass does: the maps that a thread has in registers, and the numbers that what it adds up consists of, over the
// pixels, by channel, and over the channels, by pixel; 0: it does not add up.
struct Pass {
  int maps = 1;  // that it reads; 2 where it stores one
  int by_channel = 0, by_pixel = 0;
  bool over_samples = false;        // by_channel: over the samples, too
  bool many_pixel_numbers = false;  // that a thread keeps while it takes several channels
  int resident = 3;                 // blocks of its kernel for which a multiprocessor has registers
};

// Numbers that measurements decide. Blocks of a pass on each multiprocessor: sums as many as are resident at once (0;
// grad_channel_gate of 32x256x56x56 with 3 of them, 2, 3, 4, 8: 54.7, 54.7, 69.3, 60.0); maps more, so that blocks that
// come later fill the gaps (grad_x 4, 8, 12: 58.9, 51.7, 48.2, but of 8x256x56x56 channels_last 11.1, 10.5, 12.7).
struct Tuning {
  int64_t sum_blocks = 0, map_blocks = 8;
  int64_t streamed_part = 2;  // maps that take more than 1 / so much of the cache are stored as if not read again
};

struct Plan {
  MapShape shape;
  Pass pass;
  int width = 1;        // elements that a thread moves at once
  int across_bits = 0;  // 1 << across_bits threads are side by side in a row
  int64_t tile_rows = 1, tile_columns = 1, row_tiles = 1, column_tiles = 1;
  bool dependent = false;      // launches overlap
  bool backwards = false;      // the last blocks first: what the pass before read last is likely to be in the cache
  bool stream_output = false;  // maps are stored as if not read again

  constexpr int64_t rows() const { return shape.rows(); }
  constexpr int64_t columns() const { return shape.row_length(); }
  constexpr int along_rows() const { return shape.channels_last ? pass.by_pixel : pass.by_channel; }
  constexpr int along_columns() const { return shape.channels_last ? pass.by_channel : pass.by_pixel; }
  constexpr int across() const { return 1 << across_bits; }
  constexpr int warps_across() const { return across() < 32 ? 1 : across() / 32; }
  constexpr int64_t blocks() const { return shape.samples * row_tiles * column_tiles; }

  // Blocks that share what is added up for a channel or a pixel, and the numbers of scratch for what they leave.
  constexpr int64_t channel_splits() const { return shape.channels_last ? row_tiles : column_tiles; }
  constexpr int64_t pixel_splits() const { return shape.channels_last ? column_tiles : row_tiles; }
  constexpr int64_t channel_scratch() const {
    if (channel_splits() == 1 && !pass.over_samples) return 0;
    return pass.by_channel * shape.samples * channel_splits() * shape.channels;
  }
  constexpr int64_t pixel_scratch() const {
    return pixel_splits() == 1 ? 0 : pass.by_pixel * shape.samples * pixel_splits() * shape.pixels;
  }
  constexpr int64_t scratch() const { return channel_scratch() + pixel_scratch(); }
};

// Rows that a thread fetches at once, a power of two: 64 bytes, which are 64 KB on a multiprocessor that has 1024
// threads (DRAM's latency needs half of that); of narrow vectors, and of double, as many as registers hold.
constexpr int rows_at_once(int maps, int64_t vector_bytes) {
  const int64_t rows = 64 / (maps * vector_bytes), most = vector_bytes == 8 ? 4 : 8 / maps;
  return int(rows < most ? rows : most);
}

// Turns of a tile's rows for which a thread keeps the numbers of its columns, where these are many.
inline constexpr int64_t kTallBatches = 4;

// Sums along rows that a block has in shared memory.
inline constexpr int64_t kMostRowCells = 1024;

// The widest vectors that kernels are compiled for and that all maps (or null) allow. Halves are for planes of 14 x 14.
inline int choose_width(const MapShape& shape, int64_t bytes, std::initializer_list<const void*> maps) {
  const auto allowed = [&](int64_t width) {
    bool aligned = shape.row_length() % width == 0;
    for (const void* map : maps) aligned = aligned && reinterpret_cast<uintptr_t>(map) % (width * bytes) == 0;
    return aligned;
  };
  if (bytes < 8 && allowed(16 / bytes)) return int(16 / bytes);
  return bytes == 2 && !shape.channels_last && allowed(4) ? 4 : 1;
}

// The tiles of a plan that has everything else; of about so many blocks.
inline void choose_tiles(Plan& plan, int64_t vector_bytes, int64_t wanted) {
  const bool along_rows = plan.along_rows(), along_columns = plan.along_columns();
  const int at_once = rows_at_once(plan.pass.maps, vector_bytes);
  const int64_t samples = std::max<int64_t>(1, plan.shape.samples), rows = plan.rows();
  const int64_t vectors = plan.columns() / plan.width;
  int bits = 5;
  while (bits > 0 && (1 << bits) >= 2 * vectors) --bits;
  // Two vectors of a row for each thread, where lanes put together what they have (statistics of 32x256x56x56
  // channels_last, 8, 16, 32 threads across: 31.6, 29.8, 35.6).
  while (along_rows && !along_columns && bits > 3 && (2 << bits) > vectors) --bits;
  // Where more than a tenth of the lanes would be idle at the end of each row.
  for (int narrower : {4, 3})
    if (10 * round_up(vectors, 1 << bits) > 11 * vectors &&
        round_up(vectors, 1 << narrower) < round_up(vectors, 1 << bits))
      bits = narrower;
  const auto batch = [&] { return int64_t(kThreads >> bits) * at_once; };  // rows that a block takes at once
  const auto may_widen = [&] { return (1 << bits) < kThreads && (1 << bits) < vectors; };
  while (may_widen() && 2 * rows <= batch()) ++bits;
  if (along_rows && !along_columns) {
    // More blocks of fewer rows, each with whole rows as long as there are enough.
    const int64_t tall_tiles = ceil_div(rows, kTallBatches * batch()) * std::max<int64_t>(1, vectors >> (bits + 1));
    const bool tall =
        plan.pass.many_pixel_numbers && !plan.shape.channels_last && 4 * samples * tall_tiles >= 3 * wanted;
    while (!tall && may_widen() && 3 * samples * ceil_div(rows, batch()) < 2 * wanted) ++bits;
    const int64_t chunks = ceil_div(vectors, 1 << bits);
    const int64_t batches = tall ? kTallBatches : 1;
    plan.row_tiles = std::clamp<int64_t>(ceil_div(wanted, samples), 1, ceil_div(rows, batches * batch()));
    plan.column_tiles = std::clamp<int64_t>(wanted / (samples * plan.row_tiles), 1, std::max<int64_t>(1, chunks / 2));
    plan.column_tiles = std::max(plan.column_tiles, ceil_div(plan.columns(), kLongestWalk));
    plan.tile_columns = ceil_div(chunks, plan.column_tiles) * plan.width << bits;
  } else {
    // Tiles as narrow as a cache line leave more of the rows to one block, and so fewer sums to be put together.
    while (along_columns && !along_rows && bits > 3 && samples * ceil_div(vectors, 1 << bits) < wanted &&
           rows >= 2 * batch())
      --bits;
    plan.tile_columns = int64_t(plan.width) << bits;
    const int64_t least = along_columns ? 2 * batch() : batch();
    plan.row_tiles = std::clamp<int64_t>(wanted / (samples * ceil_div(plan.columns(), plan.tile_columns)), 1,
                                         std::max<int64_t>(1, rows / least));
    // Along both, whole rows where they are short and that leaves fewer sums to be put together.
    const int64_t chunks = ceil_div(plan.columns(), plan.tile_columns);
    const int64_t whole = std::clamp<int64_t>(ceil_div(wanted, samples), 1, std::max<int64_t>(1, rows / batch()));
    const int64_t left = chunks * rows + (plan.row_tiles > 1 ? plan.row_tiles * plan.columns() : 0);
    if (along_rows && chunks > 1 && 4 * samples * whole >= wanted && whole * plan.columns() < left) {
      plan.tile_columns *= chunks;
      plan.row_tiles = whole;
    }
  }
  plan.across_bits = bits;
  plan.tile_rows = std::min(round_up(ceil_div(rows, plan.row_tiles), batch()), kLongestWalk);
  if (along_rows) plan.tile_rows = std::min(plan.tile_rows, kMostRowCells / plan.warps_across());
  plan.row_tiles = ceil_div(rows, plan.tile_rows);
  plan.column_tiles = ceil_div(plan.columns(), plan.tile_columns);
}

inline Plan choose(DataType type, const MapShape& shape, const Pass& pass, std::initializer_list<const void*> maps,
                   bool backwards, const gate::Limits& limits, const Tuning& tuning) {
  const int64_t bytes = element_bytes(type);
  Plan plan{.shape = shape,
            .pass = pass,
            .width = choose_width(shape, bytes, maps),
            .dependent = limits.dependent_launches,
            .backwards = backwards};
  const bool sums = pass.by_channel || pass.by_pixel;
  const int64_t sum_blocks = tuning.sum_blocks                  ? tuning.sum_blocks
                             : limits.compute_capability >= 100 ? std::min(pass.resident, 3)
                                                                : pass.resident;
  choose_tiles(plan, plan.width * bytes, limits.multiprocessors * (sums ? sum_blocks : tuning.map_blocks));
  plan.stream_output = 2 * bytes * shape.samples * shape.channels * shape.pixels >
                       limits.l2_bytes / std::max<int64_t>(1, tuning.streamed_part);
  return plan;
}

}  // namespace attnkernels::matrix
