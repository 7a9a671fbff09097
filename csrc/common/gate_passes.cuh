// The two passes over a map of an op that scales it by gates, as what a block of each does: its kernels are an op's own,
// and say what becomes of the sums and where the coefficients come from.
#pragma once
#include "common/cuda_dispatch.cuh"
#include "common/gate_tiles.cuh"

namespace attnkernels::gate {

inline bool columns_aligned(const MapShape& shape, int width) {
  return !shape.channels_last || shape.channels % width == 0;
}

// The maps of a forward.
template <class T>
struct ForwardMaps {
  using acc_t = acc_type<T>;
  const T *x, *residual;  // residual: or null
  T* y;
  MapShape shape;
  bool clip;        // the output activation is ReLU
  bool vectorised;  // x, residual and y are equally aligned
  Reuse output_reuse;
  Divisor pixel_divisor;  // PlaneWalk::divisor(pixels)

  __host__ ForwardMaps(const MapShape& shape, OutputActivation output_activation, const Plan& plan, const void* x,
                       const void* residual, void* y)
      : x(static_cast<const T*>(x)),
        residual(static_cast<const T*>(residual)),
        y(static_cast<T*>(y)),
        shape(shape),
        clip(output_activation == OutputActivation::kRelu),
        output_reuse(plan.stream_output ? Reuse::kOnce : Reuse::kLikely),
        pixel_divisor(PlaneWalk::divisor(shape.pixels)) {
    vectorised = equally_aligned(this->x, this->residual, static_cast<const T*>(this->y)) &&
                 columns_aligned(shape, kVectorWidth<T>) && !(shape.channels_last && misalignment(this->x));
  }
  __host__ ForwardMaps part(int64_t first, int64_t samples) const {
    ForwardMaps result = *this;
    const int64_t offset = first * shape.channels * shape.pixels;
    result.shape.samples = samples;
    result.x += offset;
    result.y += offset;
    if (residual) result.residual += offset;
    return result;
  }
};

// Those of a backward.
template <class T>
struct BackwardMaps {
  using acc_t = acc_type<T>;
  const T *grad_y, *x, *y;    // y: null without output activation
  T *grad_x, *grad_residual;  // or null
  MapShape shape;
  bool sums_vectorised, map_vectorised;  // the operands of that pass are equally aligned
  Reuse x_reuse, output_reuse;
  Divisor pixel_divisor;

