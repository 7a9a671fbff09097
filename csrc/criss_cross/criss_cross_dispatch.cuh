// What the launchers share: the passes over a map, grids of any size.
#pragma once
#include <algorithm>

#include "common/cuda_dispatch.cuh"
#include "criss_cross/criss_cross_launch.h"
#include "criss_cross/criss_cross_tile.cuh"

namespace attnkernels::criss_cross {

// Launches kernel(number of the first block, arguments...) with so many blocks, as many at a time as a grid has.
template <class Kernel, class... Arguments>
Result launch_blocks(const char* name, int64_t blocks, int threads, void* stream, Kernel kernel,
                     const Arguments&... arguments) {
  constexpr int64_t kLargestGrid = (int64_t(1) << 31) - 1;
  for (int64_t first = 0; first < blocks; first += kLargestGrid) {
    LaunchConfig config;
    config.grid = dim3(unsigned(std::min(blocks - first, kLargestGrid)));
    config.block = dim3(threads);
    config.stream = static_cast<cudaStream_t>(stream);
    const cudaError_t error = launch(config, kernel, first, arguments...);
    if (error != cudaSuccess) return result(name, error);
  }
  return {};
}

inline int64_t tiles_of(int64_t count, int tile) { return (count + tile - 1) / tile; }

// Launches a kernel on every block of a pass: `rests` of them for each tile of rows.
template <class T, class Pass>
Result launch_pass(const char* name, void (*kernel)(int64_t, Pass, int64_t), const Pass& pass, const Shape& shape,
                   int64_t rests, void* stream) {
  const int64_t rows = shape.samples * pass.lines.count * tiles_of(pass.lines.length, Tile<T>::kRows);
  return launch_blocks(name, rows * rests, Tile<T>::kThreads, stream, kernel, pass, rests);
}

// Calls run(lines, axis, is the first, is the last) for the passes over a map in their order, while they succeed.
template <class Run>
Result for_each_pass(const Shape& shape, Run run) {
  bool first = true;
  for (const Axis axis : {Axis::kDepth, Axis::kHeight, Axis::kWidth}) {
    const Lines lines = lines_along(shape, axis);
    if (axis != Axis::kWidth && lines.length == 1) continue;
    const Result result = run(lines, axis, first, axis == Axis::kWidth);
    if (result.error) return result;
    first = false;
  }
  return {};
}

// Where the passes hold the sums of a result of type T.
template <class T>
acc_type<T>* partial_of(void* result, void* workspace) {
  return static_cast<acc_type<T>*>(sizeof(T) == 2 ? workspace : result);
}

}  // namespace attnkernels::criss_cross
