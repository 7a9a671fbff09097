// The launcher of copies into another layout.
#include <algorithm>

#include "common/cuda_dispatch.cuh"
#include "layout/layout.cuh"

namespace attnkernels::layout {
namespace {

constexpr int64_t kLargestGrid = (int64_t(1) << 31) - 1;

template <class T>
Tiled tiled(const Transpose& copy) {
  using Tile = layout::Tile<T>;
  const bool aligned = copy.rows % Tile::kVector == 0 && misalignment(static_cast<const T*>(copy.to)) == 0;
  const int64_t rows = copy.rows + (aligned ? 0 : Tile::kVector - 1);  // the last vector may begin after the last tile
  const int64_t row_tiles = (rows + Tile::kRows - 1) / Tile::kRows;
  const int64_t column_tiles = (copy.columns + Tile::kColumns - 1) / Tile::kColumns;
  return {.copy = copy,
          .row_tiles = uint32_t(row_tiles),
          .column_tiles = uint32_t(column_tiles),
          .tiles = uint32_t(copy.samples * row_tiles * column_tiles),
          .lead = aligned ? 0 : Tile::kVector};
}

template <class T>
Result launch_copies(const Copies& all, int64_t blocks, void* stream) {
  LaunchConfig config;
  config.grid = dim3(unsigned(blocks));
  config.block = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return result("layout_transpose", launch(config, layout_transpose<T>, all));
}

template <class T>
Result transpose(const Transpose* copies, int count, void* stream) {
  Copies all{};
  int used = 0;
  int64_t blocks = 0;
  const auto flush = [&] {
    const Result done = blocks ? launch_copies<T>(all, blocks, stream) : Result{};
    used = 0, blocks = 0;
    return done;
  };
  for (int i = 0; i < count; ++i) {
    Transpose left = copies[i];
    if (!left.rows || !left.columns) continue;
    // A sample has less tiles than a grid may: no memory holds more. Together the samples may have more.
    left.samples = 1;
    const int64_t tiles = tiled<T>(left).tiles;
    for (int64_t done = 0; done < copies[i].samples; done += left.samples) {
      if (used == kMostCopies || blocks + tiles > kLargestGrid)
        if (const Result failed = flush(); failed.error) return failed;
      left.samples = std::min(copies[i].samples - done, (kLargestGrid - blocks) / tiles);
      left.from = static_cast<const T*>(copies[i].from) + done * left.sample_stride;
      left.to = static_cast<T*>(copies[i].to) + done * left.rows * left.columns;
      all.copies[used] = tiled<T>(left);
      blocks += all.copies[used++].tiles;
    }
  }
  return flush();
}

}  // namespace

Result transpose(int64_t element_bytes, const Transpose* copies, int count, void* stream) {
  return element_bytes == 8   ? transpose<uint64_t>(copies, count, stream)
         : element_bytes == 4 ? transpose<uint32_t>(copies, count, stream)
                              : transpose<uint16_t>(copies, count, stream);
}

}  // namespace attnkernels::layout
