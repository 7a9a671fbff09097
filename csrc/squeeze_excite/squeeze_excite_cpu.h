// What the CPU binding hands to the kernels of squeeze_excite_simd.h. A is the accumulation type.
#pragma once
#include "common/simd.h"
#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

// Rows of `saved`: the means [C], the hidden pre-activations [rd], the gates [C].
template <class A>
struct Saved {
  A* data;
  int64_t channels, hidden;
  int64_t columns() const { return 2 * channels + hidden; }
  A* means(int64_t n) const { return data + n * columns(); }
  A* preactivations(int64_t n) const { return means(n) + channels; }
  A* gates(int64_t n) const { return means(n) + channels + hidden; }
};

// What is done to x first, in place: activation(x scale[c] + shift[c]).
template <class A>
struct Prologue {
  const A *scale, *shift;  // null: the activation alone
  InputActivation activation;
  bool changes_x() const { return scale || activation != InputActivation::kNone; }
};

template <class T>
struct Forward {
  using A = Accumulator<T>;
  Shape shape;
  bool single_layer;
  bool stream;           // y is large: written past the caches
  Prologue<A> prologue;  // where it changes x, y is x, and stream is false
  Parameters<T> parameters;
  const T *x, *residual;
  T* y;
  Saved<A> saved;
  A* hidden;  // [N, rd] activation(preactivations)
};

template <class T>
struct Backward {
  using A = Accumulator<T>;
  Shape shape;
  bool single_layer;
  bool stream;
  Parameters<T> parameters;
  const T *grad_y, *x, *y;  // y: null without output activation
  Saved<const A> saved;
  T *grad_x, *grad_residual;  // null: not wanted
  T *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;
  A *hidden, *grad_hidden;      // [N, rd] activation(preactivations), gradients to the preactivations
  A *grad_logits, *grad_means;  // [N, C] gradients to what the gates are made of; to the means, over H W
};

// The kernels of one level. Each works on a part: samples [n0, n1); of sample n the units [first, last), which are
// channels, or pixels when channels_last; the outputs [begin, end) of a layer.
template <class T>
struct Kernels {
  using A = Accumulator<T>;
  void (*pool)(const Forward<T>&, int64_t n, int64_t first, int64_t last, A* sums);
  void (*prologue_pool)(const Forward<T>&, int64_t n, int64_t first, int64_t last, A* sums);
  void (*reduce)(const Forward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*expand)(const Forward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*scale)(const Forward<T>&, int64_t n, int64_t first, int64_t last);
  void (*backward_pool)(const Backward<T>&, int64_t n, int64_t first, int64_t last, A* sums);
  void (*backward_gate)(const Backward<T>&, int64_t n0, int64_t n1);
  void (*backward_expand)(const Backward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*backward_reduce)(const Backward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*backward_scale)(const Backward<T>&, int64_t n, int64_t first, int64_t last);
  void (*backward_weights)(const Backward<T>&);
};

}  // namespace attnkernels::squeeze_excite
