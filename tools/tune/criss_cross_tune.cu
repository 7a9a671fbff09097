// criss_cross_tune: checks and times the plans of criss_cross_attention's forward, and the copies into another layout,
// on the GPU at hand; one JSON object a line. Without torch:
//
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=sm_90 -cudart static -I csrc -o build/gpu/cc_tune
//     tools/tune/criss_cross_tune.cu csrc/criss_cross/criss_cross.cu csrc/layout/layout.cu
//
// Results start as NaN, are compared with sums in double, and computed twice: `repeats` tells whether bits are the
// same. Times are of a call in a CUDA graph of 20, the median of 5 replays, in microseconds.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/numeric.cuh"
#include "criss_cross/criss_cross_launch.h"
#include "layout/layout_launch.h"

namespace cc = attnkernels::criss_cross;
using attnkernels::DataType;
using attnkernels::Result;
using bf16 = __nv_bfloat16;

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("{\"error\": \"%s: %s\"}\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void check(const Result& result) {
  if (!result.error) return;
  std::printf("{\"error\": \"%s: %s\"}\n", result.kernel, result.error);
  std::exit(1);
}

cudaStream_t stream;

template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t n) : count(n) {
    check(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T)), "cudaMalloc");
    poison();
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
  void poison() { check(cudaMemsetAsync(data, 0xff, count * sizeof(T), stream), "cudaMemset"); }
  std::vector<T> host() const {
    std::vector<T> result(count);
    check(cudaStreamSynchronize(stream), "synchronize");
    check(cudaMemcpy(result.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return result;
  }
};

// Sums of four uniform numbers, of variance `scale` squared.
__global__ void fill(bf16* to, size_t count, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += gridDim.x * size_t(blockDim.x)) {
    uint32_t state = uint32_t(i) * 747796405u + seed;
    float sum = 0;
    for (int k = 0; k < 4; ++k) {
      state = state * 747796405u + 2891336453u;
      uint32_t word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737u;
      sum += float((word >> 22) ^ word) * 0x1p-32f - 0.5f;
    }
    to[i] = __float2bfloat16_rn(sum * 1.7320508f * scale);
  }
}

// A block to a pixel: energies, then channels.
__global__ void naive_attention(const bf16* query, const bf16* key, const bf16* value, double* out, double* log_sum_exp,
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
      sum += double(__bfloat162float(query[pixel * query_channels + c])) *
             double(__bfloat162float(key[key_pixel(k) * query_channels + c]));
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
    for (int k = 0; k < keys; ++k) sum += weight[k] * double(__bfloat162float(value[key_pixel(k) * channels + c]));
    out[pixel * channels + c] = sum / total;
  }
  if (threadIdx.x == 0) log_sum_exp[pixel] = largest + log(total);
}

struct Error {
  double largest, mean;  // over the largest and the mean of what is expected
};

template <class T, class Widen>
Error compare(const std::vector<T>& got, const std::vector<double>& want, Widen widen) {
  double worst = 0, sum = 0, scale = 0, mean = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(widen(got[i]) - want[i]);
    if (!(error <= worst)) worst = error;  // a NaN is the worst, and stays
    sum += error;
    scale = std::max(scale, std::fabs(want[i]));
    mean += std::fabs(want[i]);
  }
  return {worst / scale, sum / mean};
}

// Microseconds of a call.
template <class Call>
double time(Call call) {
  constexpr int kCalls = 20, kReplays = 5;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  for (int i = 0; i < kCalls; ++i) call();
  check(cudaStreamEndCapture(stream, &graph), "end capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < kReplays + 2; ++i) {
    cudaEventRecord(begin, stream);
    check(cudaGraphLaunch(executable, stream), "graph");
    cudaEventRecord(end, stream);
    check(cudaEventSynchronize(end), "replay");
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    if (i >= 2) times.push_back(milliseconds * 1000 / kCalls);
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return times[times.size() / 2];
}

double widen(bf16 value) { return double(__bfloat162float(value)); }

void attention(int samples, int height, int width, int query_channels, int channels, float query_scale) {
  const cc::Shape shape{samples, query_channels, channels, 1, height, width, true};
  const size_t pixels = size_t(samples) * shape.pixels();
  Device<bf16> query(pixels * query_channels), key(pixels * query_channels), value(pixels * channels),
      out(pixels * channels);
  Device<float> partial(pixels * channels), log_sum_exp(pixels), statistics(cc::forward_statistics(shape));
  Device<double> want_out(pixels * channels), want_log(pixels);
  fill<<<1024, 256, 0, stream>>>(query.data, query.count, 1, query_scale);
  fill<<<1024, 256, 0, stream>>>(key.data, key.count, 2, 1);
  fill<<<1024, 256, 0, stream>>>(value.data, value.count, 3, 1);
  naive_attention<<<unsigned(pixels), 256, 0, stream>>>(query.data, key.data, value.data, want_out.data, want_log.data,
                                                        height, width, query_channels, channels);
  check(cudaStreamSynchronize(stream), "naive");
  const std::vector<double> out_expected = want_out.host(), log_expected = want_log.host();
  const cc::AttentionForward<void, void> arguments{shape,    query.data,   key.data,         value.data,
                                                   out.data, partial.data, log_sum_exp.data, statistics.data};
  for (const cc::ForwardPlan plan :
       {cc::ForwardPlan{0, false}, {128, false}, {128, true}, {256, false}, {256, true}, {0, false}}) {
    if (plan.line_channels && !cc::fits_lines(DataType::kBFloat16, arguments, plan.line_channels)) continue;
    const auto call = [&] { check(cc::attention(DataType::kBFloat16, arguments, plan, stream)); };
    std::vector<bf16> first;
    bool repeats = true;
    Error error{}, log_error{};
    for (int i = 0; i < 3; ++i) {
      out.poison(), partial.poison(), log_sum_exp.poison(), statistics.poison();
      call();
      const std::vector<bf16> got = out.host();
      if (i == 0) {
        first = got;
        error = compare(got, out_expected, widen);
        log_error = compare(log_sum_exp.host(), log_expected, [](float x) { return double(x); });
      }
      repeats &= std::memcmp(first.data(), got.data(), got.size() * sizeof(bf16)) == 0;
    }
    std::printf(
        "{\"what\": \"attention forward\", \"shape\": \"%dx%dx%d\", \"channels\": \"%d/%d\", \"query_scale\": %g, "
        "\"line_channels\": %d, \"dependent\": %s, \"us\": %.2f, \"error\": %.3g, \"mean_error\": %.3g, "
        "\"log_error\": %.3g, \"repeats\": %s}\n",
        samples, height, width, query_channels, channels, double(query_scale), plan.line_channels,
        plan.dependent ? "true" : "false", time(call), error.largest, error.mean, log_error.largest,
        repeats ? "true" : "false");
    std::fflush(stdout);
  }
}

__global__ void naive_transpose(const bf16* from, bf16* to, int64_t rows, int64_t columns) {
  const int64_t size = rows * columns;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += gridDim.x * int64_t(blockDim.x))
    to[i % columns * rows + i / columns] = from[i];
}

