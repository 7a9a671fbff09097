// The arguments of the squeeze_excite kernels and the integers of its schema; shared by every C++ backend, no torch.
#pragma once
#include "common/gate.h"

namespace attnkernels::squeeze_excite {

// attnkernels/ops/squeeze_excite/schema.py has the same values.
enum class Activation : int { kRelu = 0, kSilu = 1 };
// Bit i of `needs` stands for input i. The weights' gradients come from one pass: any of their bits asks for it.
enum Needs : int { kNeedsX = 0b000001, kNeedsWeights = 0b011110, kNeedsResidual = 0b100000 };

// x, y and residual are dense in one layout.
struct Shape : MapShape {
  int64_t hidden;  // rd; 0: single-layer excitation
  Activation activation;
  Gate gate;
  OutputActivation output_activation;
  bool constant_gates = false;  // a hidden layer without rows: expand_weight is [C, 0], and gates = gate(expand_bias)

  // Columns of expand_weight.
  constexpr int64_t gate_inputs() const { return hidden || constant_gates ? hidden : channels; }
  // means [C], hidden pre-activations [rd], gates [C]
  constexpr int64_t saved_columns() const { return 2 * channels + hidden; }
};

template <class T>
struct Parameters {
  const T* reduce_weight;  // [rd, C], null: single-layer excitation
  const T* reduce_bias;    // [rd] or null
  const T* expand_weight;  // [C, gate_inputs()]: rd, or C in the single-layer excitation
  const T* expand_bias;    // [C] or null
};

}  // namespace attnkernels::squeeze_excite
