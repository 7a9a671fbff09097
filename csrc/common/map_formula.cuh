// Passes over feature maps [N, C, pixels], in either layout, by a formula of one element: of what the maps have there,
// of the numbers of its channel and of those of its pixel. What the formula gives is stored, or added up by channel, by
// pixel or both (common/matrix.cuh walks).
#pragma once
#include "common/matrix.cuh"

namespace attnkernels::matrix {

// ---- what is read of the maps

template <class T>
struct OneMap {
  static constexpr int kMaps = 1;
  const T* x;

  template <int kW>
  struct Fetched {
    Vector<T, kW> x;
  };
  template <int kW>
  __device__ __forceinline__ Fetched<kW> fetch(int64_t at) const {
    return {load<kW>(x + at)};
  }
};

template <class T>
struct TwoMaps {
  static constexpr int kMaps = 2;
  const T *grad_y, *x;

  template <int kW>
  struct Fetched {
    Vector<T, kW> grad, x;
  };
  template <int kW>
  __device__ __forceinline__ Fetched<kW> fetch(int64_t at) const {
    return {load<kW>(grad_y + at), load<kW>(x + at)};
  }
};

// ---- numbers of channels or of pixels: Source::load(sample, i, Source::Numbers[kW]) from the i-th on

struct NoNumbers {
  struct Numbers {};
  template <int kW>
  __device__ __forceinline__ void load(int64_t, int64_t, Numbers (&)[kW]) const {}
};

// A gate of each, `count` a sample; 1 where there is none.
template <class A>
struct GateNumbers {
  struct Numbers {
    A gate;
  };
  const A* gate;
  int64_t count;

  template <int kW>
  __device__ __forceinline__ void load(int64_t n, int64_t i, Numbers (&numbers)[kW]) const {
    load_numbers<kW>(gate, n * count + i, A(1), [&](int k, A value) { numbers[k].gate = value; });
  }
};

// ---- a formula: its own part is
//   element(fetched, k, channel's Numbers, pixel's Numbers, place of the channel, of the pixel, sum by channel, by pixel)

template <class MapsOf, class ChannelSource, class PixelSource, class ByChannel, class ByPixel, bool kStored>
struct Formula {
  using Channel = typename ChannelSource::Numbers;
  using Pixel = typename PixelSource::Numbers;
  using ChannelEnd = ByChannel;
  using PixelEnd = ByPixel;
  static constexpr int kMaps = MapsOf::kMaps;
  static constexpr bool kStores = kStored;
  MapsOf maps;
  ChannelSource channel;
  PixelSource pixel;
};

template <class Formula, class T>
struct FormulaPass {
  Formula formula;
  Reduced<typename Formula::ChannelEnd> by_channel;
  Reduced<typename Formula::PixelEnd> by_pixel;
  Plan plan;
  T* stored;  // or null
};

// The formula in terms of rows and columns, at a block's tile.
template <class Formula, class T, bool kChannelsLast, int kW>
struct FormulaBody {
  using acc_t = acc_type<T>;
  using RowNumbers = std::conditional_t<kChannelsLast, typename Formula::Pixel, typename Formula::Channel>;
  using ColumnNumbers = std::conditional_t<kChannelsLast, typename Formula::Channel, typename Formula::Pixel>;
  using RowEnd = std::conditional_t<kChannelsLast, typename Formula::PixelEnd, typename Formula::ChannelEnd>;
  using ColumnEnd = std::conditional_t<kChannelsLast, typename Formula::ChannelEnd, typename Formula::PixelEnd>;
  using RowValue = typename RowEnd::Value;
  using ColumnValue = typename ColumnEnd::Value;
  static constexpr int kRows = rows_at_once(Formula::kStores ? 2 : Formula::kMaps, sizeof(T) * kW);

  const FormulaPass<Formula, T>& pass;
  const Place& place;
  const Reduced<RowEnd>& by_row;
  const Reduced<ColumnEnd>& by_column;
  int64_t begin;

