// The CUDA kernels of the convolution of cbam's statistics, and their launchers. The maps have two numbers a pixel, so
// that the products count and not the memory: a block stages its pixels with those around them, and a thread takes
// several neighbours of a row, so that a number that it loads from shared memory feeds several products.
#include "channel_spatial/channel_spatial_convolution_launch.h"
#include "common/cuda_dispatch.cuh"
#include "common/pointwise.cuh"
#include "common/traverse.cuh"

namespace attnkernels::channel_spatial {
namespace {

constexpr int kRows = int(kTileRows), kColumns = int(kTileColumns);
constexpr int kRun = 4;        // neighbours of a row that a thread takes together
constexpr int kUsualTaps = 7;  // of which there are kernels of their own; kTaps 0 is any number
constexpr int kStaged = 4;     // numbers that a thread has under way from global memory
constexpr int kThreads = kRows * kColumns / kRun;
constexpr int kWeightThreads = 256;

// Shared memory holds rows of vectors of kRun numbers, an odd number of them: then threads of neighbouring rows, too,
// read from different banks.
__host__ __device__ constexpr int vectors_of(int columns) { return (columns + kRun - 1) / kRun; }
__host__ __device__ constexpr int pitch_of(int columns) { return (vectors_of(columns) | 1) * kRun; }

// The pixels of a tile and those around them that `taps` reach, a thread's last vector included.
struct Window {
  int rows, pitch;
  __host__ __device__ explicit Window(int taps)
      : rows(kRows + taps - 1), pitch(pitch_of(kColumns + vectors_of(taps) * kRun)) {}
  __host__ __device__ int numbers() const { return rows * pitch; }
};

// A block's pixels, of the tile-th part of sample n.
struct Tile {
  int64_t n;
  int row, column;

  __device__ Tile(const Convolution& shape, int64_t index) {
    const int across = int((shape.width + kTileColumns - 1) / kTileColumns);
    const int down = int((shape.height + kTileRows - 1) / kTileRows);
    n = index / (across * down);
    const int tile = int(index % (across * down));
    row = tile / across * kRows;
    column = tile % across * kColumns;
  }
};

// Numbers of a plane; with a gate, gradients of it, which become those of its logit.
template <class A>
struct Plane {
  const A *numbers, *gate;
  __device__ __forceinline__ A get(int64_t at) const {
    return gate ? numbers[at] * gate_derivative(gate[at], Gate::kSigmoid) : numbers[at];
  }
};

// to[i, j] = plane[first_row + i, first_column + j], 0 outside the plane
template <class A>
__device__ __forceinline__ void stage_window(A* to, int rows, int pitch, const Plane<A>& plane,
                                             const Convolution& shape, int first_row, int first_column) {
  strided<kStaged>(
      int(threadIdx.x), rows * pitch, int(blockDim.x),
      [&](int i) {
        const int row = first_row + i / pitch, column = first_column + i % pitch;
        const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
        return inside ? plane.get(row * shape.width + column) : A(0);
      },
      [&](int i, A loaded) { to[i] = loaded; });
}

template <class A>
__device__ __forceinline__ void load_run(const A* from, A* run) {
  constexpr int kW = kVectorWidth<A>;
#pragma unroll
  for (int i = 0; i < kRun; i += kW) {
    const Vector<A, kW> part = load<kW>(from + i);
#pragma unroll
    for (int j = 0; j < kW; ++j) run[i + j] = part.get(j);
  }
}

// to[n, o, h, w] = bias + sum over planes and taps of weight[plane + o, i, j] from[n, plane, h + i - k / 2, w + j - k / 2]
// or, of one plane for two results, by the taps in reverse. Of the result, with `open`, the sigmoid.
template <class T, int kPlanes, int kResults, int kTaps>
__global__ void __launch_bounds__(kThreads, 4)
    channel_spatial_convolve(const Convolution shape, const Plane<acc_type<T>> from, const T* weight, const T* bias,
                             bool open, acc_type<T>* to) {
  using A = acc_type<T>;
  SHARED_DYNAMIC(A, shared);
  launch_dependent_grids();
  const int taps = kTaps ? kTaps : int(shape.taps), side = taps / 2;
  const Window window(taps);
  const int weight_pitch = vectors_of(taps) * kRun;
  A* const pixels = shared;                                // [kPlanes, window]
  A* const factors = pixels + kPlanes * window.numbers();  // [2, taps, weight_pitch], of the statistics in their order
  const Tile tile(shape, blockIdx.x);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    const int64_t offset = (tile.n * kPlanes + plane) * shape.pixels();
    stage_window<A>(pixels + plane * window.numbers(), window.rows, window.pitch,
                    {from.numbers + offset, from.gate ? from.gate + offset : nullptr}, shape, tile.row - side,
                    tile.column - side);
  }
  for (int i = threadIdx.x; i < 2 * taps * taps; i += kThreads) {
    const int plane = i / (taps * taps), tap = i % (taps * taps);
    const int from_tap = kPlanes == 1 ? taps * taps - 1 - tap : tap;
    factors[(plane * taps + tap / taps) * weight_pitch + tap % taps] = widen(weight[shape.weight_at(plane, from_tap)]);
  }
  __syncthreads();

