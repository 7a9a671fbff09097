// What is summed and what is mapped: the Sources and Maps (common/traverse.cuh) of squeeze_excite. Their pointers are
// those of one sample.
#pragma once
#include "common/pointwise.cuh"
#include "common/traverse.cuh"
#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

// Whether the pointers (null: not there) lie equally far past a 128-bit boundary.
template <class T, class... Others>
bool equally_aligned(const T* first, const Others*... others) {
  return (... && (!others || misalignment(others) == misalignment(first)));
}

// x
template <class T>
struct PoolSource {
  using Sum = accumulate_t<T>;
  static constexpr int kWidth = kVectorWidth<T>;
  const T* x;
  bool vectorised;
  T* kept = nullptr;  // copy of x in shared memory, from element kept_first on
  int64_t kept_first = 0;

  static constexpr int kOperands = 1;
  // This source, keeping a copy of the elements from `begin` on that is aligned as they are.
  __device__ PoolSource keeping(T* buffer, int64_t, int64_t begin) const {
    return {x, vectorised, buffer + misaligned(begin), begin};
  }
  __device__ PoolSource resident() const { return {kept, vectorised}; }

  __device__ int misaligned(int64_t i) const { return misalignment(x + i); }
  template <int kW>
  __device__ Vector<T, kW> fetch(int64_t i, int64_t = 0) const {
    return load<kW>(x + i);
  }
  template <int kW>
  __device__ void add(const Vector<T, kW>& loaded, Sum (&sums)[kW]) const {
#pragma unroll
    for (int k = 0; k < kW; ++k) sums[k] += widen(loaded.values[k]);
  }
  template <int kW>
  __device__ void keep(const Vector<T, kW>& loaded, int64_t local) const {
    if (kept) store(kept + local, loaded);
  }
};

template <class T, int kW>
struct GradPair {
  Vector<T, kW> grad, x;
};

// dz x, where dz = grad_y, or 0 where the output activation clipped: y <= 0
template <class T>
struct GradSource {
  using Sum = accumulate_t<T>;
  static constexpr int kWidth = kVectorWidth<T>;
  const T* grad_y;
  const T* x;
  const T* y;  // null: no output activation
  bool vectorised;
  T* kept = nullptr;  // copy of dz in shared memory, from element kept_first on
  int64_t kept_first = 0;
  T* kept_x = nullptr;

  static constexpr int kOperands = 2;
  __device__ GradSource keeping(T* buffer, int64_t stride, int64_t begin) const {
    T* const copy = buffer + misaligned(begin);
    return {grad_y, x, y, vectorised, copy, begin, stride ? copy + stride : nullptr};
  }
  __device__ GradSource resident() const { return {kept, kept_x, nullptr, vectorised}; }

  __device__ int misaligned(int64_t i) const { return misalignment(x + i); }
  template <int kW>
  __device__ GradPair<T, kW> fetch(int64_t i, int64_t = 0) const {
    GradPair<T, kW> loaded{load<kW>(grad_y + i), load<kW>(x + i)};
    if (y) {
      const auto clipped = load<kW>(y + i);
#pragma unroll
      for (int k = 0; k < kW; ++k)
        if (widen(clipped.values[k]) <= Sum(0)) loaded.grad.values[k] = narrow<T>(0);
    }
    return loaded;
  }
  template <int kW>
  __device__ void add(const GradPair<T, kW>& loaded, Sum (&sums)[kW]) const {
#pragma unroll
    for (int k = 0; k < kW; ++k) sums[k] += widen(loaded.grad.values[k]) * widen(loaded.x.values[k]);
  }
  template <int kW>
  __device__ void keep(const GradPair<T, kW>& loaded, int64_t local) const {
    if (kept) store(kept + local, loaded.grad);
    if (kept_x) store(kept_x + local, loaded.x);
  }
};

