// A walk over the dense matrices [rows, columns] of samples, with numbers per row and per column, that adds up along
// either or both, or maps. A thread owns a vector of columns and takes several rows at a time: what is added up along
// columns stays in its registers, what is added up along rows goes through the lanes of its warp; both then through
// shared memory, in a fixed order, and without atomics. Grids are (samples * row tiles * column tiles).
#pragma once
#include "common/cuda_dispatch.cuh"
#include "common/matrix_plan.h"
#include "common/traverse.cuh"

namespace attnkernels::matrix {

// ---- what is added up: from nothing, by merge, in any order

struct Nothing {
  static constexpr int kNumbers = 0;
};

template <class A>
struct Sum {
  static constexpr int kNumbers = 1;
  A sum = 0;

  __device__ __forceinline__ void merge(const Sum& other) { sum += other.sum; }
  __device__ __forceinline__ Sum shuffled(int offset) const { return {__shfl_xor_sync(0xffffffffu, sum, offset)}; }
  __device__ __forceinline__ void put(A* to, int64_t) const { *to = sum; }
  static __device__ __forceinline__ Sum got(const A* from, int64_t) { return {*from}; }
};

// What tells who gave a maximum: the least place of what equals it, or how much does. A constant of the kernel, since
// every element would pay for the choice.
enum class Marks { kFirst, kCounts, kNone };

// A sum and a maximum with its mark. A NaN is larger than everything else.
template <class A, Marks kMarks>
struct SumAndMaximum {
  static constexpr int kNumbers = 3;
  A sum = 0, maximum = -A(INFINITY), mark = 0;

  __device__ __forceinline__ void add(A value, A place) {  // places grow
    sum += value;
    const bool larger = !(value <= maximum) && maximum == maximum;
    if constexpr (kMarks == Marks::kCounts) {
      mark = larger ? A(1) : value == maximum ? mark + A(1) : mark;
    } else {
      mark = larger ? place : mark;
    }
    maximum = larger ? value : maximum;
  }
  __device__ __forceinline__ void merge(const SumAndMaximum& other) {
    const bool nan = maximum != maximum, other_nan = other.maximum != other.maximum;
    const bool larger = !nan && !(other.maximum <= maximum);
    const bool equal = other.maximum == maximum || (nan && other_nan);
    const A both = kMarks == Marks::kCounts ? mark + other.mark : other.mark < mark ? other.mark : mark;
    sum += other.sum;
    mark = larger ? other.mark : equal ? both : mark;
    maximum = larger ? other.maximum : maximum;
  }
  __device__ __forceinline__ SumAndMaximum shuffled(int offset) const {
    return {__shfl_xor_sync(0xffffffffu, sum, offset), __shfl_xor_sync(0xffffffffu, maximum, offset),
            __shfl_xor_sync(0xffffffffu, mark, offset)};
  }
  __device__ __forceinline__ void put(A* to, int64_t stride) const {
    to[0] = sum;
    to[stride] = maximum;
    to[2 * stride] = mark;
  }
  static __device__ __forceinline__ SumAndMaximum got(const A* from, int64_t stride) {
    return {from[0], from[stride], from[2 * stride]};
  }
};

template <class A>
struct SumAndMaximum<A, Marks::kNone> {
  static constexpr int kNumbers = 2;
  A sum = 0, maximum = -A(INFINITY);

