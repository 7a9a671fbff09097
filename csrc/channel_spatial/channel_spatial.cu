// Launchers of the CUDA kernels of cbam and scse.
#include "channel_spatial/channel_spatial.cuh"
#include "channel_spatial/channel_spatial_launch.h"

namespace attnkernels::channel_spatial {
namespace {

template <class... Parameters, class Argument>
Result start(const char* name, void (*kernel)(Parameters...), int64_t blocks, size_t shared_bytes, void* stream,
             const Argument& argument, bool dependent) {
  constexpr int64_t kLargestGrid = (int64_t(1) << 31) - 1;
  if (blocks > kLargestGrid) return {name, "more blocks than a grid can have"};
  LaunchConfig config;
  config.grid = dim3(unsigned(blocks));
  config.block = dim3(kThreads);
  config.shared_bytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.dependent = dependent;
  return result(name, launch(config, kernel, argument));
}

// run(layout, width), as constants
template <class T, class Run>
Result dispatch_walk(bool channels_last, int width, Run run) {
  const auto with_layout = [&](auto layout) -> Result {
    constexpr bool kChannelsLast = decltype(layout)::value;
    if constexpr (sizeof(T) < 8)
      if (width == kVectorWidth<T>) return run(layout, std::integral_constant<int, kVectorWidth<T>>());
    if constexpr (sizeof(T) == 2 && !kChannelsLast)
      if (width == 4) return run(layout, std::integral_constant<int, 4>());
    return run(layout, std::integral_constant<int, 1>());
  };
  return channels_last ? with_layout(std::true_type()) : with_layout(std::false_type());
}

// A call of which T is known.
template <class T>
struct Typed {
  using acc_t = acc_type<T>;
  const Shape& shape;
  const Call& call;
  const Plan& plan;
  void* stream;

  static const acc_t* numbers(const void* pointer) { return static_cast<const acc_t*>(pointer); }
  static acc_t* found(void* pointer) { return static_cast<acc_t*>(pointer); }
  static const T* elements(const void* pointer) { return static_cast<const T*>(pointer); }
  // Of the second of two rows of [N, 2, count].
  static const acc_t* second(const void* pointer, int64_t count) {
    return pointer ? numbers(pointer) + count : nullptr;
  }
  acc_t pixels() const { return acc_t(shape.pixels); }
  acc_t channels() const { return acc_t(shape.channels); }
  OneMap<T> one_map() const { return {elements(call.tensors.x)}; }
  TwoMaps<T> two_maps() const { return {elements(call.tensors.grad_y), elements(call.tensors.x)}; }
  Gates<acc_t> gates() const {
    return {numbers(call.tensors.channel_gate), numbers(call.tensors.spatial_gate), shape.channels, shape.pixels};
  }
  BackNumbers<acc_t> pixel_back() const {
    const Tensors& t = call.tensors;
    return {numbers(t.spatial_gate),    second(t.grad_statistics, shape.pixels),
            numbers(t.grad_statistics), numbers(t.statistics),
            numbers(t.marks),           shape.pixels,
            2 * shape.pixels,           channels()};
  }
  BackNumbers<acc_t> channel_back() const {
    const Tensors& t = call.tensors;
    const int64_t count = shape.channels;
    const bool maxima = call.maxima();
    return {numbers(t.channel_gate),
            numbers(t.grad_pooled),
            maxima ? second(t.grad_pooled, count) : nullptr,
            maxima ? second(t.pooled, count) : nullptr,
            numbers(t.pool_marks),
            count,
            maxima ? 2 * count : count,
            pixels()};
  }

  template <class End>
  Result finish(const Reduced<End>& reduced) const {
    if constexpr (End::Value::kNumbers > 0) {
      if (reduced.wanted && reduced.partial)
        return start("channel_spatial_finish", channel_spatial_finish<End>,
                     reduced.samples * ceil_div(reduced.count, kFinished), kThreads * sizeof(typename End::Value),
                     stream, reduced, plan.dependent);
    }
    return {};
  }

