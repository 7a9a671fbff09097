// Which plans run criss_cross_attention and its backward fastest on the GPU at hand, and what copies into another
// layout take; one line of JSON for each. Results are compared with float64 and computed three times. No torch.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "criss_cross/criss_cross_launch.h"
#include "layout/layout_launch.h"
#include "tune/timing.cuh"

namespace attnkernels::tune {
namespace {

namespace cc = criss_cross;
using T = __nv_bfloat16;

// A block to a pixel: energies, then channels.
__global__ void naive_attention(const T* query, const T* key, const T* value, double* out, double* log_sum_exp,
                                int height, int width, int query_channels, int channels) {
  __shared__ double weight[1024];
  const int64_t pixel = blockIdx.x, plane = int64_t(height) * width, first = pixel / plane * plane;
  const int h = int(pixel % plane) / width, w = int(pixel % plane) % width, keys = height + width - 1;
  const auto key_pixel = [&](int k) {
    return first + (k < width ? int64_t(h) * width + k : int64_t(k - width + (k - width >= h)) * width + w);
  };
  for (int k = threadIdx.x; k < keys; k += blockDim.x) {
    double sum = 0;
    for (int c = 0; c < query_channels; ++c)
      sum += double(float(query[pixel * query_channels + c])) * double(float(key[key_pixel(k) * query_channels + c]));
    weight[k] = sum;
  }
  __syncthreads();
  double largest = -INFINITY, total = 0;
  for (int k = 0; k < keys; ++k) largest = fmax(largest, weight[k]);
  __syncthreads();
  for (int k = threadIdx.x; k < keys; k += blockDim.x) weight[k] = exp(weight[k] - largest);
  __syncthreads();
  for (int k = 0; k < keys; ++k) total += weight[k];
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    double sum = 0;
    for (int k = 0; k < keys; ++k) sum += weight[k] * double(float(value[key_pixel(k) * channels + c]));
    out[pixel * channels + c] = sum / total;
  }
  if (threadIdx.x == 0) log_sum_exp[pixel] = largest + log(total);
}

// A block to a pixel: its gradients of energies, then channels; the sums of keys are atomic. Out and log_sum_exp are
// those that the kernels under test are given.
__global__ void naive_backward(const T* grad_out, const T* query, const T* key, const T* value, const T* out,
                               const float* log_sum_exp, double* grad_query, double* grad_key, double* grad_value,
                               int height, int width, int query_channels, int channels) {
  __shared__ double weight[1024], gradient[1024];
  const int64_t pixel = blockIdx.x, plane = int64_t(height) * width, first = pixel / plane * plane;
  const int h = int(pixel % plane) / width, w = int(pixel % plane) % width, keys = height + width - 1;
  const auto key_pixel = [&](int k) {
    return first + (k < width ? int64_t(h) * width + k : int64_t(k - width + (k - width >= h)) * width + w);
  };
  const auto number = [](T x) { return double(float(x)); };
  double delta = 0;
  for (int c = 0; c < channels; ++c)
    delta += number(grad_out[pixel * channels + c]) * number(out[pixel * channels + c]);
  for (int k = threadIdx.x; k < keys; k += blockDim.x) {
    double energy = 0, product = 0;
    for (int c = 0; c < query_channels; ++c)
      energy += number(query[pixel * query_channels + c]) * number(key[key_pixel(k) * query_channels + c]);
    for (int c = 0; c < channels; ++c)
      product += number(grad_out[pixel * channels + c]) * number(value[key_pixel(k) * channels + c]);
    weight[k] = exp(energy - double(log_sum_exp[pixel]));
    gradient[k] = weight[k] * (product - delta);
  }
  __syncthreads();
  for (int c = threadIdx.x; c < query_channels; c += blockDim.x) {
    double sum = 0;
    for (int k = 0; k < keys; ++k) {
      sum += gradient[k] * number(key[key_pixel(k) * query_channels + c]);
      atomicAdd(grad_key + key_pixel(k) * query_channels + c, gradient[k] * number(query[pixel * query_channels + c]));
    }
    grad_query[pixel * query_channels + c] = sum;
  }
  for (int c = threadIdx.x; c < channels; c += blockDim.x)
    for (int k = 0; k < keys; ++k)
      atomicAdd(grad_value + key_pixel(k) * channels + c, weight[k] * number(grad_out[pixel * channels + c]));
}

// The backward of a forward whose results are in out and log_sum_exp.
void attention_backward(Timer& timer, const cc::Shape& shape, const std::string& name, const Buffer<T>& query,
                        const Buffer<T>& key, const Buffer<T>& value, const Buffer<T>& out,
                        const Buffer<float>& log_sum_exp) {
  Buffer<T> grad_out(out.count()), grad_query(query.count()), grad_key(key.count()), grad_value(value.count());
  Buffer<float> delta(log_sum_exp.count()), partial_query(query.count()), partial_key(key.count()),
      partial_value(value.count());
  Buffer<double> want_query(query.count()), want_key(key.count()), want_value(value.count());
  fill(grad_out, 4, 1);
  for (Buffer<double>* want : {&want_query, &want_key, &want_value})
    TUNE_CHECK(cudaMemset(want->data(), 0, want->count() * sizeof(double)));
  naive_backward<<<unsigned(log_sum_exp.count()), 256>>>(
      grad_out.data(), query.data(), key.data(), value.data(), out.data(), log_sum_exp.data(), want_query.data(),
      want_key.data(), want_value.data(), int(shape.height), int(shape.width), int(shape.query_channels),
      int(shape.value_channels));
  TUNE_CHECK(cudaDeviceSynchronize());
  const auto arguments = [&](int needs) {
    return cc::AttentionBackward<void, void>{shape,
                                             grad_out.data(),
                                             query.data(),
                                             key.data(),
                                             value.data(),
                                             out.data(),
                                             log_sum_exp.data(),
                                             delta.data(),
                                             needs & 1 ? grad_query.data() : nullptr,
                                             needs & 2 ? grad_key.data() : nullptr,
                                             needs & 4 ? grad_value.data() : nullptr,
                                             partial_query.data(),
                                             partial_key.data(),
                                             partial_value.data()};
  };
  const auto call = [&](const cc::BackwardPlan& plan, int needs) -> Chain {
    return [&, plan, needs](cudaStream_t stream) {
      check(cc::attention_backward(DataType::kBFloat16, arguments(needs), plan, stream));
    };
  };
  for (const cc::BackwardPlan plan : {cc::BackwardPlan{false, false}, {true, false}, {true, true}, {false, false}}) {
    if (plan.by_lines && !cc::fits_lines(DataType::kBFloat16, arguments(7))) continue;
    std::vector<T> first[3];
    bool repeats = true;
    for (int i = 0; i < 3; ++i) {
      for (Buffer<T>* grad : {&grad_query, &grad_key, &grad_value}) grad->poison();
      for (Buffer<float>* partial : {&delta, &partial_query, &partial_key, &partial_value}) partial->poison();
      call(plan, 7)(nullptr);
      const std::vector<T> got[3] = {grad_query.host(), grad_key.host(), grad_value.host()};
      for (int g = 0; g < 3; ++g) {
        if (i == 0) first[g] = got[g];
        repeats &= std::memcmp(first[g].data(), got[g].data(), got[g].size() * sizeof(T)) == 0;
      }
    }
    const double errors[3] = {difference(grad_query, want_query), difference(grad_key, want_key),
                              difference(grad_value, want_value)};
    std::printf(
        "{\"what\": \"attention backward\", \"shape\": \"%s\", \"by_lines\": %d, \"dependent\": %d, "
        "\"warm_us\": %.2f, \"cold_us\": %.2f, \"warm_us_without_value\": %.2f, \"warm_us_value_only\": %.2f, "
        "\"errors\": [%.2e, %.2e, %.2e], \"repeats\": %d}\n",
        name.c_str(), plan.by_lines, plan.dependent, timer.warm(call(plan, 7)), timer.cold(call(plan, 7)),
        timer.warm(call(plan, 3)), timer.warm(call(plan, 4)), errors[0], errors[1], errors[2], repeats);
    std::fflush(stdout);
  }
}

void attention(Timer& timer, int samples, int height, int width, int query_channels, int channels, float query_scale) {
  const cc::Shape shape{samples, query_channels, channels, 1, height, width, true};
  const int64_t pixels = int64_t(samples) * shape.pixels();
  Buffer<T> query(pixels * query_channels), key(pixels * query_channels), value(pixels * channels),
      out(pixels * channels);
  Buffer<float> partial(pixels * channels), log_sum_exp(pixels), statistics(cc::forward_statistics(shape));
  Buffer<double> want_out(pixels * channels), want_log(pixels);
  fill(query, 1, query_scale);
  fill(key, 2, 1);
  fill(value, 3, 1);
  naive_attention<<<unsigned(pixels), 256>>>(query.data(), key.data(), value.data(), want_out.data(), want_log.data(),
                                             height, width, query_channels, channels);
  TUNE_CHECK(cudaDeviceSynchronize());
  const cc::AttentionForward<void, void> arguments{shape,      query.data(),   key.data(),         value.data(),
                                                   out.data(), partial.data(), log_sum_exp.data(), statistics.data()};
  for (const cc::ForwardPlan plan :
       {cc::ForwardPlan{0, false}, {128, false}, {128, true}, {256, false}, {256, true}, {0, false}}) {
    if (plan.line_channels && !cc::fits_lines(DataType::kBFloat16, arguments, plan.line_channels)) continue;
    const Chain call = [&](cudaStream_t stream) { check(cc::attention(DataType::kBFloat16, arguments, plan, stream)); };
    std::vector<T> first;
    bool repeats = true;
    for (int i = 0; i < 3; ++i) {
      out.poison(), partial.poison(), log_sum_exp.poison(), statistics.poison();
      call(nullptr);
      const std::vector<T> got = out.host();
      if (i == 0) first = got;
      repeats &= std::memcmp(first.data(), got.data(), got.size() * sizeof(T)) == 0;
    }
    std::printf(
        "{\"what\": \"attention forward\", \"shape\": \"%dx%dx%dx%dx%d\", \"query_scale\": %g, "
        "\"line_channels\": %d, \"dependent\": %d, \"warm_us\": %.2f, \"cold_us\": %.2f, \"error\": %.2e, "
        "\"log_error\": %.2e, \"repeats\": %d}\n",
        samples, height, width, query_channels, channels, double(query_scale), plan.line_channels, plan.dependent,
        timer.warm(call), timer.cold(call), difference(out, want_out), difference(log_sum_exp, want_log), repeats);
    std::fflush(stdout);
  }
  const std::string name = std::to_string(samples) + "x" + std::to_string(height) + "x" + std::to_string(width) + "x" +
                           std::to_string(query_channels) + "x" + std::to_string(channels);
  attention_backward(timer, shape, name, query, key, value, out, log_sum_exp);
}

__global__ void naive_transpose(const T* from, T* to, int64_t rows, int64_t columns) {
  const int64_t size = rows * columns;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += gridDim.x * int64_t(blockDim.x))
    to[i % columns * rows + i / columns] = from[i];
}

