// Launchers of criss_cross_attention and its backward.
#include "criss_cross/criss_cross.cuh"
#include "criss_cross/criss_cross_dispatch.cuh"
#include "criss_cross/criss_cross_line.cuh"

namespace attnkernels::criss_cross {

namespace {

// Of the current device: ten times the major compute capability plus the minor, and the shared bytes that a block may
// have. Zeros where it tells neither.
struct Device {
  int capability = 0, shared_bytes = 0;
};

Device current_device() {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return {};
#ifndef ATTNKERNELS_EMULATED  // where tests change the device
  thread_local int known_device = -1;
  thread_local Device known;
  if (device == known_device) return known;
#endif
  int major = 0, minor = 0, shared_bytes = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return {};
  const Device found{10 * major + minor, shared_bytes};
#ifndef ATTNKERNELS_EMULATED
  known_device = device;
  known = found;
#endif
  return found;
}

int64_t line_tiles(int64_t pixels) { return tiles_of(pixels, LineTile::kPixels); }

template <class T, int kStages, int kMostTiles>
Result launch_lines(const AttentionPass<T>& pass, int64_t samples, bool dependent, void* stream) {
  const int64_t rests = tiles_of(pass.value_channels, kStages * LineTile::kChannels);
  LaunchConfig config;
  config.grid = dim3(unsigned(samples * pass.lines.count * rests));
  config.block = dim3(unsigned(32 * line_tiles(pass.lines.length)));
  config.shared_bytes = LineTile::shared_bytes(line_tiles(pass.lines.length), kStages);
  config.dependent = dependent;
  config.stream = static_cast<cudaStream_t>(stream);
  return result("criss_cross_attention_line",
                launch(config, criss_cross_attention_line<T, kStages, kMostTiles>, pass, uint32_t(rests)));
}

// One instance of the registers for 112 pixels, which CCNet's crops of 769 and 97 need, one for what is longer.
template <class T, int kStages>
Result launch_lines(const AttentionPass<T>& pass, int64_t samples, bool dependent, void* stream) {
  return line_tiles(pass.lines.length) <= 7 ? launch_lines<T, kStages, 7>(pass, samples, dependent, stream)
                                            : launch_lines<T, kStages, 8>(pass, samples, dependent, stream);
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

bool fits_lines(DataType type, const AttentionForward<void, void>& arguments, int line_channels) {
  const Shape& shape = arguments.shape;
  const Device device = current_device();
  if (element_bytes(type) != 2 || device.capability < 80) return false;
  if (shape.query_channels < 1 || shape.query_channels > LineTile::kChannels || shape.query_channels % 8) return false;
  if (shape.value_channels < 1 || shape.value_channels > 1 << 20 || shape.value_channels % 8) return false;
  const int64_t longest = std::max({shape.depth, shape.height, shape.width});
  if (longest > LineTile::kMostPixels) return false;
  const int64_t lines = shape.samples * shape.pixels() / std::min({shape.depth, shape.height, shape.width});
  return LineTile::shared_bytes(line_tiles(longest), line_channels / LineTile::kChannels) <=
             size_t(device.shared_bytes) &&
         lines * tiles_of(shape.value_channels, line_channels) < int64_t(1) << 31;
}

ForwardPlan choose_forward(DataType type, const AttentionForward<void, void>& arguments) {
  // Wide blocks compute the energies half as often; not where half of the last one is empty (328 channels: 16.4
  // : 18.6).
  const auto padded = [&](int width) { return tiles_of(arguments.shape.value_channels, width) * width; };
  const int channels = kLineChannels[padded(kLineChannels[1]) == padded(kLineChannels[0])];
  return {fits_lines(type, arguments, channels) ? channels : 0, has_dependent_launches(current_device().capability)};
}

Result attention(DataType type, const AttentionForward<void, void>& arguments, const ForwardPlan& plan, void* stream) {
  const Shape& shape = arguments.shape;
  const int64_t count = shape.samples * shape.pixels();
  if (!count) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using Sum = accumulate_t<T>;
    AttentionPass<T> pass{};
    pass.query_channels = shape.query_channels;
    pass.value_channels = shape.value_channels;
    pass.query = static_cast<const T*>(arguments.query);
    pass.key = static_cast<const T*>(arguments.key);
    pass.value = static_cast<const T*>(arguments.value);
    pass.partial = partial_of<T>(arguments.out, arguments.partial_out);
    pass.log_sum_exp = static_cast<Sum*>(arguments.log_sum_exp);
    Sum* statistics = static_cast<Sum*>(arguments.sum);
    return for_each_pass(shape, [&](const Lines& lines, Axis, bool, bool last) {
      pass.lines = lines;
      pass.before = pass.after;
      pass.after = last ? Statistics<Sum>{} : Statistics<Sum>{statistics, statistics + count};
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

Result attention_backward(DataType type, const AttentionBackward<void, void>& arguments, void* stream) {
  const Shape& shape = arguments.shape;
  const int64_t count = shape.samples * shape.pixels();
  if (!count) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using Sum = accumulate_t<T>;
    const T *query = static_cast<const T*>(arguments.query), *key = static_cast<const T*>(arguments.key),
            *value = static_cast<const T*>(arguments.value), *grad_out = static_cast<const T*>(arguments.grad_out);
    Sum* const delta = static_cast<Sum*>(arguments.delta);
    GradientPass<T> pass{};
    pass.a_channels = shape.query_channels;
    pass.b_channels = shape.value_channels;
    pass.log_sum_exp = static_cast<const Sum*>(arguments.log_sum_exp);
    pass.delta = delta;
    Result done;
    if (arguments.grad_query || arguments.grad_key)
      done = launch_blocks("criss_cross_delta", tiles_of(count, kDeltaThreads / 32), kDeltaThreads, stream,
                           criss_cross_delta<T>, grad_out, static_cast<const T*>(arguments.out), delta, count,
                           shape.value_channels);
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
