// The CUDA kernels of the convolution of cbam's statistics, and their launchers. The maps have two numbers a pixel, so
// that the products count and not the memory: a block stages its pixels with those around them, and each number then
// comes from shared memory k * k times.
#include "channel_spatial/channel_spatial_convolution_launch.h"
#include "common/cuda_dispatch.cuh"
#include "common/reduce.cuh"

namespace attnkernels::channel_spatial {
namespace {

constexpr int kThreads = int(kTileRows * kTileColumns);

// A block's pixels, of the tile-th part of sample n.
struct Tile {
  int64_t n;
  int row, column;

  __device__ Tile(const Convolution& shape, int64_t index) {
    const int across = int((shape.width + kTileColumns - 1) / kTileColumns);
    const int down = int((shape.height + kTileRows - 1) / kTileRows);
    n = index / (across * down);
    const int tile = int(index % (across * down));
    row = tile / across * int(kTileRows);
    column = tile % across * int(kTileColumns);
  }
};

// to[i, j] = plane[first_row + i, first_column + j], 0 outside the plane
template <class A>
__device__ __forceinline__ void stage_window(A* to, int rows, int columns, const A* plane, const Convolution& shape,
                                             int first_row, int first_column) {
  for (int i = threadIdx.x; i < rows * columns; i += kThreads) {
    const int row = first_row + i / columns, column = first_column + i % columns;
    const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
    to[i] = inside ? plane[row * shape.width + column] : A(0);
  }
}

// to[n, o, h, w] = bias + sum over planes and taps of weight[plane + o, i, j] from[n, plane, h + i - k / 2, w + j - k / 2]
// or, of one plane for two results, by the taps in reverse
template <class A, int kPlanes, int kResults>
__global__ void __launch_bounds__(kThreads)
    channel_spatial_convolve(const Convolution shape, const A* from, const A* weight, const A* bias, A* to) {
  SHARED_DYNAMIC(A, shared);
  const int taps = int(shape.taps), of_plane = taps * taps, side = taps / 2;
  const int rows = int(kTileRows) + taps - 1, columns = int(kTileColumns) + taps - 1;
  A* const window = shared;                              // [kPlanes, rows, columns]
  A* const factors = window + kPlanes * rows * columns;  // [2, taps, taps]
  const Tile tile(shape, blockIdx.x);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane)
    stage_window(window + plane * rows * columns, rows, columns, from + (tile.n * kPlanes + plane) * shape.pixels(),
                 shape, tile.row - side, tile.column - side);
  for (int i = threadIdx.x; i < 2 * of_plane; i += kThreads) factors[i] = weight[i];
  __syncthreads();

  const int row = threadIdx.x / int(kTileColumns), column = threadIdx.x % int(kTileColumns);
  if (tile.row + row >= shape.height || tile.column + column >= shape.width) return;
  A sums[kResults];
#pragma unroll
  for (int result = 0; result < kResults; ++result) sums[result] = bias ? *bias : A(0);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    for (int i = 0; i < taps; ++i) {
      const A* const line = window + (plane * rows + row + i) * columns + column;
      for (int j = 0; j < taps; ++j) {
        const int tap = kPlanes == 1 ? of_plane - 1 - (i * taps + j) : i * taps + j;
#pragma unroll
        for (int result = 0; result < kResults; ++result)
          sums[result] += factors[(plane + result) * of_plane + tap] * line[j];
      }
    }
  }
  const int64_t pixel = (tile.row + row) * shape.width + tile.column + column;
#pragma unroll
  for (int result = 0; result < kResults; ++result)
    to[(tile.n * kResults + result) * shape.pixels() + pixel] = sums[result];
}

// parts[block, plane, i, j] = sum over the pixels of a block's tiles of grad[n, h, w] statistics[n, plane, h + i - k / 2,
// w + j - k / 2]: a thread takes a tap, or two, in some rows of each tile.
template <class A>
__global__ void __launch_bounds__(kThreads)
    channel_spatial_weight_parts(const Convolution shape, const A* grad, const A* statistics, A* parts, int64_t tiles) {
  SHARED_DYNAMIC(A, shared);
  const int taps = int(shape.taps), of_plane = taps * taps, weights = 2 * of_plane, side = taps / 2;
  const int rows = int(kTileRows) + taps - 1, columns = int(kTileColumns) + taps - 1;
  A* const window = shared;                      // [2, rows, columns]
  A* const grads = window + 2 * rows * columns;  // [kTileRows, kTileColumns]
  const int teams = max(1, min(int(kTileRows), kThreads / weights)), items = teams * weights;
  A sums[2] = {};
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile(shape, index);
    for (int plane = 0; plane < 2; ++plane)
      stage_window(window + plane * rows * columns, rows, columns, statistics + (2 * tile.n + plane) * shape.pixels(),
                   shape, tile.row - side, tile.column - side);
    stage_window(grads, int(kTileRows), int(kTileColumns), grad + tile.n * shape.pixels(), shape, tile.row,
                 tile.column);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int item = threadIdx.x + k * kThreads;
      if (item >= items) break;
      const int weight = item % weights, plane = weight / of_plane, tap = weight % of_plane;
      for (int row = item / weights; row < kTileRows; row += teams) {
        const A* const line = window + (plane * rows + row + tap / taps) * columns + tap % taps;
        for (int column = 0; column < kTileColumns; ++column)
          sums[k] += grads[row * kTileColumns + column] * line[column];
      }
    }
    __syncthreads();
  }
  // Each tap's teams in their order.
