// Launchers of criss_cross_attention and its backward.
#include "criss_cross/criss_cross.cuh"
#include "criss_cross/criss_cross_dispatch.cuh"
#include "criss_cross/criss_cross_line_backward.cuh"
#include "criss_cross/criss_cross_line_forward.cuh"

namespace attnkernels::criss_cross {

namespace {

// Zeros where it tells nothing.
Device this_device() {
  Device device;
  return current_device(device) == cudaSuccess ? device : Device();
}

// Tiles of the instance that lines are in, which are not longer than the longest.
int line_tiles(int64_t pixels) {
  for (const int tiles : kLineTiles)
    if (pixels <= tiles * LineTile::kPixels) return tiles;
  return 0;
}

// run(integral_constant tiles) for lines of these pixels.
template <size_t kAt = 0, class Run>
Result with_line_tiles(int64_t pixels, Run run) {
  constexpr int kTiles = kLineTiles[kAt];
  if constexpr (kAt + 1 < std::size(kLineTiles)) {
    if (pixels > kTiles * LineTile::kPixels) return with_line_tiles<kAt + 1>(pixels, run);
  }
  return run(std::integral_constant<int, kTiles>{});
}

template <class T, int kStages>
Result launch_lines(const AttentionPass<T>& pass, int64_t samples, bool dependent, void* stream) {
  return with_line_tiles(pass.lines.length, [&](auto tiles) {
    const int64_t rests = tiles_of(pass.value_channels, kStages * LineTile::kChannels);
    LaunchConfig config;
    config.grid = dim3(unsigned(samples * pass.lines.count * rests));
    config.block = dim3(32 * tiles);
    config.shared_bytes = line_shared_bytes(tiles, kStages);
    config.dependent = dependent;
    config.stream = static_cast<cudaStream_t>(stream);
    return result("criss_cross_attention_line",
                  launch(config, criss_cross_attention_line<T, kStages, tiles>, pass, uint32_t(rests)));
  });
}

template <class T>
Result attention_pass(const AttentionPass<T>& pass, const Shape& shape, const ForwardPlan& plan, void* stream) {
  if constexpr (sizeof(T) == 2) {
    const bool dependent = plan.dependent && pass.before.sum;
    if (plan.line_channels == 128) return launch_lines<T, 2>(pass, shape.samples, dependent, stream);
    if (plan.line_channels == 256) return launch_lines<T, 4>(pass, shape.samples, dependent, stream);
  }
  // One tile at least: without channels too there is a log_sum_exp.
  const int64_t tiles = std::max<int64_t>(tiles_of(pass.value_channels, Tile<T>::kChannels), 1);
  return launch_pass<T>("criss_cross_attention_pass", criss_cross_attention_pass<T>, pass, shape, tiles, stream);
}

}  // namespace

namespace {

int64_t longest_line(const Shape& shape) { return std::max({shape.depth, shape.height, shape.width}); }

// Whether whole lines can be had in blocks with these shared bytes, so many of them to a line.
bool takes_lines(DataType type, const Shape& shape, std::initializer_list<const void*> inputs, size_t shared_bytes,
                 int64_t blocks) {
  const Device device = this_device();
  if (element_bytes(type) != 2 || device.compute_capability < 80 || !shape.pixels()) return false;
  if (shape.query_channels < 1 || shape.query_channels > LineTile::kChannels || shape.query_channels % 8) return false;
  if (shape.value_channels < 1 || shape.value_channels > 1 << 20 || shape.value_channels % 8) return false;
  for (const void* input : inputs)
    if (misalignment(static_cast<const char*>(input))) return false;
  const int64_t lines = shape.samples * shape.pixels() / std::min({shape.depth, shape.height, shape.width});
  return longest_line(shape) <= LineTile::kMostPixels && shared_bytes <= size_t(device.shared_bytes) &&
         lines * blocks < int64_t(1) << 31;
}

}  // namespace

bool fits_lines(DataType type, const AttentionForward<void, void>& arguments, int line_channels) {
  const Shape& shape = arguments.shape;
  return takes_lines(type, shape, {arguments.query, arguments.key, arguments.value},
                     line_shared_bytes(line_tiles(longest_line(shape)), line_channels / LineTile::kChannels),
                     tiles_of(shape.value_channels, line_channels));
}

bool fits_lines(DataType type, const AttentionBackward<void, void>& arguments) {
  return takes_lines(type, arguments.shape, {arguments.query, arguments.key, arguments.value, arguments.grad_out},
                     line_backward_shared_bytes(line_tiles(longest_line(arguments.shape))), 1);
}

ForwardPlan choose_forward(DataType type, const AttentionForward<void, void>& arguments) {
  // Wide blocks compute the energies half as often; not where half of the last one is empty (328 channels: 16.4
  // : 18.6).
  const auto padded = [&](int width) { return tiles_of(arguments.shape.value_channels, width) * width; };
  const int channels = kLineChannels[padded(kLineChannels[1]) == padded(kLineChannels[0])];
  return {fits_lines(type, arguments, channels) ? channels : 0, this_device().dependent_launches};
}

BackwardPlan choose_backward(DataType type, const AttentionBackward<void, void>& arguments) {
  return {fits_lines(type, arguments), this_device().dependent_launches};
}

Result attention(DataType type, const AttentionForward<void, void>& arguments, const ForwardPlan& plan, void* stream) {
  const Shape& shape = arguments.shape;
  const int64_t count = shape.samples * shape.pixels();
  if (!count) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using acc_t = acc_type<T>;
    AttentionPass<T> pass{};
    pass.query_channels = shape.query_channels;
    pass.value_channels = shape.value_channels;
    pass.query = static_cast<const T*>(arguments.query);
    pass.key = static_cast<const T*>(arguments.key);
    pass.value = static_cast<const T*>(arguments.value);
    pass.partial = partial_of<T>(arguments.out, arguments.partial_out);
    pass.log_sum_exp = static_cast<acc_t*>(arguments.log_sum_exp);
    acc_t* statistics = static_cast<acc_t*>(arguments.sum);
    return for_each_pass(shape, [&](const Lines& lines, Axis, bool, bool last) {
      pass.lines = lines;
      pass.before = pass.after;
      pass.after = last ? Statistics<acc_t>{} : Statistics<acc_t>{statistics, statistics + count};
      statistics += 2 * count;
      pass.out = last ? static_cast<T*>(arguments.out) : nullptr;
      pass.is_last = last;
      return attention_pass<T>(pass, shape, plan, stream);
    });
  });
}

