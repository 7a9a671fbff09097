// What the CPU binding hands to the kernels of squeeze_excite_simd.h, beside the maps (cpu_gate.h). A is the accumulation type.
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

template <class T>
struct Forward {
  using A = Accumulator<T>;
  Shape shape;
  bool single_layer;
  Parameters<T> parameters;
  Saved<A> saved;
  A* hidden;  // [N, rd] activation(preactivations)
};

template <class T>
struct Backward {
  using A = Accumulator<T>;
  Shape shape;
  bool single_layer;
  Parameters<T> parameters;
  Saved<const A> saved;
  T *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;
  A *hidden, *grad_hidden;      // [N, rd] activation(preactivations), gradients to the preactivations
  A *grad_logits, *grad_means;  // [N, C] gradients to what the gates are made of; to the means, over H W
};

// The layers of one level. Each works on a part: samples [n0, n1), and the outputs [begin, end) of a layer.
template <class T>
struct Kernels {
  using A = Accumulator<T>;
  void (*reduce)(const Forward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*expand)(const Forward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*backward_gate)(const Backward<T>&, int64_t n0, int64_t n1);
  void (*backward_expand)(const Backward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*backward_reduce)(const Backward<T>&, int64_t n0, int64_t n1, int64_t begin, int64_t end);
  void (*backward_weights)(const Backward<T>&);
};

}  // namespace attnkernels::squeeze_excite
