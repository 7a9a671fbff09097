// Which plan runs criss_cross_attention's forward fastest on the GPU at hand, and what copies into another layout take;
// one line of JSON for each. Results are compared with float64 and computed three times. No torch.
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