// Maps of these channels in one call, in this direction.
void copies(int samples, int64_t pixels, const std::vector<int>& channels, bool to_channels_last) {
  std::vector<std::unique_ptr<Device<bf16>>> from, to;
  std::vector<attnkernels::layout::Transpose> list;
  double bytes = 0;
  std::string names;
  for (const int c : channels) {
    const int64_t rows = to_channels_last ? c : pixels, columns = to_channels_last ? pixels : c;
    from.push_back(std::make_unique<Device<bf16>>(size_t(samples) * rows * columns));
    to.push_back(std::make_unique<Device<bf16>>(size_t(samples) * rows * columns));
    fill<<<1024, 256, 0, stream>>>(from.back()->data, from.back()->count, 5 + c, 1);
    list.push_back({from.back()->data, to.back()->data, samples, rows, columns, rows * columns, columns});
    bytes += 2. * from.back()->count * sizeof(bf16);
    names += (names.empty() ? "" : "+") + std::to_string(c);
  }
  const auto call = [&] { check(attnkernels::layout::transpose(2, list.data(), int(list.size()), stream)); };
  call();
  bool right = true;
  for (size_t i = 0; i < list.size(); ++i) {
    Device<bf16> want(from[i]->count);
    const int64_t size = list[i].rows * list[i].columns;
    for (int n = 0; n < samples; ++n)
      naive_transpose<<<1024, 256, 0, stream>>>(from[i]->data + n * size, want.data + n * size, list[i].rows,
                                                list[i].columns);
    const auto a = want.host(), b = to[i]->host();
    right &= std::memcmp(a.data(), b.data(), a.size() * sizeof(bf16)) == 0;
  }
  const double ours = time(call);
  const double memcpy_time = time([&] {
    for (size_t i = 0; i < list.size(); ++i)
      check(
          cudaMemcpyAsync(to[i]->data, from[i]->data, from[i]->count * sizeof(bf16), cudaMemcpyDeviceToDevice, stream),
          "cudaMemcpyAsync");
  });
  std::printf(
      "{\"what\": \"layout copy\", \"direction\": \"%s\", \"samples\": %d, \"pixels\": %ld, \"channels\": \"%s\", "
      "\"us\": %.2f, \"TB_per_s\": %.2f, \"memcpy_us\": %.2f, \"right\": %s}\n",
      to_channels_last ? "nchw to nhwc" : "nhwc to nchw", samples, long(pixels), names.c_str(), ours,
      bytes / ours / 1e6, memcpy_time, right ? "true" : "false");
  std::fflush(stdout);
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device");
  std::printf("{\"device\": \"%s\"}\n", properties.name);
  check(cudaStreamCreate(&stream), "stream");
  attention(1, 97, 97, 64, 512, 0.125f);
  attention(4, 97, 97, 64, 512, 0.125f);
  attention(1, 97, 97, 64, 512, 0.5f);  // peaked probabilities
  attention(1, 65, 65, 64, 512, 0.125f);
  attention(1, 128, 128, 64, 512, 0.125f);
  attention(2, 33, 100, 40, 328, 0.125f);  // parts of tiles
  attention(1, 129, 257, 64, 512, 0.125f);
  for (const int64_t pixels : {97 * 97, 128 * 128})
    for (const bool to_channels_last : {true, false}) {
      for (const int channels : {64, 512}) copies(1, pixels, {channels}, to_channels_last);
      copies(1, pixels, {64, 64, 512}, to_channels_last);
      copies(4, pixels, {512}, to_channels_last);
    }
}
