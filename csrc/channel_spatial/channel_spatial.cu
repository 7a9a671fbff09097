// Launchers of the CUDA kernels of cbam and scse.
#include "channel_spatial/channel_spatial.cuh"
#include "channel_spatial/channel_spatial_launch.h"

namespace attnkernels::channel_spatial {
namespace {

template <class T>
Result run_typed(const Call& call, const Plan& plan, void* scratch, void* stream) {
  using acc_t = acc_type<T>;
  const Tensors& t = call.tensors;
  const int64_t channels = plan.shape.channels, pixels = plan.shape.pixels;
  const auto numbers = [](const void* pointer) { return static_cast<const acc_t*>(pointer); };
  const auto second = [&](const void* pointer, int64_t count) {  // of two rows of [N, 2, count]
    return pointer ? numbers(pointer) + count : nullptr;
  };
  const OneMap<T> one{static_cast<const T*>(t.x)};
  const TwoMaps<T> two{static_cast<const T*>(t.grad_y), one.x};
  const T *const weight = static_cast<const T*>(t.spatial_weight), *const bias = static_cast<const T*>(t.spatial_bias);
  const GateNumbers<acc_t> channel_gate{numbers(t.channel_gate), channels};
  const GateNumbers<acc_t> pixel_gate{numbers(t.spatial_gate), pixels};
  const auto channel_back = [&]<bool kShare>(std::bool_constant<kShare>) {
    return BackNumbers<acc_t, kShare>{channel_gate.gate,
                                      numbers(t.grad_pooled),
                                      call.maxima ? second(t.grad_pooled, channels) : nullptr,
                                      call.maxima ? second(t.pooled, channels) : nullptr,
                                      numbers(t.pool_marks),
                                      channels,
                                      call.maxima ? 2 * channels : channels,
                                      acc_t(1) / acc_t(pixels)};
  };
  const auto pixel_back = [&]<bool kShare>(std::bool_constant<kShare>) {
    return BackNumbers<acc_t, kShare>{pixel_gate.gate,
                                      second(t.grad_statistics, pixels),
                                      numbers(t.grad_statistics),
                                      numbers(t.statistics),
                                      numbers(t.marks),
                                      pixels,
                                      2 * pixels,
                                      acc_t(1) / acc_t(channels)};
  };
  acc_t *const by_channel = static_cast<acc_t*>(t.by_channel), *const by_pixel = static_cast<acc_t*>(t.by_pixel);
  acc_t* const marks = static_cast<acc_t*>(t.found_marks);
  const auto run = [&](const char* name, const auto& formula, const auto& channel_end, const auto& pixel_end,
                       auto kernel) {
    return run_pass<T>(name, plan, formula, channel_end, pixel_end, t.map, scratch, stream, kernel);
  };
  // run_with(the call's option as a constant)
  const auto with_marks = [&](const auto& run_with) -> Result {
    if (!marks) return run_with(std::integral_constant<Marks, Marks::kNone>());
    if (call.share) return run_with(std::integral_constant<Marks, Marks::kCounts>());
    return run_with(std::integral_constant<Marks, Marks::kFirst>());
  };
  const auto with_merge = [&](const auto& run_with) -> Result {
    if (call.merge == Merge::kAdd) return run_with(std::integral_constant<Merge, Merge::kAdd>());
    if (call.merge == Merge::kMax) return run_with(std::integral_constant<Merge, Merge::kMax>());
    return run_with(std::integral_constant<Merge, Merge::kProduct>());
  };
  const auto with_flag = [&](bool flag, const auto& run_with) -> Result {
    return flag ? run_with(std::true_type()) : run_with(std::false_type());
  };
  switch (call.op) {
    case Operator::kPool:
      if (call.maxima)
        return with_marks([&](auto marking) {
          constexpr Marks kMarks = decltype(marking)::value;
          return run("channel_spatial_pool_maxima", PoolMaxima<T, kMarks>{{one}},
                     MaximaEnd<acc_t, kMarks>{by_channel, by_channel + channels, marks, channels, acc_t(pixels)},
                     NoEnd(),
                     [](auto layout, auto width) { return channel_spatial_pool_maxima<T, layout(), width(), kMarks>; });
        });
      return run("channel_spatial_pool", Pool<T>{{one}}, SumEnd<acc_t>{by_channel, channels, acc_t(pixels)}, NoEnd(),
                 [](auto layout, auto width) { return channel_spatial_pool<T, layout(), width()>; });
    case Operator::kProject:
      return run("channel_spatial_project", Project<T>{{one, {weight}}},
                 SumEnd<acc_t>{by_channel, channels, acc_t(pixels)}, GateEnd<T>{by_pixel, pixels, bias},
                 [](auto layout, auto width) { return channel_spatial_project<T, layout(), width()>; });
    case Operator::kStatistics:
      return with_marks([&](auto marking) {
        constexpr Marks kMarks = decltype(marking)::value;
        return run("channel_spatial_statistics", Statistics<T, kMarks>{{one, channel_gate}}, NoEnd(),
                   MaximaEnd<acc_t, kMarks>{by_pixel + pixels, by_pixel, marks, pixels, acc_t(channels)},
                   [](auto layout, auto width) { return channel_spatial_statistics<T, layout(), width(), kMarks>; });
      });
    case Operator::kScale:
      return with_merge([&](auto merging) {
        constexpr Merge kMerge = decltype(merging)::value;
        return run("channel_spatial_scale", Scale<T, kMerge>{{one, channel_gate, pixel_gate}, call.skip}, NoEnd(),
                   NoEnd(),
                   [](auto layout, auto width) { return channel_spatial_scale<T, layout(), width(), kMerge>; });
      });
    case Operator::kGradGates:
      return with_merge([&](auto merging) {
        constexpr Merge kMerge = decltype(merging)::value;
        return run("channel_spatial_grad_gates", GradGates<T, kMerge>{{two, channel_gate, pixel_gate}},
                   SumEnd<acc_t>{by_channel, channels, 1}, SumEnd<acc_t>{by_pixel, pixels, 1},
                   [](auto layout, auto width) { return channel_spatial_grad_gates<T, layout(), width(), kMerge>; });
      });
    case Operator::kGradChannelGate:
      return with_flag(call.share, [&](auto sharing) {
        constexpr bool kShare = sharing();
        return run(
            "channel_spatial_grad_channel_gate", GradChannelGate<T, kShare>{{two, channel_gate, pixel_back(sharing)}},
            SumEnd<acc_t>{by_channel, channels, 1}, NoEnd(),
            [](auto layout, auto width) { return channel_spatial_grad_channel_gate<T, layout(), width(), kShare>; });
      });
    case Operator::kGradX: {
      const bool compares = t.statistics || call.maxima;
      return with_flag(call.share && compares, [&](auto sharing) {
        constexpr bool kShare = sharing();
        std::conditional_t<kShare, TwoMaps<T>, OneMap<T>> maps;
        if constexpr (kShare) {
          maps = two;
        } else {
          maps = {two.grad_y};
        }
        return run("channel_spatial_grad_x",
                   GradX<T, kShare>{{maps, channel_back(sharing), pixel_back(sharing)}, call.skip}, NoEnd(), NoEnd(),
                   [](auto layout, auto width) { return channel_spatial_grad_x<T, layout(), width(), kShare>; });
      });
    }
    default:
      return with_flag(call.merge == Merge::kMax, [&](auto maximum) {
        constexpr Merge kMerge = maximum() ? Merge::kMax : Merge::kAdd;
        const ConcurrentChannel<T> channel{channel_gate.gate, numbers(t.grad_means), weight, channels,
                                           acc_t(1) / acc_t(pixels)};
        const ConcurrentPixel<acc_t> pixel{pixel_gate.gate, numbers(t.grad_spatial_gate), pixels};
        return run("channel_spatial_grad_concurrent", GradConcurrent<T, kMerge>{{two, channel, pixel}},
                   WeightEnd<T>{static_cast<T*>(t.by_channel)}, NoEnd(), [](auto layout, auto width) {
                     return channel_spatial_grad_concurrent<T, layout(), width(), kMerge>;
                   });
      });
  }
}

}  // namespace

Result limits(gate::Limits& found) {
  Device device;
  const cudaError_t error = current_device(device);
  found = {device.compute_capability, device.multiprocessors, device.l2_bytes, device.dependent_launches};
  return result("the limits of the device", error);
}

Result run(DataType type, const Call& call, const matrix::Plan& plan, void* scratch, void* stream) {
  if (!plan.shape.samples) return {};
  return dispatch(type, [&](auto zero) { return run_typed<decltype(zero)>(call, plan, scratch, stream); });
}

}  // namespace attnkernels::channel_spatial
