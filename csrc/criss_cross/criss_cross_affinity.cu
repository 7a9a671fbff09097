// Launchers of criss_cross_affinity, criss_cross_aggregate and their backwards.
#include "criss_cross/criss_cross_affinity.cuh"
#include "criss_cross/criss_cross_dispatch.cuh"

namespace attnkernels::criss_cross {
namespace {

Entries entries_of(const Shape& shape, Axis axis) {
  const bool is_column = axis != Axis::kWidth;
  return {shape.affinity_channels(), is_column ? shape.width : 0, is_column};
}

Result scores(DataType type, const Shape& shape, int64_t channels, const void* a, const void* b, void* affinity,
              void* stream) {
  if (!shape.samples || !shape.pixels()) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    return for_each_pass(shape, [&](const Lines& lines, Axis axis, bool, bool) {
      const ScoresPass<T> pass{lines,
                               entries_of(shape, axis),
                               channels,
                               static_cast<const T*>(a),
                               static_cast<const T*>(b),
                               static_cast<T*>(affinity)};
      return launch_pass<T>("criss_cross_scores_pass", criss_cross_scores_pass<T>, pass, shape,
                            tiles_of(lines.length, Tile<T>::kColumns), stream);
    });
  });
}

Result apply(DataType type, const Shape& shape, int64_t channels, bool query_rows, const void* affinity,
             const void* map, void* result, void* workspace, void* stream) {
  if (!shape.samples || !shape.pixels()) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    ApplyPass<T> pass{};
    pass.query_rows = query_rows;
    pass.channels = channels;
    pass.affinity = static_cast<const T*>(affinity);
    pass.map = static_cast<const T*>(map);
    pass.partial = partial_of<T>(result, workspace);
    return for_each_pass(shape, [&](const Lines& lines, Axis axis, bool first, bool last) {
      pass.lines = lines;
      pass.entries = entries_of(shape, axis);
      pass.before = first ? nullptr : pass.partial;
      pass.result = last ? static_cast<T*>(result) : nullptr;
      return launch_pass<T>("criss_cross_apply_pass", criss_cross_apply_pass<T>, pass, shape,
                            tiles_of(channels, Tile<T>::kChannels), stream);
    });
  });
}

}  // namespace

Result affinity(DataType type, const Affinity<void>& arguments, void* stream) {
  return scores(type, arguments.shape, arguments.shape.query_channels, arguments.query, arguments.key,
                arguments.affinity, stream);
}

Result affinity_backward(DataType type, const AffinityBackward<void, void>& arguments, void* stream) {
  const auto gradient = [&](bool query_rows, const void* map, void* result, void* workspace) {
    return result ? apply(type, arguments.shape, arguments.shape.query_channels, query_rows, arguments.grad_affinity,
                          map, result, workspace, stream)
                  : Result{};
  };
  const Result done = gradient(true, arguments.key, arguments.grad_query, arguments.partial_grad_query);
  if (done.error) return done;
  return gradient(false, arguments.query, arguments.grad_key, arguments.partial_grad_key);
}

Result aggregate(DataType type, const Aggregate<void, void>& arguments, void* stream) {
  return apply(type, arguments.shape, arguments.shape.value_channels, true, arguments.affinity, arguments.value,
               arguments.out, arguments.partial_out, stream);
}

Result aggregate_backward(DataType type, const AggregateBackward<void, void>& arguments, void* stream) {
  const int64_t channels = arguments.shape.value_channels;
  Result done;
  if (arguments.grad_affinity)
    done =
        scores(type, arguments.shape, channels, arguments.grad_out, arguments.value, arguments.grad_affinity, stream);
  if (!done.error && arguments.grad_value)
    done = apply(type, arguments.shape, channels, false, arguments.affinity, arguments.grad_out, arguments.grad_value,
                 arguments.partial_grad_value, stream);
  return done;
}

}  // namespace attnkernels::criss_cross
