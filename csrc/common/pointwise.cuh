// Activations, gates and their derivatives, on accumulation types; NaN goes through as in torch.
#pragma once
#include "common/gate.h"
#include "common/language.cuh"

namespace attnkernels {

// nvcc's expf is the accurate one: the build never uses --use_fast_math.
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

template <class A>
__device__ __forceinline__ A relu(A x) {
  return x < A(0) ? A(0) : x;
}

// clamp((x + 3) / 6, 0, 1)
template <class A>
__device__ __forceinline__ A hard_sigmoid(A x) {
  const A shifted = x + A(3);
  return (shifted < A(0) ? A(0) : shifted > A(6) ? A(6) : shifted) / A(6);
}

template <class A>
__device__ __forceinline__ A silu(A x) {
  return x * sigmoid(x);
}

template <class A>
__device__ __forceinline__ A silu_derivative(A x) {
  const A s = sigmoid(x);
  return s * (A(1) + x * (A(1) - s));
}

template <class A>
__device__ __forceinline__ A open_gate(A value, Gate gate) {
  return gate == Gate::kSigmoid ? sigmoid(value) : hard_sigmoid(value);
}

// gate'(v) from g = gate(v)
template <class A>
__device__ __forceinline__ A gate_derivative(A g, Gate gate) {
  if (gate == Gate::kSigmoid) return g * (A(1) - g);
  return g > A(0) && g < A(1) ? A(1) / A(6) : A(0);
}

}  // namespace attnkernels
