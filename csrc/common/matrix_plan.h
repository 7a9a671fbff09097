// How kernels that walk dense matrices are cut into blocks (common/matrix.cuh): pure functions of sizes, no CUDA.
//
// A sample of a feature map is such a matrix: rows are channels and columns pixels or, channels_last, the other way
// round. A block has a tile of it; what is added up along rows or columns that have several tiles is put together by a
// second kernel. None of the numbers here has been measured: they are from reasoning about an H100.
#pragma once
#include "common/gate_plan.h"

namespace attnkernels::matrix {

using gate::ceil_div;
using gate::kLongestWalk;
using gate::kThreads;
using gate::round_up;

// What a pass over matrices does: the maps that it reads, and along what it adds up.
struct Kind {
  int maps;
  bool along_rows, along_columns;
};

struct Plan {
  int64_t samples, rows, columns;
  int width = 1;        // elements that a thread moves at once
  int across_bits = 0;  // 1 << across_bits threads are side by side in a row
  int64_t tile_rows = 1, tile_columns = 1, row_tiles = 1, column_tiles = 1;
  bool dependent = false;      // launches overlap
  bool backwards = false;      // the last blocks first: what the pass before read last is likely to be in the cache
  bool stream_output = false;  // maps are stored as if not read again

  constexpr int across() const { return 1 << across_bits; }
  constexpr int warps_across() const { return across() < 32 ? 1 : across() / 32; }
  constexpr int64_t blocks() const { return samples * row_tiles * column_tiles; }
};

// Rows that a thread fetches at once, a power of two: 64 bytes, which are 64 KB on a multiprocessor that has 1024
// threads (DRAM's latency needs half of that); of narrow vectors as many as registers hold.
constexpr int rows_at_once(int maps, int64_t vector_bytes) {
  const int64_t rows = 64 / (maps * vector_bytes), most = 8 / maps;
  return int(rows < most ? rows : most);
}

// Sums along rows that a block has in shared memory.
inline constexpr int64_t kMostRowCells = 1024;

// vector_bytes: of plan.width elements; wanted: so many blocks.
inline Plan choose(Plan plan, const Kind& kind, int64_t vector_bytes, int64_t wanted) {
  const int at_once = rows_at_once(kind.maps, vector_bytes);
  const int64_t samples = std::max<int64_t>(1, plan.samples), vectors = plan.columns / plan.width;
  int bits = 5;
  while (bits > 0 && (1 << bits) >= 2 * vectors) --bits;
  // Where more than a tenth of the lanes would be idle at the end of each row.
  for (int narrower : {4, 3})
    if (10 * round_up(vectors, 1 << bits) > 11 * vectors &&
        round_up(vectors, 1 << narrower) < round_up(vectors, 1 << bits))
      bits = narrower;
  const auto batch = [&] { return int64_t(kThreads >> bits) * at_once; };  // rows that a block takes at once
  const auto may_widen = [&] { return (1 << bits) < kThreads && (1 << bits) < vectors; };
  while (may_widen() && 2 * plan.rows <= batch()) ++bits;
  if (kind.along_rows && !kind.along_columns) {
    // More blocks of fewer rows, each with whole rows as long as there are enough.
    while (may_widen() && 4 * samples * ceil_div(plan.rows, batch()) < 3 * wanted) ++bits;
    const int64_t chunks = ceil_div(vectors, 1 << bits);
    plan.row_tiles = std::clamp<int64_t>(ceil_div(wanted, samples), 1, ceil_div(plan.rows, batch()));
    plan.column_tiles = std::clamp<int64_t>(wanted / (samples * plan.row_tiles), 1, std::max<int64_t>(1, chunks / 2));
    plan.column_tiles = std::max(plan.column_tiles, ceil_div(plan.columns, kLongestWalk));
    plan.tile_columns = ceil_div(chunks, plan.column_tiles) * plan.width << bits;
  } else {
    // Tiles as narrow as a cache line leave more of the rows to one block, and so fewer sums to be put together.
    while (kind.along_columns && !kind.along_rows && bits > 3 && samples * ceil_div(vectors, 1 << bits) < wanted &&
           plan.rows >= 2 * batch())
      --bits;
    plan.tile_columns = int64_t(plan.width) << bits;
    const int64_t least = kind.along_columns ? 2 * batch() : batch();
    plan.row_tiles = std::clamp<int64_t>(wanted / (samples * ceil_div(plan.columns, plan.tile_columns)), 1,
                                         std::max<int64_t>(1, plan.rows / least));
  }
  plan.across_bits = bits;
  plan.tile_rows = std::min(round_up(ceil_div(plan.rows, plan.row_tiles), batch()), kLongestWalk);
  if (kind.along_rows) plan.tile_rows = std::min(plan.tile_rows, kMostRowCells / plan.warps_across());
  plan.row_tiles = ceil_div(plan.rows, plan.tile_rows);
  plan.column_tiles = ceil_div(plan.columns, plan.tile_columns);
  return plan;
}

}  // namespace attnkernels::matrix