namespace {

template <class T, bool kDerivative>
Result gradient(GradientPass<T> pass, const Shape& shape, void* result, void* workspace, void* stream) {
  const int64_t tiles = tiles_of(kDerivative ? pass.a_channels : pass.b_channels, Tile<T>::kChannels);
  pass.partial = partial_of<T>(result, workspace);
  return for_each_pass(shape, [&](const Lines& lines, Axis, bool first, bool last) {
    pass.lines = lines;
    pass.before = first ? nullptr : pass.partial;
    pass.result = last ? static_cast<T*>(result) : nullptr;
    return launch_pass<T>("criss_cross_gradient_pass", criss_cross_gradient_pass<T, kDerivative>, pass, shape, tiles,
                          stream);
  });
}

}  // namespace

namespace {

template <class T>
Result launch_gradient_lines(const GradientLinePass<T>& pass, int64_t samples, bool dependent, void* stream) {
  return with_line_tiles(pass.lines.length, [&](auto tiles) {
    LaunchConfig config;
    config.grid = dim3(unsigned(samples * pass.lines.count));
    config.block = dim3(line_backward_threads(tiles));
    config.shared_bytes = line_backward_shared_bytes(tiles);
    config.dependent = dependent;
    config.stream = static_cast<cudaStream_t>(stream);
    return result("criss_cross_gradient_line", launch(config, criss_cross_gradient_line<T, tiles>, pass));
  });
}

// All gradients by whole lines. The first pass is launched plainly: beside the delta's kernel its blocks would crowd on
// the multiprocessors that are free first (89 : 72 us at 97 x 97, 64 and 512 channels on an H100).
template <class T>
Result gradient_lines(const AttentionBackward<void, void>& arguments, bool dependent, void* stream) {
  GradientLinePass<T> pass{};
  pass.query_channels = arguments.shape.query_channels;
  pass.value_channels = arguments.shape.value_channels;
  pass.query = static_cast<const T*>(arguments.query);
  pass.key = static_cast<const T*>(arguments.key);
  pass.value = static_cast<const T*>(arguments.value);
  pass.grad_out = static_cast<const T*>(arguments.grad_out);
  pass.log_sum_exp = static_cast<const float*>(arguments.log_sum_exp);
  pass.delta = static_cast<const float*>(arguments.delta);
  pass.partial_query = static_cast<float*>(arguments.partial_grad_query);
  pass.partial_key = static_cast<float*>(arguments.partial_grad_key);
  pass.partial_value = static_cast<float*>(arguments.partial_grad_value);
  pass.grad_query = static_cast<T*>(arguments.grad_query);
  pass.grad_key = static_cast<T*>(arguments.grad_key);
  pass.grad_value = static_cast<T*>(arguments.grad_value);
  return for_each_pass(arguments.shape, [&](const Lines& lines, Axis, bool first, bool last) {
    pass.lines = lines;
    pass.is_first = first;
    pass.is_last = last;
    return launch_gradient_lines(pass, arguments.shape.samples, dependent && !first, stream);
  });
}

}  // namespace