#pragma unroll
  for (int k = 0; k < 2; ++k)
    if (threadIdx.x + k * kThreads < unsigned(items)) window[threadIdx.x + k * kThreads] = sums[k];
  __syncthreads();
  for (int weight = threadIdx.x; weight < weights; weight += kThreads) {
    A sum = 0;
    for (int team = 0; team < teams; ++team) sum += window[team * weights + weight];
    parts[int64_t(blockIdx.x) * weights + weight] = sum;
  }
}

// grad_weight[t] = sum_k parts[k, t], a block for each
template <class A>
__global__ void __launch_bounds__(kMostChunks)
    channel_spatial_weight_grad(const A* parts, A* grad_weight, int weights, int chunks) {
  SHARED(A, cells, [kMostChunks / 32]);
  const int weight = blockIdx.x, chunk = threadIdx.x;
  const A sum = sum_lanes(chunk < chunks ? parts[int64_t(chunk) * weights + weight] : A(0), 32);
  if (chunk % 32 == 0) cells[chunk / 32] = sum;
  __syncthreads();
  if (chunk) return;
  A total = 0;
  for (int warp = 0; warp < kMostChunks / 32; ++warp) total += cells[warp];
  grad_weight[weight] = total;
}

size_t window_numbers(const Convolution& shape, int planes) {
  return size_t(planes * (kTileRows + shape.taps - 1) * (kTileColumns + shape.taps - 1));
}

template <class A, int kPlanes, int kResults>
Result launch_convolve(const Convolution& shape, const void* from, const void* weight, const void* bias, void* to,
                       void* stream) {
  LaunchConfig config;
  config.stream = static_cast<cudaStream_t>(stream);
  config.grid = dim3(unsigned(shape.samples * convolution_tiles(shape)));
  config.block = dim3(kThreads);
  config.shared_bytes = (window_numbers(shape, kPlanes) + shape.weights()) * sizeof(A);
  return result("channel_spatial_convolve",
                launch(config, channel_spatial_convolve<A, kPlanes, kResults>, shape, static_cast<const A*>(from),
                       static_cast<const A*>(weight), static_cast<const A*>(bias), static_cast<A*>(to)));
}

template <class A>
Result launch_weight_grad(const Convolution& shape, const void* grad, const void* statistics, void* grad_weight,
                          void* parts, void* stream) {
  const int64_t chunks = convolution_chunks(shape), weights = shape.weights();
  LaunchConfig config;
  config.stream = static_cast<cudaStream_t>(stream);
  config.grid = dim3(unsigned(chunks));
  config.block = dim3(kThreads);
  config.shared_bytes = (window_numbers(shape, 2) + kTileRows * kTileColumns) * sizeof(A);
  cudaError_t error =
      launch(config, channel_spatial_weight_parts<A>, shape, static_cast<const A*>(grad),
             static_cast<const A*>(statistics), static_cast<A*>(parts), shape.samples * convolution_tiles(shape));
  if (error != cudaSuccess) return result("channel_spatial_weight_parts", error);
  config.grid = dim3(unsigned(weights));
  config.block = dim3(unsigned(kMostChunks));
  config.shared_bytes = 0;
  error = launch(config, channel_spatial_weight_grad<A>, static_cast<const A*>(parts), static_cast<A*>(grad_weight),
                 int(weights), int(chunks));
  return result("channel_spatial_weight_grad", error);
}

template <class Run>
Result of_type(bool is_double, const Run& run) {
  return is_double ? run(double()) : run(float());
}

}  // namespace

Result convolve(bool is_double, const Convolution& shape, const void* statistics, const void* weight, const void* bias,
                void* logits, void* stream) {
  if (!shape.samples || !shape.pixels()) return {};
  return of_type(is_double,
                 [&]<class A>(A) { return launch_convolve<A, 2, 1>(shape, statistics, weight, bias, logits, stream); });
}

Result convolve_backward(bool is_double, const Convolution& shape, const void* grad, const void* statistics,
                         const void* weight, void* grad_statistics, void* grad_weight, void* parts, void* stream) {
  if (!shape.samples || !shape.pixels()) return {};
  return of_type(is_double, [&]<class A>(A) -> Result {
    if (grad_statistics) {
      const Result done = launch_convolve<A, 1, 2>(shape, grad, weight, nullptr, grad_statistics, stream);
      if (done.error) return done;
    }
    return grad_weight ? launch_weight_grad<A>(shape, grad, statistics, grad_weight, parts, stream) : Result{};
  });
}

}  // namespace attnkernels::channel_spatial
