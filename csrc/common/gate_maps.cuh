// What the ops that scale a map by gates sum and map: their Sources and Maps (common/traverse.cuh), which stay within
// one sample.
#pragma once
#include "common/pointwise.cuh"
#include "common/traverse.cuh"

namespace attnkernels::gate {

// Whether the pointers (null: not there) lie equally far past a 128-bit boundary.
template <class T, class... Others>
bool equally_aligned(const T* first, const Others*... others) {
  return (... && (!others || misalignment(others) == misalignment(first)));
}

// x
template <class T>
struct PoolSource {
  using acc_t = acc_type<T>;
  static constexpr int kWidth = kVectorWidth<T>, kInFlight = 4;
  const T* x;
  bool vectorised;

  __device__ int misaligned() const { return misalignment(x); }
  __device__ PoolSource moved(int64_t offset) const { return {x + offset, vectorised}; }

  template <int kW>
  __device__ Vector<T, kW> fetch(int64_t i) const {
    return load<kW>(x + i);
  }
  template <int kW>
  __device__ void add(const Vector<T, kW>& loaded, acc_t (&sums)[kW]) const {
#pragma unroll
    for (int k = 0; k < kW; ++k) sums[k] += loaded.get(k);
  }
};

// The elements of dz = grad_y, or 0 where the output activation clipped: y <= 0 (a NaN passes the gradient, as in
// torch)
template <class T, int kW>
__device__ __forceinline__ Vector<T, kW> clipped(Vector<T, kW> grad, const Vector<T, kW>& y, bool clip) {
  if (clip) {
#pragma unroll
    for (int k = 0; k < kW; ++k)
      if (y.get(k) <= acc_type<T>(0)) grad.set_zero(k);
  }
  return grad;
}

// dz x
template <class T>
struct GradSource {
  using acc_t = acc_type<T>;
  static constexpr int kWidth = kVectorWidth<T>, kInFlight = 2;
  const T *grad_y, *x, *y;  // y: null without output activation
  Reuse x_reuse;
  bool vectorised;

  template <int kW>
  struct Loaded {
    Vector<T, kW> grad, x, y;
  };
  __device__ int misaligned() const { return misalignment(x); }
  __device__ GradSource moved(int64_t offset) const {
    return {grad_y + offset, x + offset, y ? y + offset : nullptr, x_reuse, vectorised};
  }

  template <int kW>
  __device__ Loaded<kW> fetch(int64_t i) const {
    Loaded<kW> loaded{load<kW>(grad_y + i), load<kW>(x + i, x_reuse), {}};
    if (y) loaded.y = load<kW>(y + i);
    return loaded;
  }
  template <int kW>
  __device__ void add(const Loaded<kW>& loaded, acc_t (&sums)[kW]) const {
    const auto dz = clipped(loaded.grad, loaded.y, y != nullptr);
#pragma unroll
    for (int k = 0; k < kW; ++k) sums[k] += dz.get(k) * loaded.x.get(k);
  }
};

// y = output_activation(x scale + residual)
template <class T, bool kResidual>
struct ScaleMap {
  using acc_t = acc_type<T>;
  static constexpr int kWidth = kVectorWidth<T>, kInFlight = kResidual ? 2 : 4;
  const T *x, *residual;  // residual: null without kResidual
  T* y;
  bool clip;  // the output activation is ReLU
  Reuse reuse;
  bool vectorised;

  template <int kW>
  struct Loaded {
    Vector<T, kW> x, residual;
  };
  __device__ int misaligned() const { return misalignment(y); }
  __device__ ScaleMap moved(int64_t offset) const {
    return {x + offset, kResidual ? residual + offset : nullptr, y + offset, clip, reuse, vectorised};
  }
  template <int kW>
  __device__ Loaded<kW> fetch(int64_t i) const {
    Loaded<kW> loaded{load<kW, Reuse::kOnce>(x + i), {}};
    if constexpr (kResidual) loaded.residual = load<kW, Reuse::kOnce>(residual + i);
    return loaded;
  }
  template <int kW, class Coefficients>
  __device__ void apply(int64_t i, const Loaded<kW>& loaded, const Coefficients& coefficients) const {
    acc_t values[kW];
#pragma unroll
    for (int k = 0; k < kW; ++k) {
      values[k] = loaded.x.get(k) * coefficients.scale(k);
      if constexpr (kResidual) values[k] += loaded.residual.get(k);
      if (clip) values[k] = relu(values[k]);
    }
    Vector<T, kW> result;
    result.set(values);
    store(y + i, result, reuse);
  }
};

// grad_x = dz scale + shift, grad_residual = dz
template <class T, bool kClip>
struct GradMap {
  using acc_t = acc_type<T>;
  static constexpr int kWidth = kVectorWidth<T>, kInFlight = kClip ? 2 : 4;
  const T *grad_y, *y;        // y: null without kClip
  T *grad_x, *grad_residual;  // or null
  Reuse reuse;
  bool vectorised;

  template <int kW>
  struct Loaded {
    Vector<T, kW> grad, y;
  };
  __device__ int misaligned() const { return misalignment(grad_x ? grad_x : grad_residual); }
  __device__ GradMap moved(int64_t offset) const {
    return {grad_y + offset,
            kClip ? y + offset : nullptr,
            grad_x ? grad_x + offset : nullptr,
            grad_residual ? grad_residual + offset : nullptr,
            reuse,
            vectorised};
  }
  template <int kW>
  __device__ Loaded<kW> fetch(int64_t i) const {
    Loaded<kW> loaded{load<kW, Reuse::kOnce>(grad_y + i), {}};
    if constexpr (kClip) loaded.y = load<kW, Reuse::kOnce>(y + i);
    return loaded;
  }
  template <int kW, class Coefficients>
  __device__ void apply(int64_t i, const Loaded<kW>& loaded, const Coefficients& coefficients) const {
    const auto dz = clipped(loaded.grad, loaded.y, kClip);
    if (grad_residual) store(grad_residual + i, dz, reuse);
    if (!grad_x) return;
    acc_t values[kW];
#pragma unroll
    for (int k = 0; k < kW; ++k) values[k] = dz.get(k) * coefficients.scale(k) + coefficients.shift(k);
    Vector<T, kW> result;
    result.set(values);
    store(grad_x + i, result, reuse);
  }
};

}  // namespace attnkernels::gate
