// The activations between the two fully connected layers.
#pragma once
#include "common/gate_layers.cuh"
#include "squeeze_excite/squeeze_excite_plan.h"

namespace attnkernels::squeeze_excite {

template <class A>
__device__ __forceinline__ A activate(A value, Activation activation) {
  return activation == Activation::kRelu ? relu(value) : silu(value);
}

// activation'(u); NaN passes the gradient on, as torch's threshold_backward
template <class A>
__device__ __forceinline__ A activation_derivative(A u, Activation activation) {
  return activation == Activation::kRelu ? (u <= A(0) ? A(0) : A(1)) : silu_derivative(u);
}

}  // namespace attnkernels::squeeze_excite
