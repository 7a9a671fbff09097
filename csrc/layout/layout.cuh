// The kernel that copies feature maps into another layout: tiles through shared memory, 16 bytes at a time on both
// sides at every alignment.
//
// A map of 97 x 97 pixels has an odd number of them, so that the rows of [N, C, P] in 16 bits start at every alignment.
// Rows are therefore read from the 128-bit boundary before the first column of a tile on, one vector more of each;
// where the rows of the result are misaligned, each has a tile that begins at its own boundary, for which the rows
// before the tile are read too.
#pragma once
#include "common/numeric.cuh"
#include "layout/layout_launch.h"

namespace attnkernels::layout {

inline constexpr int kThreads = 256;
inline constexpr int kMostCopies = 8;

// T stands for any type of its size.
template <class T>
struct Tile {
  static constexpr int kVector = kVectorWidth<T>;
  static constexpr int kGroups = 8;  // of kVector rows: the vectors that a column becomes, 128 bytes
  static constexpr int kRows = kGroups * kVector, kColumns = 128;
  static constexpr int kPerRow = kColumns / kVector;  // vectors of a row, without the one more of a misaligned row
  static constexpr int kRowsAtOnce = kThreads / kPerRow;
  static constexpr int kRounds = (kRows + kVector + kRowsAtOnce - 1) / kRowsAtOnce;
  static constexpr int kColumnsAtOnce = kThreads / kGroups;
  static constexpr int kResults = kColumns / kColumnsAtOnce;  // vectors that a thread stores
  static constexpr int kRowStride = kColumns + kVector;
  // A group's rows and the vector after them are an odd number of vectors: eight groups are in different banks.
  static constexpr int kGroupStride = kVector * kRowStride + kVector;
  static_assert(kGroupStride / kVector % 2 == 1);
  // What a thread knows of the first row or column that it takes then holds for all of them.
  static_assert(kRowsAtOnce % kVector == 0 && kColumnsAtOnce % kVector == 0);
  static_assert(kRows + kVector <= kThreads);

  __device__ static int at(uint32_t row, int column) {
    return row / kVector * kGroupStride + row % kVector * kRowStride + column;
  }

  // A warp's four columns, which may begin at different rows, are in different words: of 16 bits every other.
  __device__ static int column_of(int i) { return sizeof(T) == 2 ? i / 8 * 8 + i % 4 * 2 + i / 4 % 2 : i; }