// y = output_activation(x scale + residual)
template <class T>
struct ScaleMap {
  using Sum = accumulate_t<T>;
  static constexpr int kWidth = kVectorWidth<T>;
  const T* x;
  const T* residual;  // or null
  T* y;
  bool clip;  // the output activation is ReLU
  Reuse reuse;
  bool vectorised;
  bool x_in_shared = false;

  template <int kW>
  struct Loaded {
    Vector<T, kW> x, residual;
  };
  __device__ int misaligned(int64_t i) const { return misalignment(y + i); }
  template <int kW>
  __device__ Loaded<kW> fetch(int64_t i, int64_t local) const {
    Loaded<kW> loaded{x_in_shared ? load<kW>(x + local) : load<kW, Reuse::kOnce>(x + i), {}};
    if (residual) loaded.residual = load<kW, Reuse::kOnce>(residual + i);
    return loaded;
  }
  template <int kW>
  __device__ void apply(int64_t i, const Loaded<kW>& loaded, const Sum (&scale)[kW], const Sum (&)[kW]) const {
    Vector<T, kW> result;
#pragma unroll
    for (int k = 0; k < kW; ++k) {
      Sum value = widen(loaded.x.values[k]) * scale[k];
      if (residual) value += widen(loaded.residual.values[k]);
      result.values[k] = narrow<T>(clip ? relu(value) : value);
    }
    store(y + i, result, reuse);
  }
};

// grad_x = dz scale + shift, grad_residual = dz (dz as in GradSource)
template <class T>
struct GradMap {
  using Sum = accumulate_t<T>;
  static constexpr int kWidth = kVectorWidth<T>;
  const T* grad_y;
  const T* y;        // null: no output activation, or grad_y is dz
  T* grad_x;         // or null
  T* grad_residual;  // or null
  Reuse reuse;
  bool vectorised;
  bool grad_in_shared = false;

  __device__ int misaligned(int64_t i) const { return misalignment((grad_x ? grad_x : grad_residual) + i); }
  template <int kW>
  __device__ Vector<T, kW> fetch(int64_t i, int64_t local) const {
    auto loaded = grad_in_shared ? load<kW>(grad_y + local) : load<kW, Reuse::kOnce>(grad_y + i);
    if (y) {
      const auto clipped = load<kW, Reuse::kOnce>(y + i);
#pragma unroll
      for (int k = 0; k < kW; ++k)
        if (widen(clipped.values[k]) <= Sum(0)) loaded.values[k] = narrow<T>(0);
    }
    return loaded;
  }
  template <int kW>
  __device__ void apply(int64_t i, const Vector<T, kW>& dz, const Sum (&scale)[kW], const Sum (&shift)[kW]) const {
    if (grad_residual) store(grad_residual + i, dz, reuse);
    if (!grad_x) return;
    Vector<T, kW> result;
#pragma unroll
    for (int k = 0; k < kW; ++k) result.values[k] = narrow<T>(widen(dz.values[k]) * scale[k] + shift[k]);
    store(grad_x + i, result, reuse);
  }
};

// weight[k, j] input[k], for sums over the rows k of a weight
template <class T, class Input>
struct WeightSource {
  using Sum = accumulate_t<T>;
  static constexpr int kWidth = kVectorWidth<T>;
  const T* weight;
  Input input;  // input[k]: a pointer, or what computes the element

  template <int kW>
  struct Loaded {
    Vector<T, kW> weight;
    Sum input;
  };
  template <int kW>
  __device__ Loaded<kW> fetch(int64_t i, int64_t row) const {
    return {load<kW>(weight + i), input[row]};
  }
  template <int kW>
  __device__ void add(const Loaded<kW>& loaded, Sum (&sums)[kW]) const {
#pragma unroll
    for (int k = 0; k < kW; ++k) sums[k] += widen(loaded.weight.values[k]) * loaded.input;
  }
  template <int kW>
  __device__ void keep(const Loaded<kW>&, int64_t) const {}
};

}  // namespace attnkernels::squeeze_excite
