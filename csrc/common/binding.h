// What the torch bindings of every backend share: the stable-ABI headers, layouts, allocation, registration.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>
#include <optional>

// The CUDA bindings register for CUDA tensors, or, built against the host emulation, for CPU tensors in a namespace of
// their own: ATTNKERNELS_CUDA_LIBRARY_IMPL(m) { m.impl("op", TORCH_BOX(&op)); }
#ifdef ATTNKERNELS_EMULATED
#define ATTNKERNELS_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(attnkernels_emulated, CPU, m)
#else
#define ATTNKERNELS_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(attnkernels, CUDA, m)
#endif

namespace attnkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether a 4-D tensor is dense in the order N, H, W, C and not also in the order N, C, H, W.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  const auto size = x.sizes();
  const auto stride = x.strides();
  int64_t expected = 1;
  for (int axis : {1, 3, 2, 0}) {
    if (size[axis] != 1 && stride[axis] != expected) return false;
    expected *= size[axis];
  }
  return true;
}

// torch's own macro for this is younger than the oldest torch that we support.
inline void check_call(AOTITorchError error, const char* call) {
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, call, " failed");
}

inline bool same_shape(const Tensor& a, const Tensor& b) {  // the arrays of sizes have no == before torch 2.14
  return std::ranges::equal(a.sizes(), b.sizes());
}

// Whether a 4-D tensor is dense in the wanted order; of one channel or one pixel it is in both.
inline bool has_layout(const Tensor& x, bool channels_last) {
  if (!channels_last) return x.is_contiguous();
  return is_channels_last(x) || (x.is_contiguous() && (x.size(1) == 1 || x.size(2) * x.size(3) == 1));
}

// x itself where it is dense in the wanted order, a copy otherwise.
inline Tensor as_layout(const Tensor& x, bool channels_last) {
  if (has_layout(x, channels_last)) return x;
  return torch::stable::contiguous(
      x, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

inline Tensor contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(attnkernels::contiguous(*x)) : std::nullopt;
}

// An uninitialised tensor by the C shim: 0.8 us less than torch::stable::empty, which looks an operator up by its name.
// A small call allocates two to seven. NaN under emulation, so that what is read before it is written shows.
inline Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype, int32_t device_type,
                       int32_t device_index, bool channels_last) {
  const int64_t rank = shape.size();
  STD_TORCH_CHECK(channels_last ? rank == 4 : rank <= 8, "allocate: expected 4 axes, or at most 8 when contiguous");
  int64_t strides[8], expected = 1;
  for (int64_t i = 0; i < rank; ++i) {
    constexpr int64_t kChannelsLast[] = {1, 3, 2, 0};
    const int64_t axis = channels_last ? kChannelsLast[i] : rank - 1 - i;
    strides[axis] = expected;
    expected *= std::max<int64_t>(shape[axis], 1);
  }
  AtenTensorHandle handle;
  check_call(aoti_torch_empty_strided(rank, shape.data(), strides, int32_t(dtype), device_type, device_index, &handle),
             "aoti_torch_empty_strided");
  Tensor result(handle);
#ifdef ATTNKERNELS_EMULATED
  torch::stable::fill_(result, std::numeric_limits<double>::quiet_NaN());
#endif
  return result;
}

// The same on the device of `like`.
inline Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype, const Tensor& like,
                       bool channels_last = false) {
  int32_t device_type;
  check_call(aoti_torch_get_device_type(like.get(), &device_type), "aoti_torch_get_device_type");
  return allocate(shape, dtype, device_type, like.get_device_index(), channels_last);
}

// The dtype in which sums are held: double for double, float for everything else.
inline ScalarType accumulation_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace attnkernels