  alignas(16) T data[(kGroups + 1) * kGroupStride];
};

struct Tiled {
  Transpose copy;
  uint32_t row_tiles, column_tiles, tiles;  // tiles: of all samples
  int lead;  // rows that are read before those of the tile: none, or a vector where the result's rows are misaligned
};

struct Copies {
  Tiled copies[kMostCopies];
};

// Stores 16 bytes at once: an assignment of elements that shared memory gave one by one becomes four stores.
template <class T>
__device__ __forceinline__ void store_vector(T* to, const T (&elements)[kVectorWidth<T>]) {
  uint4 words;
  memcpy(&words, elements, sizeof(words));
#ifdef ATTNKERNELS_EMULATED
  *reinterpret_cast<uint4*>(to) = words;
#else
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#endif
}

// to[sample][column][row] = from[sample][row][column]                      blocks: the tiles of one copy after another
template <class T>
__global__ void __launch_bounds__(kThreads) layout_transpose(const __grid_constant__ Copies all) {
  using Tile = layout::Tile<T>;
  constexpr int kVector = Tile::kVector;
  SHARED(Tile, shared);
  T* const tile = shared.data;
  uint32_t block = blockIdx.x;
  int i = 0;
  while (block >= all.copies[i].tiles) block -= all.copies[i++].tiles;
  const Tiled& tiled = all.copies[i];
  const Transpose& copy = tiled.copy;
  const uint32_t line = block / tiled.column_tiles, sample = line / tiled.row_tiles;
  const int64_t column_begin = int64_t(block - line * tiled.column_tiles) * Tile::kColumns;
  const int64_t row_begin = int64_t(line - sample * tiled.row_tiles) * Tile::kRows - tiled.lead;
  const T* const from = static_cast<const T*>(copy.from) + sample * copy.sample_stride;
  T* const to = static_cast<T*>(copy.to) + sample * (copy.rows * copy.columns);

  // Elements by which a row of the tile starts past a 128-bit boundary; row_begin and column_begin are whole vectors.
  const int first_shift = misalignment(from), shift_step = int(copy.row_stride & (kVector - 1));
  const auto shift_of = [=](int row) { return (first_shift + row * shift_step) & (kVector - 1); };
  // The rows of the tile that lie in the map.
  const int top = row_begin < 0 ? tiled.lead : 0;
  const int bottom = int(min(copy.rows - row_begin, int64_t(Tile::kRows + tiled.lead)));
  const auto in_map = [=](int row) { return row >= top && row < bottom; };
  const auto is_whole = [&](int64_t column) { return column >= 0 && column + kVector <= copy.columns; };
  const auto copy_ends = [&](int row, int slot, int64_t column, const T* start) {  // of the row: element by element
#pragma unroll 1
    for (int k = 0; k < kVector; ++k)
      if (column + k >= 0 && column + k < copy.columns) tile[Tile::at(row, slot * kVector) + k] = start[k];
  };

  const int row = threadIdx.x / Tile::kPerRow, slot = threadIdx.x % Tile::kPerRow;
  const int64_t column = column_begin - shift_of(row) + slot * kVector;
  const bool whole = is_whole(column);
  const T* const start = from + (row_begin + row) * copy.row_stride + column;
  const int64_t step = Tile::kRowsAtOnce * copy.row_stride;
  // One row's last vector, which lies in the next tile too.
  const int last_row = threadIdx.x;
  const int64_t last_column = column_begin - shift_of(last_row) + Tile::kColumns;
  const bool has_last = in_map(last_row) && shift_of(last_row) > 0;
  const T* const last_start = from + (row_begin + last_row) * copy.row_stride + last_column;
  T* const home = tile + Tile::at(row, slot * kVector);
  Vector<T, kVector> loaded[Tile::kRounds], last;
#pragma unroll
  for (int k = 0; k < Tile::kRounds; ++k)
    if (whole && in_map(row + k * Tile::kRowsAtOnce)) loaded[k] = load<kVector>(start + k * step);
  if (has_last && is_whole(last_column)) last = load<kVector>(last_start);
#pragma unroll
  for (int k = 0; k < Tile::kRounds; ++k)
    if (whole && in_map(row + k * Tile::kRowsAtOnce))
      store(home + k * (Tile::kRowsAtOnce / kVector * Tile::kGroupStride), loaded[k]);
  if (has_last && is_whole(last_column)) store(tile + Tile::at(last_row, Tile::kColumns), last);
  if (!whole) {
#pragma unroll 1
    for (int k = 0; k < Tile::kRounds; ++k)
      if (in_map(row + k * Tile::kRowsAtOnce)) copy_ends(row + k * Tile::kRowsAtOnce, slot, column, start + k * step);
  }
  if (has_last && !is_whole(last_column)) copy_ends(last_row, Tile::kPerRow, last_column, last_start);
  __syncthreads();

  // Vectors of the result: `skip` rows further begins one at a boundary.
  const int group = threadIdx.x % Tile::kGroups, tile_column = Tile::column_of(threadIdx.x / Tile::kGroups);
  T* result = to + (column_begin + tile_column) * copy.rows;
  const int skip = tiled.lead ? kVector - misalignment(result) : 0;
  const int64_t result_row = row_begin + skip + group * kVector;
  const T* const first_element = tile + group * Tile::kGroupStride + tile_column;
  const T* elements[kVector];  // of the first vector
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    const int row_of_group = (skip + k) & (kVector - 1), next_group = skip + k >= kVector ? Tile::kGroupStride : 0;
    elements[k] = first_element + next_group + row_of_group * Tile::kRowStride + shift_of(row_of_group);
  }
  result += result_row;
  const int count =
      int(min((copy.columns - column_begin - tile_column + Tile::kColumnsAtOnce - 1) / Tile::kColumnsAtOnce,
              int64_t(Tile::kResults)));
  const int64_t result_step = Tile::kColumnsAtOnce * copy.rows;
  if (result_row >= 0 && result_row + kVector <= copy.rows) {
#pragma unroll
    for (int k = 0; k < Tile::kResults; ++k) {
      if (k >= count) break;
      T values[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) values[j] = elements[j][k * Tile::kColumnsAtOnce];
      store_vector(result + k * result_step, values);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (result_row + j < 0 || result_row + j >= copy.rows) continue;
#pragma unroll 1
      for (int k = 0; k < count; ++k) result[k * result_step + j] = elements[j][k * Tile::kColumnsAtOnce];
    }
  }
}

}  // namespace attnkernels::layout