// Maps of these channels in one call, in this direction.
void copies(Timer& timer, int samples, int64_t pixels, const std::vector<int>& channels, bool to_channels_last) {
  std::vector<std::unique_ptr<Buffer<T>>> from, to;
  std::vector<layout::Transpose> list;
  double bytes = 0;
  std::string names;
  for (const int c : channels) {
    const int64_t rows = to_channels_last ? c : pixels, columns = to_channels_last ? pixels : c;
    from.push_back(std::make_unique<Buffer<T>>(samples * rows * columns));
    to.push_back(std::make_unique<Buffer<T>>(samples * rows * columns));
    fill(*from.back(), 5 + c, 1);
    list.push_back({from.back()->data(), to.back()->data(), samples, rows, columns, rows * columns, columns});
    bytes += 2. * from.back()->count() * sizeof(T);
    names += (names.empty() ? "" : "+") + std::to_string(c);
  }
  const Chain call = [&](cudaStream_t stream) {
    check(layout::transpose(sizeof(T), list.data(), int(list.size()), stream));
  };
  call(nullptr);
  bool right = true;
  for (size_t i = 0; i < list.size(); ++i) {
    Buffer<T> want(from[i]->count());
    const int64_t size = list[i].rows * list[i].columns;
    for (int n = 0; n < samples; ++n)
      naive_transpose<<<1024, 256>>>(from[i]->data() + n * size, want.data() + n * size, list[i].rows, list[i].columns);
    const std::vector<T> a = want.host(), b = to[i]->host();
    right &= std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
  }
  const double ours = timer.warm(call), copy = timer.warm([&](cudaStream_t stream) {
    for (size_t i = 0; i < list.size(); ++i)
      TUNE_CHECK(cudaMemcpyAsync(to[i]->data(), from[i]->data(), from[i]->count() * sizeof(T), cudaMemcpyDeviceToDevice,
                                 stream));
  });
  std::printf(
      "{\"what\": \"layout copy\", \"direction\": \"%s\", \"samples\": %d, \"pixels\": %ld, \"channels\": \"%s\", "
      "\"us\": %.2f, \"TB_per_s\": %.2f, \"memcpy_us\": %.2f, \"right\": %d}\n",
      to_channels_last ? "nchw to nhwc" : "nhwc to nchw", samples, long(pixels), names.c_str(), ours,
      bytes / ours / 1e6, copy, right);
  std::fflush(stdout);
}

}  // namespace
}  // namespace attnkernels::tune

int main() {
  using namespace attnkernels::tune;
  Timer timer;
  attention(timer, 1, 97, 97, 64, 512, 0.125f);
  attention(timer, 4, 97, 97, 64, 512, 0.125f);
  attention(timer, 1, 97, 97, 64, 512, 0.5f);  // peaked probabilities
  attention(timer, 1, 65, 65, 64, 512, 0.125f);
  attention(timer, 1, 128, 128, 64, 512, 0.125f);
  attention(timer, 2, 33, 100, 40, 328, 0.125f);  // parts of tiles
  attention(timer, 1, 129, 257, 64, 512, 0.125f);
  for (const int64_t pixels : {97 * 97, 128 * 128})
    for (const bool to_channels_last : {true, false}) {
      for (const int channels : {64, 512}) copies(timer, 1, pixels, {channels}, to_channels_last);
      copies(timer, 1, pixels, {64, 64, 512}, to_channels_last);
      copies(timer, 4, pixels, {512}, to_channels_last);
    }
  return 0;
}