  constexpr int kAcross = kColumns / kRun;
  const int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross * kRun;
  A sums[kResults][kRun];
#pragma unroll
  for (int result = 0; result < kResults; ++result)
#pragma unroll
    for (int r = 0; r < kRun; ++r) sums[result][r] = bias ? widen(*bias) : A(0);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll(kTaps ? kTaps : 1)
    for (int i = 0; i < taps; ++i) {
      const A* const line = pixels + plane * window.numbers() + (row + i) * window.pitch + column;
      const A* const line_factors = factors + (plane * taps + i) * weight_pitch;
      A here[kRun], next[kRun], own[kResults][kRun];
      load_run(line, here);
#pragma unroll(kTaps ? vectors_of(kTaps) : 1)
      for (int j0 = 0; j0 < taps; j0 += kRun) {
        load_run(line + j0 + kRun, next);
#pragma unroll
        for (int result = 0; result < kResults; ++result)
          load_run(line_factors + result * taps * weight_pitch + j0, own[result]);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          if (j0 + j >= taps) break;  // no product by 0 instead: what lies there may be infinite
#pragma unroll
          for (int r = 0; r < kRun; ++r)
#pragma unroll
            for (int result = 0; result < kResults; ++result)
              sums[result][r] += own[result][j] * (r + j < kRun ? here[(r + j) % kRun] : next[(r + j) % kRun]);
        }
#pragma unroll
        for (int r = 0; r < kRun; ++r) here[r] = next[r];
      }
    }
  }
  if (tile.row + row >= shape.height) return;
#pragma unroll
  for (int result = 0; result < kResults; ++result) {
    A* const line = to + ((tile.n * kResults + result) * shape.height + tile.row + row) * shape.width;
#pragma unroll
    for (int r = 0; r < kRun; ++r)
      if (tile.column + column + r < shape.width)
        line[tile.column + column + r] = open ? sigmoid(sums[result][r]) : sums[result][r];
  }
}

// Rows of a tile whose sums are held apart by a block, in teams of 2 k threads: one for each row of taps.
__host__ __device__ constexpr int teams_of(int taps) {
  return kWeightThreads / (2 * taps) < kRows ? kWeightThreads / (2 * taps) : kRows;
}