  __device__ __forceinline__ void add(A value, A) {
    sum += value;
    maximum = nan_max(maximum, value);
  }
  __device__ __forceinline__ void merge(const SumAndMaximum& other) {
    sum += other.sum;
    maximum = nan_max(maximum, other.maximum);
  }
  __device__ __forceinline__ SumAndMaximum shuffled(int offset) const {
    return {__shfl_xor_sync(0xffffffffu, sum, offset), __shfl_xor_sync(0xffffffffu, maximum, offset)};
  }
  __device__ __forceinline__ void put(A* to, int64_t stride) const {
    to[0] = sum;
    to[stride] = maximum;
  }
  static __device__ __forceinline__ SumAndMaximum got(const A* from, int64_t stride) { return {from[0], from[stride]}; }
};

// Of an array of kCount values that the lanes of a warp have merged, what a lane has afterwards: values[0 .. count) are
// those from `first` on; of lanes that have the same ones, one leads.
struct Held {
  int first, count;
  bool leads;
};

// Merges over the lanes whose numbers differ in the bits offset, offset / 2, ..., last. At each step two lanes share
// what is left of the array, by constants: arrays stay in registers.
template <int kHeld, int kCount, class Value>
__device__ __forceinline__ Held merge_lanes(Value (&values)[kCount], int offset, int last, int first = 0) {
  if (offset < last) return {first, kHeld, true};
  if constexpr (kHeld > 1) {
    constexpr int kHalf = kHeld / 2;
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const Value given = upper ? values[i] : values[i + kHalf];
      Value kept = upper ? values[i + kHalf] : values[i];
      kept.merge(given.shuffled(offset));
      values[i] = kept;
    }
    return merge_lanes<kHalf>(values, offset / 2, last, upper ? first + kHalf : first);
  } else {
    bool leads = true;
    for (; offset >= last; offset /= 2) {
      values[0].merge(values[0].shuffled(offset));
      leads = leads && !(threadIdx.x & offset);
    }
    return {first, 1, leads};
  }
}

// ---- where it goes

// Along rows or columns, of each of which there are `count` a sample. End says what becomes of one that is complete:
// emit(sample, index, End::Value).
template <class End>
struct Reduced {
  using acc_t = typename End::acc_t;
  using Value = typename End::Value;
  End end;
  int64_t samples, splits, count;
  bool wanted;
  acc_t* partial;  // [Value::kNumbers, samples, splits, count], or null: a block has all of it

  __host__ __device__ int64_t stride() const { return samples * splits * count; }
  __device__ __forceinline__ void emit(int64_t sample, int64_t split, int64_t index, const Value& value) const {
    if (partial) {
      value.put(partial + (sample * splits + split) * count + index, stride());
    } else {
      end.emit(sample, index, value);
    }
  }
};

struct NoEnd {
  using acc_t = float;
  using Value = Nothing;
};

// Outputs of a block that puts partial values together: a lane for each, the warps share their splits.
inline constexpr int kFinished = 32;

template <class End>
__device__ __forceinline__ void finish_block(const Reduced<End>& reduced) {
  using Value = typename End::Value;
  SHARED_DYNAMIC(Value, cells);  // [kThreads]
  wait_for_primary_grid();
  const unsigned blocks = unsigned(ceil_div(reduced.count, kFinished));
  const int64_t sample = blockIdx.x / blocks,
                index = int64_t(blockIdx.x % blocks) * kFinished + threadIdx.x % kFinished;
  Value value;
  if (index < reduced.count) {
    strided<4>(
        int(threadIdx.x) / kFinished, int(reduced.splits), kThreads / kFinished,
        [&](int split) {
          return Value::got(reduced.partial + (sample * reduced.splits + split) * reduced.count + index,
                            reduced.stride());
        },
        [&](int, const Value& part) { value.merge(part); });
  }
  cells[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x >= kFinished || index >= reduced.count) return;
  for (int at = threadIdx.x + kFinished; at < kThreads; at += kFinished) value.merge(cells[at]);
  reduced.end.emit(sample, index, value);
}

// ---- the walk

// A block's tile.
struct Place {
  int64_t sample, row_tile, column_tile, first_row, first_column;
  int rows, columns;

  __device__ __forceinline__ explicit Place(const Plan& plan) {
    const unsigned block = plan.backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const unsigned tile = block / unsigned(plan.column_tiles);
    column_tile = block % unsigned(plan.column_tiles);
    row_tile = tile % unsigned(plan.row_tiles);
    sample = tile / unsigned(plan.row_tiles);
    first_row = row_tile * plan.tile_rows;
    first_column = column_tile * plan.tile_columns;
    rows = int(min(plan.tile_rows, plan.rows() - first_row));
    columns = int(min(plan.tile_columns, plan.columns() - first_column));
  }
};