  __host__ BackwardMaps(const MapShape& shape, const Plan& plan, const void* grad_y, const void* x, const void* y,
                        void* grad_x, void* grad_residual)
      : grad_y(static_cast<const T*>(grad_y)),
        x(static_cast<const T*>(x)),
        y(static_cast<const T*>(y)),
        grad_x(static_cast<T*>(grad_x)),
        grad_residual(static_cast<T*>(grad_residual)),
        shape(shape),
        x_reuse(plan.stream_input ? Reuse::kOnce : Reuse::kLikely),
        output_reuse(plan.stream_output ? Reuse::kOnce : Reuse::kLikely),
        pixel_divisor(PlaneWalk::divisor(shape.pixels)) {
    const bool columns = columns_aligned(shape, kVectorWidth<T>);
    const T* const output = this->grad_x ? this->grad_x : this->grad_residual;
    sums_vectorised =
        columns && equally_aligned(this->x, this->grad_y, this->y) && !(shape.channels_last && misalignment(this->x));
    map_vectorised = columns && output &&
                     equally_aligned(output, this->grad_y, this->y, static_cast<const T*>(this->grad_residual)) &&
                     !(shape.channels_last && misalignment(output));
  }
  __host__ BackwardMaps part(int64_t first, int64_t samples) const {
    BackwardMaps result = *this;
    const int64_t offset = first * shape.channels * shape.pixels;
    result.shape.samples = samples;
    result.grad_y += offset;
    result.x += offset;
    if (y) result.y += offset;
    if (grad_x) result.grad_x += offset;
    if (grad_residual) result.grad_residual += offset;
    return result;
  }
};

// What the two kernels of sums do: emit(n, channel, sum over the pixels), or the sums of each split into
// partial[n, split, channel].
template <bool kChannelsLast, class Source, class Emit>
__device__ __forceinline__ void sum_block(const Source& source, const MapShape& shape, const Tiles& tiles,
                                          typename Source::acc_t* partial, Emit emit) {
  using acc_t = typename Source::acc_t;
  SHARED_DYNAMIC(acc_t, cells);
  launch_dependent_grids();
  const int64_t n = blockIdx.y;
  sum_tile<kChannelsLast>(source.moved(n * shape.channels * shape.pixels), shape, tiles, cells,
                          [&](int64_t channel, int64_t split, acc_t sum) {
                            if (tiles.splits == 1) {
                              emit(n, channel, sum);
                            } else {
                              partial[(n * tiles.splits + split) * shape.channels + channel] = sum;
                            }
                          });
  wait_for_primary_grid();  // it needs nothing of the samples before
}

// sum_p x[n, c, p]
template <bool kChannelsLast, class T, class Emit>
__device__ __forceinline__ void pool_block(const ForwardMaps<T>& maps, const Tiles& tiles, acc_type<T>* partial,
                                           Emit emit) {
  sum_block<kChannelsLast>(PoolSource<T>{maps.x, maps.vectorised}, maps.shape, tiles, partial, emit);
}

// sum_p dz[n, c, p] x[n, c, p]
template <bool kChannelsLast, class T, class Emit>
__device__ __forceinline__ void grad_sum_block(const BackwardMaps<T>& maps, const Tiles& tiles, acc_type<T>* partial,
                                               Emit emit) {
  const GradSource<T> source{maps.grad_y, maps.x, maps.y, maps.x_reuse, maps.sums_vectorised};
  sum_block<kChannelsLast>(source, maps.shape, tiles, partial, emit);
}

// y = output_activation(x gates[n, c] + residual), with gates = stage(n, range, shared memory), those of the range's
// channels. `stage` calls wait_for_primary_grid and leaves them readable for the block: x and the residual, which are
// older than the kernels of the call, are under way meanwhile.
template <bool kChannelsLast, bool kResidual, class T, class Stage>
__device__ __forceinline__ void scale_block(const ForwardMaps<T>& maps, const Tiles& tiles, Stage stage) {
  using acc_t = acc_type<T>;
  SHARED_DYNAMIC(acc_t, shared);
  launch_dependent_grids();
  const MapRange range = map_range<kChannelsLast>(maps.shape, tiles);
  const int64_t n = gridDim.y - 1 - blockIdx.y, offset = n * maps.shape.channels * maps.shape.pixels;
  MapTile<kChannelsLast, ScaleMap<T, kResidual>> tile({maps.x + offset, kResidual ? maps.residual + offset : nullptr,
                                                       maps.y + offset, maps.clip, maps.output_reuse, maps.vectorised},
                                                      maps.shape, range, maps.pixel_divisor);
  const acc_t* const gates = stage(n, range, shared);
  tile.apply(gates, static_cast<const acc_t*>(nullptr));
}

// grad_x = dz scale[n, c] + shift[n, c], grad_residual = dz; stage(n, range, scale, shift, shared memory behind them)
// as above, and only called where there is a grad_x.
template <bool kChannelsLast, bool kClip, class T, class Stage>
__device__ __forceinline__ void grad_map_block(const BackwardMaps<T>& maps, const Tiles& tiles, Stage stage) {
  using acc_t = acc_type<T>;
  SHARED_DYNAMIC(acc_t, shared);
  launch_dependent_grids();
  const MapRange range = map_range<kChannelsLast>(maps.shape, tiles);
  const int64_t n = gridDim.y - 1 - blockIdx.y, offset = n * maps.shape.channels * maps.shape.pixels;
  MapTile<kChannelsLast, GradMap<T, kClip>> tile(
      {maps.grad_y + offset, kClip ? maps.y + offset : nullptr, maps.grad_x ? maps.grad_x + offset : nullptr,
       maps.grad_residual ? maps.grad_residual + offset : nullptr, maps.output_reuse, maps.map_vectorised},
      maps.shape, range, maps.pixel_divisor);
  acc_t* const scale = shared;                          // [tiles.channels]
  acc_t* const shift = scale + padded(tiles.channels);  // [tiles.channels]
  if (maps.grad_x) {
    stage(n, range, scale, shift, shift + padded(tiles.channels));
    __syncthreads();
    tile.apply(scale, shift);
  } else {  // grad_residual alone takes no coefficients
    wait_for_primary_grid();
    tile.apply(static_cast<const acc_t*>(nullptr), static_cast<const acc_t*>(nullptr));
  }
}

// ---- launches

inline dim3 grid_of(int64_t blocks, int64_t samples) { return dim3(unsigned(blocks), unsigned(samples)); }

// Of a pass over `samples` samples.
inline LaunchConfig pass_config(const Tiles& tiles, int64_t samples, void* stream, bool dependent) {
  LaunchConfig config;
  config.stream = static_cast<cudaStream_t>(stream);
  config.block = dim3(kThreads);
  config.grid = grid_of(tiles.blocks(), samples);
  config.shared_bytes = tiles.shared_bytes;
  config.dependent = dependent;
  return config;
}

// run(first sample, count): all samples together, but for those beyond a grid's limit
template <class Run>
Result for_each_part(int64_t samples, const Plan& plan, Run run) {
  for (int64_t first = 0; first < samples; first += plan.samples_at_once) {
    const Result done = run(first, std::min(plan.samples_at_once, samples - first));
    if (done.error) return done;
  }
  return {};
}

// The limits of the current device.
inline Result device_limits(Limits& found) {
  Device device;
  const cudaError_t error = current_device(device);
  found = {device.compute_capability, device.multiprocessors, device.l2_bytes, device.dependent_launches};
  return result("the limits of the device", error);
}

// run(T(), layout): for the element type and whether a map is channels_last, as constants
template <class Run>
Result dispatch_map(DataType type, bool channels_last, Run run) {
  return dispatch(
      type, [&](auto zero) { return channels_last ? run(zero, std::true_type()) : run(zero, std::false_type()); });
}

}  // namespace attnkernels::gate
