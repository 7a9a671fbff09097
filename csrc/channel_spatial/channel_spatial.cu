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
  const BackNumbers<acc_t> channel_back{channel_gate.gate,
                                        numbers(t.grad_pooled),
                                        call.maxima ? second(t.grad_pooled, channels) : nullptr,
                                        call.maxima ? second(t.pooled, channels) : nullptr,
                                        numbers(t.pool_marks),
                                        channels,
                                        call.maxima ? 2 * channels : channels,
                                        acc_t(1) / acc_t(pixels),
                                        call.share};
  const BackNumbers<acc_t> pixel_back{pixel_gate.gate,
                                      second(t.grad_statistics, pixels),
                                      numbers(t.grad_statistics),
                                      numbers(t.statistics),
                                      numbers(t.marks),
                                      pixels,
                                      2 * pixels,
                                      acc_t(1) / acc_t(channels),
                                      call.share};
  acc_t *const by_channel = static_cast<acc_t*>(t.by_channel), *const by_pixel = static_cast<acc_t*>(t.by_pixel);
  acc_t* const marks = static_cast<acc_t*>(t.found_marks);
  const auto run = [&](const char* name, const auto& formula, const auto& channel_end, const auto& pixel_end,
                       auto kernel) {
    return run_pass<T>(name, plan, formula, channel_end, pixel_end, call.share, t.map, scratch, stream, kernel);
  };
  switch (call.op) {
    case Operator::kPool:
      if (call.maxima)
        return run("channel_spatial_pool", Pool<T, true>{{one}, call.share},
                   MaximaEnd<acc_t>{by_channel, by_channel + channels, marks, channels, acc_t(pixels)}, NoEnd(),
                   [](auto layout, auto width) { return channel_spatial_pool<T, layout(), width(), true>; });
      return run("channel_spatial_pool", Pool<T, false>{{one}, false},
                 SumEnd<acc_t>{by_channel, channels, acc_t(pixels)}, NoEnd(),
                 [](auto layout, auto width) { return channel_spatial_pool<T, layout(), width(), false>; });
    case Operator::kProject:
      return run("channel_spatial_project", Project<T>{{one, {weight}}},
                 SumEnd<acc_t>{by_channel, channels, acc_t(pixels)}, LogitEnd<T>{by_pixel, pixels, bias},
                 [](auto layout, auto width) { return channel_spatial_project<T, layout(), width()>; });
    case Operator::kStatistics:
      return run("channel_spatial_statistics", Statistics<T>{{one, channel_gate}, call.share}, NoEnd(),
                 MaximaEnd<acc_t>{by_pixel + pixels, by_pixel, marks, pixels, acc_t(channels)},
                 [](auto layout, auto width) { return channel_spatial_statistics<T, layout(), width()>; });
    case Operator::kScale:
      return run("channel_spatial_scale", Scale<T>{{one, channel_gate, pixel_gate}, call.merge, call.skip}, NoEnd(),
                 NoEnd(), [](auto layout, auto width) { return channel_spatial_scale<T, layout(), width()>; });
    case Operator::kGradGates:
      return run("channel_spatial_grad_gates", GradGates<T>{{two, channel_gate, pixel_gate}, call.merge},
                 SumEnd<acc_t>{by_channel, channels, 1}, SumEnd<acc_t>{by_pixel, pixels, 1},
                 [](auto layout, auto width) { return channel_spatial_grad_gates<T, layout(), width()>; });
    case Operator::kGradChannelGate:
      return run("channel_spatial_grad_channel_gate", GradChannelGate<T>{{two, channel_gate, pixel_back}},
                 SumEnd<acc_t>{by_channel, channels, 1}, NoEnd(),
                 [](auto layout, auto width) { return channel_spatial_grad_channel_gate<T, layout(), width()>; });
    case Operator::kGradX: {
      GradX<T> formula{{two, channel_back, pixel_back}, call.skip};
      if (!call.share || !(t.statistics || call.maxima)) formula.maps.x = nullptr;  // nothing is compared with it
      return run("channel_spatial_grad_x", formula, NoEnd(), NoEnd(),
                 [](auto layout, auto width) { return channel_spatial_grad_x<T, layout(), width()>; });
    }
    default: {
      const ConcurrentChannel<T> channel{channel_gate.gate, numbers(t.grad_means), weight, channels,
                                         acc_t(1) / acc_t(pixels)};
      const ConcurrentPixel<acc_t> pixel{pixel_gate.gate, numbers(t.grad_logits), pixels};
      return run("channel_spatial_grad_concurrent", GradConcurrent<T>{{two, channel, pixel}, call.merge},
                 WeightEnd<T>{static_cast<T*>(t.by_channel)}, NoEnd(),
                 [](auto layout, auto width) { return channel_spatial_grad_concurrent<T, layout(), width()>; });
    }
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