  template <class Formula, class Kernel>
  Result pass(const char* name, const Formula& formula, const typename Formula::ChannelEnd& channel_end,
              const typename Formula::PixelEnd& pixel_end, Kernel kernel) const {
    using ChannelValue = typename Formula::ChannelEnd::Value;
    using PixelValue = typename Formula::PixelEnd::Value;
    const int64_t of_channels = channel_splits(shape, plan), of_pixels = pixel_splits(shape, plan);
    Pass<Formula, T> pass{
        formula,
        {channel_end, shape.samples, of_channels, shape.channels, call.by_channel() > 0, call.share, nullptr},
        {pixel_end, shape.samples, of_pixels, shape.pixels, call.by_pixel() > 0, call.share, nullptr},
        plan,
        static_cast<T*>(call.tensors.map)};
    acc_t* const scratch = found(call.tensors.scratch);
    const int64_t channel_numbers = channel_scratch(shape, call, plan);
    if constexpr (ChannelValue::kNumbers > 0)
      if (channel_numbers) pass.by_channel.partial = scratch;
    if constexpr (PixelValue::kNumbers > 0)
      if (of_pixels > 1) pass.by_pixel.partial = scratch + channel_numbers;
    const size_t channel_cell = pass.by_channel.wanted ? sizeof(ChannelValue) : 0;
    const size_t pixel_cell = pass.by_pixel.wanted ? sizeof(PixelValue) : 0;
    // Cells of columns come after those of rows, wanted or not.
    size_t bytes = 0;
    if (shape.channels_last) {
      bytes = shared_bytes(plan, PixelValue::kNumbers ? sizeof(PixelValue) : 0, channel_cell);
    } else {
      bytes = shared_bytes(plan, ChannelValue::kNumbers ? sizeof(ChannelValue) : 0, pixel_cell);
    }
    if (!channel_cell && !pixel_cell) bytes = 0;
    Result done = dispatch_walk<T>(shape.channels_last, plan.width, [&](auto layout, auto width) {
      return start(name, kernel(layout, width), plan.blocks(), bytes, stream, pass, false);
    });
    if (done.error) return done;
    if constexpr (std::is_same_v<typename Formula::ChannelEnd, WeightEnd<T>>) {  // [samples, splits] are all splits
      pass.by_channel.splits *= pass.by_channel.samples;
      pass.by_channel.samples = 1;
    }
    done = finish(pass.by_channel);
    return done.error ? done : finish(pass.by_pixel);
  }
};

template <class T>
Result run_typed(const Typed<T>& typed) {
  using acc_t = acc_type<T>;
  const Tensors& t = typed.call.tensors;
  const Call& call = typed.call;
  const int64_t channels = typed.shape.channels, pixels = typed.shape.pixels;
  acc_t *const by_channel = typed.found(t.channels_found), *const by_pixel = typed.found(t.pixels_found);
  switch (call.op) {
    case Operator::kPool:
      if (call.maxima())
        return typed.pass("channel_spatial_pool", Pool<T, true>{typed.one_map(), call.share},
                          {by_channel, by_channel + channels, typed.found(t.channel_marks), channels, typed.pixels()},
                          {}, [](auto layout, auto width) { return channel_spatial_pool<T, layout(), width(), true>; });
      return typed.pass("channel_spatial_pool", Pool<T, false>{typed.one_map(), false},
                        {by_channel, channels, typed.pixels()}, {},
                        [](auto layout, auto width) { return channel_spatial_pool<T, layout(), width(), false>; });
    case Operator::kProject:
      return typed.pass("channel_spatial_project", Project<T>{typed.one_map(), typed.elements(t.spatial_weight)},
                        {by_channel, channels, typed.pixels()}, {by_pixel, pixels, typed.elements(t.spatial_bias)},
                        [](auto layout, auto width) { return channel_spatial_project<T, layout(), width()>; });
    case Operator::kStatistics:
      return typed.pass("channel_spatial_statistics", Statistics<T>{typed.one_map(), typed.gates(), call.share}, {},
                        {by_pixel + pixels, by_pixel, typed.found(t.pixel_marks), pixels, typed.channels()},
                        [](auto layout, auto width) { return channel_spatial_statistics<T, layout(), width()>; });
    case Operator::kScale:
      return typed.pass("channel_spatial_scale", Scale<T>{typed.one_map(), typed.gates(), call.merge, call.skip}, {},
                        {}, [](auto layout, auto width) { return channel_spatial_scale<T, layout(), width()>; });
    case Operator::kGradGates:
      return typed.pass("channel_spatial_grad_gates", GradGates<T>{typed.two_maps(), typed.gates(), call.merge},
                        {by_channel, channels, 1}, {by_pixel, pixels, 1},
                        [](auto layout, auto width) { return channel_spatial_grad_gates<T, layout(), width()>; });
    case Operator::kGradChannelGate:
      return typed.pass(
          "channel_spatial_grad_channel_gate",
          GradChannelGate<T>{typed.two_maps(), typed.numbers(t.channel_gate), channels, typed.pixel_back(), call.share},
          {by_channel, channels, 1}, {},
          [](auto layout, auto width) { return channel_spatial_grad_channel_gate<T, layout(), width()>; });
    case Operator::kGradX: {
      GradX<T> formula{typed.two_maps(), typed.channel_back(), typed.pixel_back(), call.share, call.skip};
      if (!call.share || !(t.statistics || call.maxima())) formula.x = nullptr;  // nothing is compared with it
      return typed.pass("channel_spatial_grad_x", formula, {}, {},
                        [](auto layout, auto width) { return channel_spatial_grad_x<T, layout(), width()>; });
    }
    default:
      return typed.pass(
          "channel_spatial_grad_concurrent",
          GradConcurrent<T>{typed.two_maps(), typed.numbers(t.channel_gate), typed.numbers(t.grad_means),
                            typed.numbers(t.spatial_gate), typed.numbers(t.grad_logits),
                            typed.elements(t.spatial_weight), channels, pixels, typed.pixels(), call.merge},
          {static_cast<T*>(t.channels_found)}, {},
          [](auto layout, auto width) { return channel_spatial_grad_concurrent<T, layout(), width()>; });
  }
}

}  // namespace

Result limits(gate::Limits& found) {
  Device device;
  const cudaError_t error = current_device(device);
  found = {device.compute_capability, device.multiprocessors, device.l2_bytes, device.dependent_launches};
  return result("the limits of the device", error);
}

Result run(DataType type, const Shape& shape, const Call& call, const matrix::Plan& plan, void* stream) {
  if (!shape.samples) return {};
  return dispatch(type, [&](auto zero) { return run_typed<decltype(zero)>({shape, call, plan, stream}); });
}

}  // namespace attnkernels::channel_spatial
