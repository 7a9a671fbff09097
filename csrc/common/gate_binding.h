// Checks that the torch bindings of the ops share that scale a map by gates. A public function calls its operator before
// it checks anything itself, and explains a refusal afterwards: what is accepted here is what it accepts.
#pragma once
#include "common/binding.h"
#include "common/gate.h"

namespace attnkernels::gate {

inline bool alike(const Tensor& tensor, const Tensor& x) {
  return tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device();
}
inline void check_map(const char* op, const char* name, const Tensor& map, const Tensor& x) {
  STD_TORCH_CHECK(alike(map, x) && same_shape(map, x), op, ": ", name, ": expected shape, dtype and device of x");
}
inline MapShape checked_map(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x: expected a tensor [N, C, H, W], got ", x.dim(), " dimensions");
  return {x.size(0), x.size(1), x.size(2) * x.size(3), is_channels_last(x)};
}
inline void check_saved(const char* op, const Tensor& saved, const Tensor& x, int64_t columns) {
  STD_TORCH_CHECK(saved.scalar_type() == accumulation_dtype(x.scalar_type()) && saved.device() == x.device() &&
                      saved.numel() == x.size(0) * columns,
                  op, ": saved: expected what the forward gave, ", x.size(0), " x ", columns, " numbers");
}
// Of integers that stand for one of two values each.
template <class... Integers>
void check_choices(const char* op, Integers... values) {
  STD_TORCH_CHECK((... && (values == 0 || values == 1)), op, ": expected 0 or 1 for each option");
}

}  // namespace attnkernels::gate