// put(k, from[offset + k]) for k < kW, or put(k, otherwise) where there is no `from`.
template <int kW, class T, class Put>
__device__ __forceinline__ void load_numbers(const T* from, int64_t offset, acc_type<T> otherwise, Put put) {
  constexpr int kPiece = kW < kVectorWidth<T> ? kW : kVectorWidth<T>;
  if (!from) {
#pragma unroll
    for (int k = 0; k < kW; ++k) put(k, otherwise);
  } else if (kPiece == 1 || reinterpret_cast<uintptr_t>(from + offset) % (kPiece * sizeof(T)) == 0) {
#pragma unroll
    for (int k = 0; k < kW; k += kPiece) {
      const auto piece = load<kPiece>(from + offset + k);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) put(k + i, piece.get(i));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kW; ++k) put(k, widen(from[offset + k]));
  }
}

// Bytes of shared memory of a walk, for cells of so many bytes (0: not added up).
constexpr size_t shared_bytes(const Plan& plan, size_t row_cell, size_t column_cell) {
  return plan.warps_across() * plan.tile_rows * row_cell + kThreads * plan.width * column_cell;
}

// Walks the block's tile. A Body has, with i and j counting from the tile's first row and column,
//
//   kRows, RowNumbers, ColumnNumbers, RowValue, ColumnValue, by_row and by_column (Reduced)
//   row(i) -> RowNumbers    columns(j, ColumnNumbers[kW])    fetch(i, j) -> what it reads of kW elements
//   use(i, j, fetched, RowNumbers, ColumnNumbers[kW], RowValue, ColumnValue[kW])
template <int kW, class Body>
struct Walk {
  using RowValue = typename Body::RowValue;
  using ColumnValue = typename Body::ColumnValue;
  using ColumnNumbers = typename Body::ColumnNumbers;
  static constexpr int kRows = Body::kRows;

  const Body& body;
  const Place& place;
  int across, across_bits, lanes, warps_across, tile_rows, vectors, side, group, groups;
  RowValue* row_cells;  // [warps across, tile_rows]

  __device__ __forceinline__ Walk(const Body& body, const Plan& plan, const Place& place, char* shared)
      : body(body),
        place(place),
        across(plan.across()),
        across_bits(plan.across_bits),
        lanes(min(across, 32)),
        warps_across(plan.warps_across()),
        tile_rows(int(plan.tile_rows)),
        vectors(place.columns / kW),
        side(threadIdx.x & (across - 1)),
        group(threadIdx.x >> across_bits),
        groups(kThreads >> across_bits),
        row_cells(reinterpret_cast<RowValue*>(shared)) {}