// parts[block, t] = the block's tiles' part of the gradient of weight t,
// sum_n,h,w grad[n, h, w] statistics[n, plane, h + i - k / 2, w + j - k / 2]. A thread takes the taps (plane, i, all j) in
// some rows of each tile: as it goes along a row, every number that it loads meets all of them.
template <class T, int kTaps>
__global__ void __launch_bounds__(kWeightThreads)
    channel_spatial_weight_parts(const Convolution shape, const Plane<acc_type<T>> grad, const acc_type<T>* statistics,
                                 acc_type<T>* parts, int64_t tiles) {
  using A = acc_type<T>;
  constexpr int kHeld = kTaps ? kTaps : int(kMostTaps), kReach = vectors_of(kHeld - 1) * kRun;
  constexpr int kGradPitch = pitch_of(kColumns);
  SHARED_DYNAMIC(A, shared);
  launch_dependent_grids();
  const int taps = kTaps ? kTaps : int(shape.taps), side = taps / 2, weights = 2 * taps * taps;
  const Window window(kHeld);
  const int rows = kRows + taps - 1;               // of the window, which has room for kHeld taps
  A* const pixels = shared;                        // [2, window]
  A* const grads = pixels + 2 * window.numbers();  // [kRows, kGradPitch]
  const int teams = teams_of(taps), team = threadIdx.x % teams, line_of_taps = threadIdx.x / teams;
  const bool works = line_of_taps < 2 * taps;
  A sums[kHeld] = {};
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile(shape, index);
    for (int plane = 0; plane < 2; ++plane)
      stage_window<A>(pixels + plane * window.numbers(), rows, window.pitch,
                      {statistics + (2 * tile.n + plane) * shape.pixels(), nullptr}, shape, tile.row - side,
                      tile.column - side);
    const int64_t offset = tile.n * shape.pixels();
    stage_window<A>(grads, kRows, kGradPitch, {grad.numbers + offset, grad.gate ? grad.gate + offset : nullptr}, shape,
                    tile.row, tile.column);
    __syncthreads();
    for (int row = works ? team : kRows; row < kRows; row += teams) {
      const A* const from = grads + row * kGradPitch;
      const A* const line =
          pixels + line_of_taps / taps * window.numbers() + (row + line_of_taps % taps) * window.pitch;
      A values[kReach + kRun];  // from the first pixel on, and as far as the taps reach
#pragma unroll
      for (int k = 0; k < kReach; k += kRun) load_run(line + k, values + k);
#pragma unroll(kTaps ? kColumns / kRun : 1)
      for (int column = 0; column < kColumns; column += kRun) {
        A grad_run[kRun];
        load_run(from + column, grad_run);
        load_run(line + column + kReach, values + kReach);
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (j >= taps) break;
#pragma unroll
          for (int r = 0; r < kRun; ++r) sums[j] += grad_run[r] * values[r + j];
        }
#pragma unroll
        for (int k = 0; k < kReach; ++k) values[k] = values[k + kRun];
      }
    }
    __syncthreads();
  }
  // Each weight's teams in their order.
  if (works) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (j < taps) shared[team * weights + line_of_taps * taps + j] = sums[j];
  }
  __syncthreads();
  wait_for_primary_grid();  // all that came before only reads what is older than the call
  for (int weight = threadIdx.x; weight < weights; weight += kWeightThreads) {
    A sum = 0;
    for (int k = 0; k < teams; ++k) sum += shared[k * weights + weight];
    const int plane = weight / (taps * taps);
    parts[blockIdx.x * weights + shape.weights_of(plane) + weight % (taps * taps)] = sum;
  }
}

