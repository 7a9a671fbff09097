// What the torch bindings of ops that scale maps by gates share: the checks. The public functions call the operators
// before they check anything themselves, and explain a refusal afterwards: what is accepted here is what they accept.
#pragma once
#include "common/binding.h"
#include "common/gate.h"

namespace attnkernels {

using Optional = std::optional<Tensor>;

inline bool alike(const Tensor& tensor, const Tensor& x) {
  return tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device();
}

inline MapShape check_x(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x: expected a tensor [N, C, H, W], got ", x.dim(), " dimensions");
  return {x.size(0), x.size(1), x.size(2) * x.size(3), is_channels_last(x)};
}

inline void check_map(const char* op, const char* name, const Tensor& map, const Tensor& x) {
  STD_TORCH_CHECK(alike(map, x) && same_shape(map, x), op, ": ", name, ": expected shape, dtype and device of x");
}

// The weights of a fully connected layer, [rows, columns] or those of a convolution of 1 x 1, and its bias; of the dtype
// and device of the argument `like`.
inline void check_matrix(const char* op, const char* name, const Tensor& weight, int64_t rows, int64_t columns,
                         const Tensor& like, const char* like_name) {
  const bool of_convolution = weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1;
  STD_TORCH_CHECK(alike(weight, like) && (weight.dim() == 2 || of_convolution) && weight.size(0) == rows &&
                      weight.size(1) == columns,
                  op, ": ", name, ": expected ", rows, " x ", columns, " numbers of ", like_name, "'s dtype on ",
                  like_name, "'s device");
}
inline void check_vector(const char* op, const char* name, const Optional& bias, int64_t length, const Tensor& like,
                         const char* like_name) {
  STD_TORCH_CHECK(!bias || (alike(*bias, like) && bias->dim() == 1 && bias->size(0) == length), op, ": ", name,
                  ": expected ", length, " numbers of ", like_name, "'s dtype on ", like_name, "'s device");
}

// The integers that stand for two values each.
template <class... Integers>
void check_binary(const char* op, const char* names, Integers... values) {
  STD_TORCH_CHECK(((values == 0 || values == 1) && ...), op, ": ", names, ": expected 0 or 1");
}

// What the backward is given of the forward: `saved` [N, columns] and, with an output activation, y.
inline void check_kept(const char* op, const Tensor& saved, int64_t columns, const Optional& y,
                       OutputActivation activation, const Tensor& x) {
  STD_TORCH_CHECK(saved.scalar_type() == accumulation_dtype(x.scalar_type()) && saved.device() == x.device() &&
                      saved.numel() == x.size(0) * columns,
                  op, ": saved: expected what the forward gave, ", x.size(0), " x ", columns, " numbers");
  STD_TORCH_CHECK(y || activation == OutputActivation::kNone, op,
                  ": y: expected the output, as there is an output activation, got None");
  if (y) check_map(op, "y", *y, x);
}

}  // namespace attnkernels
