// Launchers of the CUDA kernels of selective_kernel.
#include <type_traits>

#include "common/cuda_dispatch.cuh"
#include "selective_kernel/selective_kernel.cuh"
#include "selective_kernel/selective_kernel_launch.h"

namespace attnkernels::selective_kernel {
namespace {

template <class T, class Void>
Rows<T> typed(const Rows<Void>& rows) {
  return {static_cast<T*>(rows.data), rows.sample_stride, rows.row_stride};
}
template <class T, class Void>
Branches<T> typed(const Branches<Void>& branches) {
  Branches<T> result;
  for (int m = 0; m < kMaxBranches; ++m) result.branch[m] = typed<T>(branches.branch[m]);
  return result;
}

// The operands of a launch, to see how they are aligned.
struct Operands {
  Rows<const void> map[kMaxBranches + 1];
  int count = 0;

  template <class Void>
  void add(const Rows<Void>& x) {
    if (x.data) map[count++] = {x.data, x.sample_stride, x.row_stride};
  }
  template <class Void>
  void add(const Branches<Void>& x, const Shape& shape) {
    for (int m = 0; m < shape.branches; ++m) add(x.branch[m]);
  }
};

template <class T>
Tiles choose(const Shape& shape, const Operands& operands, bool other_aligned, int64_t most_blocks) {
  return choose_tiles(shape, kVectorWidth<T>,
                      other_aligned && vectorises(shape, sizeof(T), operands.map, operands.count), most_blocks);
}

// Coefficients are read as vectors beside those of pixels.
bool aligned_coefficients(const Shape& shape, const void* pointer) {
  return !shape.channels_last || reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

bool empty(const Shape& shape) { return !shape.samples || !shape.channels; }

// The launch that adds the splits' sums, right after the one that made them.
template <class... Parameters, class Arguments>
Result finish(const char* name, void (*kernel)(Parameters...), const Shape& shape, const Tiles& tiles, void* stream,
              const Arguments& arguments) {
  Device device;
  if (const cudaError_t error = current_device(device); error != cudaSuccess) return result(name, error);
  const int64_t blocks = shape.samples * ceil_div(shape.channels, tiles.finish_channels());
  return start(name, kernel, {blocks, kThreads, 0, device.dependent_launches}, stream, arguments);
}

// run(layout, branches) with whether the map is channels_last and how many branches a kernel is compiled for, as
// constants. Two branches are what models have: grad_logits of 32x512x14x14 takes 13.4 us so, and 21.6 with loops.
template <class Run>
Result specialise(const Shape& shape, Run run) {
  const auto with_layout = [&](auto channels_last) {
    return shape.branches == 2 ? run(channels_last, std::integral_constant<int, 2>())
                               : run(channels_last, std::integral_constant<int, 0>());
  };
  return shape.channels_last ? with_layout(std::true_type()) : with_layout(std::false_type());
}

template <class T>
size_t tile_bytes(const Shape& shape, const Tiles& tiles) {
  return shape.branches * tiles.channels * sizeof(acc_type<T>);
}

}  // namespace

Tiles choose_sums(DataType type, const Shape& shape, const Branches<const void>& branches,
                  const Rows<const void>* grad_y, const Tuning& tuning) {
  if (empty(shape)) return {};
  Operands operands;
  operands.add(branches, shape);
  if (grad_y) operands.add(*grad_y);
  return dispatch(type,
                  [&](auto zero) { return choose<decltype(zero)>(shape, operands, true, tuning.most_sum_blocks); });
}

Result pool(DataType type, const Shape& shape, const Tiles& tiles, const PoolTensors& tensors, void* stream) {
  if (empty(shape)) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const PoolArguments<T> a{typed<const T>(tensors.branches), static_cast<T*>(tensors.pooled),
                             static_cast<acc_type<T>*>(tensors.partial), shape, tiles};
    const Result done = specialise(shape, [&](auto channels_last, auto branches) {
      return start("selective_kernel_pool", selective_kernel_pool<T, channels_last(), branches()>,
                   {tiles.blocks(shape.samples), kThreads}, stream, a);
    });
    if (done.error || tiles.splits == 1) return done;
    return finish("selective_kernel_pool_finish", selective_kernel_pool_finish<T>, shape, tiles, stream, a);
  });
}

Result select(DataType type, const Shape& shape, const SelectTensors& tensors, void* stream, const Tuning& tuning) {
  if (empty(shape)) return {};
  Operands operands;
  operands.add(tensors.branches, shape);
  operands.add(tensors.y);
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const Tiles tiles = choose<T>(shape, operands, true, tuning.most_map_blocks);
    const SelectArguments<T> a{typed<const T>(tensors.branches),
                               static_cast<const T*>(tensors.logits),
                               static_cast<acc_type<T>*>(tensors.weights),
                               typed<T>(tensors.y),
                               shape,
                               tiles};
    return specialise(shape, [&](auto channels_last, auto branches) {
      return start("selective_kernel_select", selective_kernel_select<T, channels_last(), branches()>,
                   {tiles.blocks(shape.samples), kThreads, tile_bytes<T>(shape, tiles)}, stream, a);
    });
  });
}

Result grad_logits(DataType type, const Shape& shape, const Tiles& tiles, const GradLogitsTensors& tensors,
                   void* stream) {
  if (empty(shape)) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const GradLogitsArguments<T> a{typed<const T>(tensors.grad_y),
                                   typed<const T>(tensors.branches),
                                   static_cast<const acc_type<T>*>(tensors.weights),
                                   static_cast<T*>(tensors.grad_logits),
                                   static_cast<acc_type<T>*>(tensors.partial),
                                   shape,
                                   tiles};
    const Result done = specialise(shape, [&](auto channels_last, auto branches) {
      return start("selective_kernel_grad_logits", selective_kernel_grad_logits<T, channels_last(), branches()>,
                   {tiles.blocks(shape.samples), kThreads, tile_bytes<T>(shape, tiles)}, stream, a);
    });
    if (done.error || tiles.splits == 1) return done;
    return finish("selective_kernel_grad_logits_finish", selective_kernel_grad_logits_finish<T>, shape, tiles, stream,
                  a);
  });
}

Result grad_branches(DataType type, const Shape& shape, const GradBranchesTensors& tensors, void* stream,
                     const Tuning& tuning) {
  if (empty(shape)) return {};
  Operands operands;
  operands.add(tensors.grad_y);
  operands.add(tensors.grads, shape);
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned =
        aligned_coefficients(shape, tensors.weights) && aligned_coefficients(shape, tensors.grad_pooled);
    const Tiles tiles = choose<T>(shape, operands, aligned, tuning.most_map_blocks);
    const GradBranchesArguments<T> a{typed<const T>(tensors.grad_y),
                                     static_cast<const acc_type<T>*>(tensors.weights),
                                     static_cast<const T*>(tensors.grad_pooled),
                                     typed<T>(tensors.grads),
                                     shape,
                                     tiles};
    return start(
        "selective_kernel_grad_branches",
        shape.channels_last ? selective_kernel_grad_branches<T, true> : selective_kernel_grad_branches<T, false>,
        {tiles.blocks(shape.samples), kThreads}, stream, a);
  });
}

}  // namespace attnkernels::selective_kernel