// grad_weight[t] = sum_k parts[k, t], a warp for each
template <class T>
__global__ void __launch_bounds__(kWeightThreads)
    channel_spatial_weight_grad(const acc_type<T>* parts, T* grad_weight, int weights, int chunks) {
  using A = acc_type<T>;
  wait_for_primary_grid();
  const int weight = int(blockIdx.x) * (kWeightThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (weight >= weights) return;  // the whole warp
  A sum = 0;
#pragma unroll 8
  for (int chunk = lane; chunk < chunks; chunk += 32) sum += parts[int64_t(chunk) * weights + weight];
  sum = sum_lanes(sum, 32);
  if (lane == 0) grad_weight[weight] = narrow<T>(sum);
}

// run(taps), as a constant; 0: any number of them
template <class Run>
Result dispatch_taps(const Convolution& shape, Run run) {
  if (shape.taps == kUsualTaps) return run(std::integral_constant<int, kUsualTaps>());
  return run(std::integral_constant<int, 0>());
}

template <class T, int kPlanes, int kResults>
Result launch_convolve(const Convolution& shape, const Plane<acc_type<T>>& from, const T* weight, const T* bias,
                       bool open, void* to, void* stream) {
  using A = acc_type<T>;
  const int taps = int(shape.taps), numbers = kPlanes * Window(taps).numbers() + 2 * taps * vectors_of(taps) * kRun;
  return dispatch_taps(shape, [&](auto constant) {
    return start("channel_spatial_convolve", channel_spatial_convolve<T, kPlanes, kResults, constant()>,
                 {shape.samples * convolution_tiles(shape), kThreads, numbers * sizeof(A)}, stream, shape, from, weight,
                 bias, open, static_cast<A*>(to));
  });
}

template <class T>
Result launch_weight_grad(const Convolution& shape, const Plane<acc_type<T>>& grad, const ConvolutionBackward& tensors,
                          bool follows, void* stream) {
  using A = acc_type<T>;
  Device device;
  if (const cudaError_t error = current_device(device)) return result("channel_spatial_weight_parts", error);
  const int64_t chunks = convolution_chunks(shape), weights = shape.weights();
  A* const parts = static_cast<A*>(tensors.parts);
  const Result done = dispatch_taps(shape, [&](auto constant) {
    const int room = 2 * Window(constant() ? constant() : int(kMostTaps)).numbers() + kRows * pitch_of(kColumns);
    const int numbers = std::max(room, teams_of(int(shape.taps)) * int(weights));
    return start("channel_spatial_weight_parts", channel_spatial_weight_parts<T, constant()>,
                 {chunks, kWeightThreads, numbers * sizeof(A), follows && device.dependent_launches}, stream, shape,
                 grad, static_cast<const A*>(tensors.statistics), parts, shape.samples * convolution_tiles(shape));
  });
  if (done.error) return done;
  return start(
      "channel_spatial_weight_grad", channel_spatial_weight_grad<T>,
      {(weights + kWeightThreads / 32 - 1) / (kWeightThreads / 32), kWeightThreads, 0, device.dependent_launches},
      stream, parts, static_cast<T*>(tensors.grad_weight), int(weights), int(chunks));
}

}  // namespace

Result convolve(DataType type, const Convolution& shape, const void* statistics, const void* weight, const void* bias,
                bool gate, void* result, void* stream) {
  if (!shape.samples || !shape.pixels()) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    return launch_convolve<T, 2, 1>(shape, {static_cast<const acc_type<T>*>(statistics), nullptr},
                                    static_cast<const T*>(weight), static_cast<const T*>(bias), gate, result, stream);
  });
}

Result convolve_backward(DataType type, const Convolution& shape, const ConvolutionBackward& tensors, void* stream) {
  if (!shape.samples || !shape.pixels()) return {};
  return dispatch(type, [&](auto zero) -> Result {
    using T = decltype(zero);
    using A = acc_type<T>;
    const Plane<A> grad{static_cast<const A*>(tensors.grad), static_cast<const A*>(tensors.gate)};
    if (tensors.grad_statistics) {
      const Result done = launch_convolve<T, 1, 2>(shape, grad, static_cast<const T*>(tensors.weight), nullptr, false,
                                                   tensors.grad_statistics, stream);
      if (done.error) return done;
    }
    if (!tensors.grad_weight) return {};
    return launch_weight_grad<T>(shape, grad, tensors, tensors.grad_statistics != nullptr, stream);
  });
}

}  // namespace attnkernels::channel_spatial