  __device__ __forceinline__ int64_t at(int i, int j) const {
    const MapShape& shape = pass.plan.shape;  // whose layout is a constant here
    return begin + i * (kChannelsLast ? shape.channels : shape.pixels) + j;
  }
  __device__ __forceinline__ auto fetch(int i, int j) const { return pass.formula.maps.template fetch<kW>(at(i, j)); }
  __device__ __forceinline__ RowNumbers row(int i) const {
    RowNumbers numbers[1];
    if constexpr (kChannelsLast) {
      pass.formula.pixel.load(place.sample, place.first_row + i, numbers);
    } else {
      pass.formula.channel.load(place.sample, place.first_row + i, numbers);
    }
    return numbers[0];
  }
  __device__ __forceinline__ void columns(int j, ColumnNumbers (&numbers)[kW]) const {
    if constexpr (kChannelsLast) {
      pass.formula.channel.load(place.sample, place.first_column + j, numbers);
    } else {
      pass.formula.pixel.load(place.sample, place.first_column + j, numbers);
    }
  }
  template <class Fetched>
  __device__ __forceinline__ void use(int i, int j, const Fetched& fetched, const RowNumbers& row,
                                      const ColumnNumbers (&columns)[kW], RowValue& of_row,
                                      ColumnValue (&of_columns)[kW]) const {
    const acc_t row_place = acc_t(place.first_row + i), first = acc_t(place.first_column + j);
    acc_t values[kW];
#pragma unroll
    for (int k = 0; k < kW; ++k) {
      const acc_t column_place = first + acc_t(k);
      if constexpr (kChannelsLast) {
        values[k] = pass.formula.element(fetched, k, columns[k], row, column_place, row_place, of_columns[k], of_row);
      } else {
        values[k] = pass.formula.element(fetched, k, row, columns[k], row_place, column_place, of_row, of_columns[k]);
      }
    }
    if constexpr (Formula::kStores) {
      if (!pass.stored) return;
      Vector<T, kW> result;
      result.set(values);
      store(pass.stored + at(i, j), result, pass.plan.stream_output ? Reuse::kOnce : Reuse::kLikely);
    }
  }
};

// What a block of a pass does.
template <bool kChannelsLast, int kW, class Formula, class T>
__device__ __forceinline__ void run_block(const FormulaPass<Formula, T>& pass) {
  using Body = FormulaBody<Formula, T, kChannelsLast, kW>;
  launch_dependent_grids();
  const Place place(pass.plan);
  const int64_t row = place.sample * pass.plan.rows() + place.first_row;
  const int64_t begin = row * pass.plan.columns() + place.first_column;
  if constexpr (kChannelsLast) {
    walk<kW>(Body{pass, place, pass.by_pixel, pass.by_channel, begin}, pass.plan, place);
  } else {
    walk<kW>(Body{pass, place, pass.by_channel, pass.by_pixel, begin}, pass.plan, place);
  }
}

// ---- launches

// run(layout, width), as constants
template <class T, class Run>
Result dispatch_walk(const Plan& plan, Run run) {
  const auto with_layout = [&](auto channels_last) -> Result {
    if constexpr (sizeof(T) < 8)
      if (plan.width == kVectorWidth<T>) return run(channels_last, std::integral_constant<int, kVectorWidth<T>>());
    if constexpr (sizeof(T) == 2 && !decltype(channels_last)::value)
      if (plan.width == 4) return run(channels_last, std::integral_constant<int, 4>());
    return run(channels_last, std::integral_constant<int, 1>());
  };
  return plan.shape.channels_last ? with_layout(std::true_type()) : with_layout(std::false_type());
}

// What is added up in several tiles, put together.
template <class End>
__global__ void __launch_bounds__(kThreads, 2) matrix_finish(const __grid_constant__ Reduced<End> reduced) {
  finish_block(reduced);
}

template <class End>
Result finish(const Reduced<End>& reduced, const Plan& plan, void* stream) {
  if constexpr (End::Value::kNumbers > 0) {
    if (reduced.wanted && reduced.partial)
      return start("matrix_finish", matrix_finish<End>,
                   {reduced.samples * ceil_div(reduced.count, kFinished), kThreads,
                    kThreads * sizeof(typename End::Value), plan.dependent},
                   stream, reduced);
  }
  return {};
}

// Launches a pass: kernel(layout, width) is its kernel; scratch [plan.scratch()], stored: or null.
template <class T, class Formula, class Kernel>
Result run_pass(const char* name, const Plan& plan, const Formula& formula, typename Formula::ChannelEnd channel_end,
                typename Formula::PixelEnd pixel_end, void* stored, void* scratch, void* stream, Kernel kernel) {
  const MapShape& shape = plan.shape;
  const bool channels = plan.pass.by_channel, pixels = plan.pass.by_pixel;
  FormulaPass<Formula, T> pass{formula,
                               {channel_end, shape.samples, plan.channel_splits(), shape.channels, channels, nullptr},
                               {pixel_end, shape.samples, plan.pixel_splits(), shape.pixels, pixels, nullptr},
                               plan,
                               static_cast<T*>(stored)};
  constexpr size_t kChannelBytes = sizeof(typename Formula::ChannelEnd::Value);
  constexpr size_t kPixelBytes = sizeof(typename Formula::PixelEnd::Value);
  if constexpr (Formula::ChannelEnd::Value::kNumbers > 0)
    if (plan.channel_scratch()) pass.by_channel.partial = static_cast<acc_type<T>*>(scratch);
  if constexpr (Formula::PixelEnd::Value::kNumbers > 0)
    if (plan.pixel_scratch()) pass.by_pixel.partial = static_cast<acc_type<T>*>(scratch) + plan.channel_scratch();
  const size_t bytes = shared_bytes(plan, shape.channels_last ? pixels * kPixelBytes : channels * kChannelBytes,
                                    shape.channels_last ? channels * kChannelBytes : pixels * kPixelBytes);
  Result done = dispatch_walk<T>(plan, [&](auto channels_last, auto width) {
    return start(name, kernel(channels_last, width), {plan.blocks(), kThreads, bytes}, stream, pass);
  });
  if (done.error) return done;
  if (plan.pass.over_samples) {  // each sample's splits are splits of the sum over samples
    pass.by_channel.splits *= shape.samples;
    pass.by_channel.samples = 1;
  }
  done = finish(pass.by_channel, plan, stream);
  return done.error ? done : finish(pass.by_pixel, plan, stream);
}

}  // namespace attnkernels::matrix
