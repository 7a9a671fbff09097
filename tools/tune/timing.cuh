// Times of launches on a GPU, and comparison of results with float64.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "common/cuda_launch.h"

namespace attnkernels::tune {

#define TUNE_CHECK(call)                                                                                          \
  do {                                                                                                            \
    const cudaError_t error_ = (call);                                                                            \
    if (error_ != cudaSuccess) {                                                                                  \
      std::printf("{\"failed\": \"%s\", \"file\": \"%s\", \"line\": %d}\n", cudaGetErrorString(error_), __FILE__, \
                  __LINE__);                                                                                      \
      std::exit(1);                                                                                               \
    }                                                                                                             \
  } while (0)

inline void check(const Result& done) {
  if (!done.error) return;
  std::printf("{\"failed\": \"%s: %s\"}\n", done.kernel, done.error);
  std::exit(1);
}

using Chain = std::function<void(cudaStream_t)>;

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    TUNE_CHECK(cudaMalloc(&data_, std::max<int64_t>(1, count) * sizeof(T)));
    poison();
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* data() const { return data_; }
  int64_t count() const { return count_; }
  std::vector<T> host() const {
    std::vector<T> numbers(count_);
    TUNE_CHECK(cudaMemcpy(numbers.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return numbers;
  }
  void poison() { TUNE_CHECK(cudaMemset(data_, 0xff, std::max<int64_t>(1, count_) * sizeof(T))); }  // NaN in every type

 private:
  T* data_ = nullptr;
  int64_t count_;
};

// Numbers of about unit variance, by a hash of their place.
template <class T>
__global__ void fill_kernel(T* x, int64_t count, unsigned seed, float scale, int64_t shifted_every) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const auto uniform = [](uint64_t key) {
      key = (key ^ (key >> 31)) * 0x9E3779B97F4A7C15ull;
      key = (key ^ (key >> 29)) * 0xBF58476D1CE4E5B9ull;
      key ^= key >> 32;
      return float(key >> 40 & 0xffffff) / 8388608.f - 1.f;
    };
    float value = (uniform(i * 2 + seed * 0x1234567ull) + uniform(i * 2 + 1 + seed * 0x7654321ull)) * 1.22f;
    if (shifted_every) value += uniform(i / shifted_every + seed * 0x55555ull);  // planes whose means differ
    x[i] = T(value * scale);
  }
}
template <class T>
void fill(const Buffer<T>& x, unsigned seed, float scale, int64_t shifted_every = 0) {
  fill_kernel<<<1024, 256>>>(x.data(), x.count(), seed, scale, shifted_every);
  TUNE_CHECK(cudaGetLastError());
}

template <class T>
__global__ void difference_kernel(const T* got, const double* want, int64_t count, double* sums) {
  double difference = 0, norm = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const double d = double(float(got[i])) - want[i];
    difference += d * d;
    norm += want[i] * want[i];
  }
  atomicAdd(sums, difference);
  atomicAdd(sums + 1, norm);
}
// |got - want| / |want|; NaN where something was not written
template <class T>
double difference(const Buffer<T>& got, const Buffer<double>& want) {
  Buffer<double> sums(2);
  TUNE_CHECK(cudaMemset(sums.data(), 0, 16));
  difference_kernel<<<264, 256>>>(got.data(), want.data(), got.count(), sums.data());
  double host[2];
  TUNE_CHECK(cudaMemcpy(host, sums.data(), 16, cudaMemcpyDeviceToHost));
  return std::sqrt(host[0] / host[1]);
}

__global__ void read_kernel(const uint4* x, unsigned* out, int64_t count) {
  unsigned sum = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    sum += x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
  if (sum == 0x12345678u) *out = sum;
}

class Timer {
 public:
  Timer() : flush_(int64_t(150) << 20) {
    TUNE_CHECK(cudaStreamCreate(&stream_));
    TUNE_CHECK(cudaEventCreate(&begin_));
    TUNE_CHECK(cudaEventCreate(&end_));
  }
  cudaStream_t stream() const { return stream_; }

  // Microseconds of one chain of launches, in a graph of many: its data are in the cache where they fit.
  double warm(const Chain& chain, int rounds = 5, int chains = 20, int replays = 5) {
    const cudaGraphExec_t graph = record(chain, chains);
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
      const double us = run([&] {
        for (int i = 0; i < replays; ++i) TUNE_CHECK(cudaGraphLaunch(graph, stream_));
      });
      if (round) times.push_back(us / (replays * chains));  // the first one warms up
    }
    TUNE_CHECK(cudaGraphExecDestroy(graph));
    return median(times);
  }
  // Of one chain after the cache was filled with other data.
  double cold(const Chain& chain, int rounds = 5) {
    const cudaGraphExec_t graph = record(chain, 1);
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
      read_kernel<<<264, 512, 0, stream_>>>(reinterpret_cast<const uint4*>(flush_.data()),
                                            reinterpret_cast<unsigned*>(flush_.data()), flush_.count() / 16);
      const double us = run([&] { TUNE_CHECK(cudaGraphLaunch(graph, stream_)); });
      if (round) times.push_back(us);
    }
    TUNE_CHECK(cudaGraphExecDestroy(graph));
    return median(times);
  }

 private:
  cudaGraphExec_t record(const Chain& chain, int count) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    TUNE_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < count; ++i) chain(stream_);
    TUNE_CHECK(cudaStreamEndCapture(stream_, &graph));
    TUNE_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    TUNE_CHECK(cudaGraphDestroy(graph));
    return executable;
  }
  double run(const std::function<void()>& work) {
    TUNE_CHECK(cudaEventRecord(begin_, stream_));
    work();
    TUNE_CHECK(cudaEventRecord(end_, stream_));
    TUNE_CHECK(cudaStreamSynchronize(stream_));
    float milliseconds = 0;
    TUNE_CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return milliseconds * 1e3;
  }
  static double median(std::vector<double>& times) {
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
  Buffer<char> flush_;
};

}  // namespace attnkernels::tune
