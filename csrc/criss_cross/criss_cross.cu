// Launchers of criss_cross_attention and its backward.
#include "criss_cross/criss_cross.cuh"
#include "criss_cross/criss_cross_dispatch.cuh"

namespace attnkernels::criss_cross {

Result attention(DataType type, const AttentionForward<void, void>& arguments, void* stream) {
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
    // One tile at least: without channels too there is a log_sum_exp.
    const int64_t tiles = std::max<int64_t>(tiles_of(shape.value_channels, Tile<T>::kChannels), 1);
    return for_each_pass(shape, [&](const Lines& lines, Axis, bool, bool last) {
      pass.lines = lines;
      pass.before = pass.after;
      pass.after = last ? Statistics<Sum>{} : Statistics<Sum>{statistics, statistics + count};
      statistics += 2 * count;
      pass.out = last ? static_cast<T*>(arguments.out) : nullptr;
      pass.is_last = last;
      return launch_pass<T>("criss_cross_attention_pass", criss_cross_attention_pass<T>, pass, shape, tiles, stream);
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