Result attention_backward(DataType type, const AttentionBackward<void, void>& arguments, const BackwardPlan& plan,
                          void* stream) {
  const Shape& shape = arguments.shape;
  const int64_t count = shape.samples * shape.pixels();
  if (!count) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using acc_t = acc_type<T>;
    const T *query = static_cast<const T*>(arguments.query), *key = static_cast<const T*>(arguments.key),
            *value = static_cast<const T*>(arguments.value), *grad_out = static_cast<const T*>(arguments.grad_out);
    acc_t* const delta = static_cast<acc_t*>(arguments.delta);
    GradientPass<T> pass{};
    pass.a_channels = shape.query_channels;
    pass.b_channels = shape.value_channels;
    pass.log_sum_exp = static_cast<const acc_t*>(arguments.log_sum_exp);
    pass.delta = delta;
    Result done;
    if (arguments.grad_query || arguments.grad_key)
      done = launch_blocks("criss_cross_delta", tiles_of(count, kDeltaThreads / 32), kDeltaThreads, stream,
                           criss_cross_delta<T>, grad_out, static_cast<const T*>(arguments.out), delta, count,
                           shape.value_channels);
    if constexpr (sizeof(T) == 2) {
      if (plan.by_lines) return done.error ? done : gradient_lines<T>(arguments, plan.dependent, stream);
    }
    if (!done.error && arguments.grad_query) {
      pass.query_rows = true;
      pass.row_a = query, pass.column_a = key, pass.row_b = grad_out, pass.column_b = value;
      done = gradient<T, true>(pass, shape, arguments.grad_query, arguments.partial_grad_query, stream);
    }
    pass.query_rows = false;
    pass.row_a = key, pass.column_a = query, pass.row_b = value, pass.column_b = grad_out;
    if (!done.error && arguments.grad_key)
      done = gradient<T, true>(pass, shape, arguments.grad_key, arguments.partial_grad_key, stream);
    if (!done.error && arguments.grad_value)
      done = gradient<T, false>(pass, shape, arguments.grad_value, arguments.partial_grad_value, stream);
    return done;
  });
}

}  // namespace attnkernels::criss_cross