  // kRows rows from `top` on, a vector of each: all are asked for before the first is used. To ask for the next ones as
  // these are used has been slower (statistics of 32x256x56x56, 41.1 : 30.5 us on an H100).
  __device__ __forceinline__ void take(int top, int start, const ColumnNumbers (&columns)[kW],
                                       RowValue (&by_row)[kRows], ColumnValue (&by_column)[kW]) const {
    decltype(body.fetch(0, 0)) fetched[kRows];
    typename Body::RowNumbers rows[kRows];
    const bool inside = start + side < vectors;
    const int j = (start + side) * kW;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int i = top + k * groups;
      if (!inside || i >= place.rows) continue;
      fetched[k] = body.fetch(i, j);
      rows[k] = body.row(i);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int i = top + k * groups;
      if (inside && i < place.rows) body.use(i, j, fetched[k], rows[k], columns, by_row[k], by_column);
    }
  }

  // What the lanes of a warp have of kRows rows, into this thread's cells or, with `more`, onto what they have.
  __device__ __forceinline__ void put_rows(int top, RowValue (&by_row)[kRows], bool more) const {
    const Held held = merge_lanes<kRows>(by_row, lanes / 2, 1);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int i = top + (held.first + k) * groups;
      if (k >= held.count || !held.leads || i >= place.rows) continue;
      RowValue& cell = row_cells[side / 32 * tile_rows + i];
      if (more) by_row[k].merge(cell);
      cell = by_row[k];
    }
  }
  __device__ __forceinline__ void emit_rows() const {
    __syncthreads();
    for (int i = threadIdx.x; i < place.rows; i += kThreads) {
      RowValue value = row_cells[i];
      for (int warp = 1; warp < warps_across; ++warp) value.merge(row_cells[warp * tile_rows + i]);
      body.by_row.emit(place.sample, place.column_tile, place.first_row + i, value);
    }
  }

  // What the groups of rows have of the columns from `start` vectors on.
  __device__ __forceinline__ void emit_columns(int start, ColumnValue (&by_column)[kW]) const {
    ColumnValue* const cells =  // [groups of rows, kW, across]
        reinterpret_cast<ColumnValue*>(row_cells + (body.by_row.wanted ? warps_across * tile_rows : 0));
    const Held held = merge_lanes<kW>(by_column, 16, across);
    const int row_groups = kThreads / 32 / warps_across, row_group = threadIdx.x / 32 / warps_across;
#pragma unroll
    for (int k = 0; k < kW; ++k)
      if (k < held.count && held.leads) cells[(row_group * kW + held.first + k) * across + side] = by_column[k];
    __syncthreads();
    for (int at = threadIdx.x; at < across * kW; at += kThreads) {
      const int vector = start + (at & (across - 1));
      if (vector >= vectors) continue;
      ColumnValue value = cells[at];
      for (int other = 1; other < row_groups; ++other) value.merge(cells[other * kW * across + at]);
      body.by_column.emit(place.sample, place.row_tile, place.first_column + vector * kW + (at >> across_bits), value);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void load_columns(int start, ColumnNumbers (&columns)[kW]) const {
    if (start + side < vectors) body.columns((start + side) * kW, columns);
  }

  // Sums along rows alone: those of a thread are complete before the lanes put theirs together.
  __device__ __forceinline__ void by_rows() const {
    for (int top = group; top - group < place.rows; top += kRows * groups) {  // the same count for every thread
      RowValue by_row[kRows];
      ColumnValue nothing[kW];
      for (int start = 0; start < vectors; start += across) {
        ColumnNumbers columns[kW] = {};
        load_columns(start, columns);
        take(top, start, columns, by_row, nothing);
      }
      if (body.by_row.wanted) put_rows(top, by_row, false);
    }
    if (body.by_row.wanted) emit_rows();
  }

  // Everything else: the numbers and the sums of a vector's columns stay in registers.
  __device__ __forceinline__ void by_columns() const {
    for (int start = 0; start < vectors; start += across) {
      ColumnNumbers columns[kW] = {};
      ColumnValue by_column[kW];
      load_columns(start, columns);
      for (int top = group; top - group < place.rows; top += kRows * groups) {
        RowValue by_row[kRows];
        take(top, start, columns, by_row, by_column);
        if constexpr (RowValue::kNumbers > 0)
          if (body.by_row.wanted) put_rows(top, by_row, start);
      }
      if constexpr (ColumnValue::kNumbers > 0)
        if (body.by_column.wanted) emit_columns(start, by_column);
    }
    if constexpr (RowValue::kNumbers > 0)
      if (body.by_row.wanted) emit_rows();
  }
};

template <int kW, class Body>
__device__ __forceinline__ void walk(const Body& body, const Plan& plan, const Place& place) {
  SHARED_DYNAMIC(char, shared);
  const Walk<kW, Body> walk(body, plan, place, shared);
  // Several numbers of each column are worth keeping for all rows.
  constexpr bool kFewNumbers = sizeof(typename Body::ColumnNumbers) <= sizeof(typename Body::acc_t);
  if constexpr (Body::RowValue::kNumbers > 0 && Body::ColumnValue::kNumbers == 0 && kFewNumbers) {
    walk.by_rows();
  } else {
    walk.by_columns();
  }
}

}  // namespace attnkernels::matrix
