// What the torch bindings of the CUDA backends share: element types, the current device and stream, launch errors. Built
// with ATTNKERNELS_EMULATED they take CPU tensors and run the same kernels on the host.
#pragma once
#include <vector>

#include "common/binding.h"
#include "common/cuda_launch.h"
#ifdef ATTNKERNELS_EMULATED
#include "emulation/scheduler.h"
#endif
#include "layout/layout_launch.h"

namespace attnkernels {

inline DataType data_type(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DataType::kFloat;
    case ScalarType::Double:
      return DataType::kDouble;
    case ScalarType::Half:
      return DataType::kHalf;
    case ScalarType::BFloat16:
      return DataType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, float16 or bfloat16");
  }
}

inline void check_device(const char* op, const Tensor& x) {
#ifdef ATTNKERNELS_EMULATED
  STD_TORCH_CHECK(x.is_cpu(), op, ": expected a CPU tensor");
#else
  STD_TORCH_CHECK(x.is_cuda(), op, ": expected a CUDA tensor");
#endif
}

// After every launcher, while the memory that it was given is there.
inline void check_launch(const char* op, const Result& result) {
#ifdef ATTNKERNELS_EMULATED
  emulation::synchronize();
#endif
  STD_TORCH_CHECK(!result.error, op, ": ", result.kernel, ": ", result.error);
}

#ifdef ATTNKERNELS_EMULATED
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};
inline void* current_stream(const Tensor&) { return nullptr; }
#else
using torch::stable::accelerator::DeviceGuard;
inline void* current_stream(const Tensor& x) {
  void* stream = nullptr;
  check_call(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream), "aoti_torch_get_current_cuda_stream");
  return stream;
}
#endif

// Null where there is no tensor.
inline const void* input(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline void* output(const std::optional<Tensor>& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// Copies of feature maps [N, C, spatial axes...] into another layout, made together: torch takes ten times as long for
// one, and a launch for each.
class LayoutCopies {
 public:
  // x in that layout. Where `run` is what fills it, not before.
  Tensor copy(const Tensor& x, bool channels_last) {
    const MemoryFormat format = !channels_last ? MemoryFormat::Contiguous
                                : x.dim() == 5 ? MemoryFormat::ChannelsLast3d
                                               : MemoryFormat::ChannelsLast;
    const int64_t pixel_stride = stride_of_pixels(x);
    if (channels_last ? pixel_stride != 1 : !pixel_stride || x.stride(1) != 1)
      return torch::stable::contiguous(x, format);
    const Tensor result =
        torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
    const int64_t channels = x.size(1), pixels = x.numel() / x.size(0) / channels;
    copies_.push_back({.from = x.const_data_ptr(),
                       .to = result.mutable_data_ptr(),
                       .samples = x.size(0),
                       .rows = channels_last ? channels : pixels,
                       .columns = channels_last ? pixels : channels,
                       .sample_stride = x.stride(0),
                       .row_stride = channels_last ? x.stride(1) : pixel_stride});
    return result;
  }

  // The same only where x has another layout.
  Tensor as_layout(const Tensor& x, bool channels_last) {
    return has_layout(x, channels_last) ? x : copy(x, channels_last);
  }
  std::optional<Tensor> as_layout(const std::optional<Tensor>& x, bool channels_last) {
    return x ? std::optional<Tensor>(as_layout(*x, channels_last)) : std::nullopt;
  }

  void run(const char* op, const Tensor& like) {
    if (copies_.empty()) return;
    check_launch(op, layout::transpose(element_bytes(data_type(op, like)), copies_.data(), int(copies_.size()),
                                       current_stream(like)));
    copies_.clear();
  }

 private:
  using MemoryFormat = torch::headeronly::MemoryFormat;

  // Elements from a pixel to the next; 0 where that differs, or there are no two pixels or channels: torch's case.
  static int64_t stride_of_pixels(const Tensor& x) {
    if (x.dim() < 4 || x.dim() > 5 || !x.numel() || x.size(1) == 1) return 0;
    int64_t stride = 0, pixels = 1;
    for (int64_t axis = x.dim() - 1; axis > 1; --axis) {
      if (x.size(axis) == 1) continue;
      if (pixels == 1) stride = x.stride(axis);
      if (x.stride(axis) != stride * pixels) return 0;
      pixels *= x.size(axis);
    }
    return stride;
  }

  std::vector<layout::Transpose> copies_;
};

}  // namespace attnkernels
