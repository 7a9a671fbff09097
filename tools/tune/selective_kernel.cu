// What the launches of selective_kernel take on the GPU at hand, with feature maps divided among blocks as by default
// and in other ways; one line of JSON for each. Results are compared with float64 and computed three times. No torch.
#include <array>
#include <cstring>
#include <string>

#include "selective_kernel/selective_kernel_launch.h"
#include "tune/timing.cuh"

namespace attnkernels::tune {
namespace {

namespace sk = selective_kernel;
using T = __nv_bfloat16;

// Element (sample, channel, pixel) of a dense map.
__host__ __device__ int64_t element(const sk::Shape& shape, int64_t sample, int64_t channel, int64_t pixel) {
  const int64_t first = sample * shape.channels * shape.pixels;
  return first + (shape.channels_last ? pixel * shape.channels + channel : channel * shape.pixels + pixel);
}

// A block to a channel of a sample. x: the branches, one after the other.
__global__ void naive(sk::Shape shape, const T* x, const T* logits, const T* grad_y, const T* grad_pooled,
                      double* pooled, double* y, double* grad_logits, double* grads) {
  const int64_t channel = blockIdx.x % shape.channels, sample = blockIdx.x / shape.channels;
  const int64_t row = sample * shape.branches * shape.channels + channel;
  const int64_t size = shape.samples * shape.channels * shape.pixels;
  double weight[sk::kMaxBranches], total = 0, largest = -1e300;
  for (int m = 0; m < shape.branches; ++m) largest = fmax(largest, double(float(logits[row + m * shape.channels])));
  for (int m = 0; m < shape.branches; ++m)
    total += weight[m] = exp(double(float(logits[row + m * shape.channels])) - largest);
  __shared__ double sums[sk::kMaxBranches + 1];
  if (threadIdx.x <= sk::kMaxBranches) sums[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t pixel = threadIdx.x; pixel < shape.pixels; pixel += blockDim.x) {
    const int64_t at = element(shape, sample, channel, pixel);
    const double grad = double(float(grad_y[at]));
    double selected = 0;
    for (int m = 0; m < shape.branches; ++m) {
      const double value = double(float(x[m * size + at]));
      selected += weight[m] / total * value;
      atomicAdd(sums + sk::kMaxBranches, value);
      atomicAdd(sums + m, value * grad);
      grads[m * size + at] = weight[m] / total * grad +
                             double(float(grad_pooled[sample * shape.channels + channel])) / double(shape.pixels);
    }
    y[at] = selected;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double mean = 0;
    pooled[sample * shape.channels + channel] = sums[sk::kMaxBranches] / double(shape.pixels);
    for (int m = 0; m < shape.branches; ++m) mean += weight[m] / total * sums[m];
    for (int m = 0; m < shape.branches; ++m)
      grad_logits[row + m * shape.channels] = weight[m] / total * (sums[m] - mean);
  }
}

void problem(Timer& timer, const sk::Shape& shape, const std::string& name) {
  const int64_t size = shape.samples * shape.channels * shape.pixels, sums = shape.samples * shape.channels;
  Buffer<T> x(shape.branches * size), logits(shape.branches * sums), grad_y(size), grad_pooled(sums), pooled(sums),
      y(size), grad_logits(shape.branches * sums), grads(shape.branches * size);
  Buffer<float> weights(shape.branches * sums), partial(int64_t(4096) * shape.branches * shape.channels);
  Buffer<double> want_pooled(sums), want_y(size), want_grad_logits(shape.branches * sums),
      want_grads(shape.branches * size);
  fill(x, 1, 1);
  fill(logits, 2, 1);
  fill(grad_y, 3, 1);
  fill(grad_pooled, 4, 1);
  naive<<<unsigned(sums), 256>>>(shape, x.data(), logits.data(), grad_y.data(), grad_pooled.data(), want_pooled.data(),
                                 want_y.data(), want_grad_logits.data(), want_grads.data());
  TUNE_CHECK(cudaDeviceSynchronize());
  const int64_t row_stride = shape.row_length();
  const auto rows = [&](auto* data) {
    return sk::Rows<std::remove_pointer_t<decltype(data)>>{data, size / shape.samples, row_stride};
  };
  sk::Branches<const void> branches{};
  sk::Branches<void> grad_branches{};
  for (int m = 0; m < shape.branches; ++m) {
    branches.branch[m] = rows(static_cast<const void*>(x.data() + m * size));
    grad_branches.branch[m] = rows(static_cast<void*>(grads.data() + m * size));
  }
  const auto grad_rows = rows(static_cast<const void*>(grad_y.data()));
  const DataType type = DataType::kBFloat16;
  const auto report = [&](const char* what, const sk::Tuning& tuning, const Chain& call, auto& got, auto& want) {
    using Element = std::remove_pointer_t<decltype(got.data())>;
    std::vector<Element> first;
    bool repeats = true;
    for (int i = 0; i < 3; ++i) {
      got.poison();
      if (what[0] != 'g') weights.poison();
      partial.poison();
      call(nullptr);
      const std::vector<Element> now = got.host();
      if (i == 0) first = now;
      repeats &= std::memcmp(first.data(), now.data(), now.size() * sizeof(Element)) == 0;
    }
    std::printf(
        "{\"what\": \"%s\", \"shape\": \"%s\", \"sum_blocks\": %d, \"map_blocks\": %d, \"warm_us\": %.2f, "
        "\"cold_us\": %.2f, \"error\": %.2e, \"repeats\": %d}\n",
        what, name.c_str(), int(tuning.most_sum_blocks), int(tuning.most_map_blocks), timer.warm(call),
        timer.cold(call), difference(got, want), repeats);
    std::fflush(stdout);
  };
  for (const sk::Tuning& tuning : {sk::Tuning{}, {132, 396}, {528, 1056}, {1056, 2112}}) {
    report(
        "pool", tuning,
        [&](cudaStream_t stream) {
          const sk::Tiles tiles = sk::choose_sums(type, shape, branches, nullptr, tuning);
          check(sk::pool(type, shape, tiles, {branches, pooled.data(), partial.data()}, stream));
        },
        pooled, want_pooled);
    report(
        "select", tuning,
        [&](cudaStream_t stream) {
          check(sk::select(type, shape, {branches, logits.data(), weights.data(), rows(static_cast<void*>(y.data()))},
                           stream, tuning));
        },
        y, want_y);
    report(
        "grad_logits", tuning,
        [&](cudaStream_t stream) {
          const sk::Tiles tiles = sk::choose_sums(type, shape, branches, &grad_rows, tuning);
          check(sk::grad_logits(type, shape, tiles,
                                {grad_rows, branches, weights.data(), grad_logits.data(), partial.data()}, stream));
        },
        grad_logits, want_grad_logits);
    report(
        "grad_branches", tuning,
        [&](cudaStream_t stream) {
          check(sk::grad_branches(type, shape, {grad_rows, weights.data(), grad_pooled.data(), grad_branches}, stream,
                                  tuning));
        },
        grads, want_grads);
  }
}

}  // namespace
}  // namespace attnkernels::tune

int main() {
  using attnkernels::selective_kernel::Shape;
  attnkernels::tune::Timer timer;
  for (const bool channels_last : {false, true})
    for (const auto& [samples, channels, side] :
         {std::array{32, 128, 56}, {32, 256, 28}, {32, 512, 14}, {8, 128, 56}, {1, 128, 56}, {1, 512, 14}})
      attnkernels::tune::problem(timer, Shape{{samples, channels, int64_t(side) * side, channels_last}, 2},
                                 std::string(channels_last ? "nhwc " : "nchw ") + std::to_string(samples) + "x" +
                                     std::to_string(channels) + "x" + std::to_string(side));
}
