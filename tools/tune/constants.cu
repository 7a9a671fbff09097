// The numbers of a GPU that decide how kernels are planned; one line of JSON for each: limits, what a launch in a graph
// costs (plain, dependent, cooperative, clusters), barriers, clusters that run at once, rates of copies by size and
// bytes in flight, of memory copies as nodes, and of reading again what the cache holds.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace cg = cooperative_groups;

#define CHECK(call)                                                                              \
  do {                                                                                           \
    const cudaError_t error_ = (call);                                                           \
    if (error_ != cudaSuccess) {                                                                 \
      std::printf("{\"failed\": \"%s\", \"line\": %d}\n", cudaGetErrorString(error_), __LINE__); \
      std::exit(1);                                                                              \
    }                                                                                            \
  } while (0)

constexpr int kRounds = 9;

// Microseconds per replay of a captured graph, median of kRounds.
double replay(const std::function<void(cudaStream_t)>& record, int replays) {
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int round = 0; round <= kRounds; ++round) {
    CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < replays; ++i) CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaStreamSynchronize(stream));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (round) times.push_back(milliseconds * 1e3 / replays);  // the first one warms up
  }
  std::sort(times.begin(), times.end());
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  return times[times.size() / 2];
}

struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  bool dependent = false, cooperative = false;
  int cluster = 0;
};

template <class... Arguments>
void launch(const Launch& how, cudaStream_t stream, void (*kernel)(Arguments...), Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[3];
  int count = 0;
  if (how.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (how.cluster) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {unsigned(how.cluster), 1, 1};
  }
  config.attrs = attributes;
  config.numAttrs = count;
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

__global__ void empty_kernel(int* word) {
  if (word && threadIdx.x == 9999) *word = 1;
}

// Starts early, then waits for the grid before it.
__global__ void dependent_kernel(int* word) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (word && threadIdx.x == 9999) *word = 1;
}

__global__ void grid_barriers(int count) {
  const auto grid = cg::this_grid();
  for (int i = 0; i < count; ++i) grid.sync();
}

__global__ void cluster_barriers(int count) {
  const auto cluster = cg::this_cluster();
  for (int i = 0; i < count; ++i) cluster.sync();
}

// y = x by 16-byte loads, kVectors of them in flight a thread
template <int kVectors, bool kStreaming>
__global__ void __launch_bounds__(256) copy_kernel(const uint4* x, uint4* y, int64_t count) {
  const int64_t tile = int64_t(blockDim.x) * kVectors;
  for (int64_t start = blockIdx.x * tile; start < count; start += int64_t(gridDim.x) * tile) {
    uint4 loaded[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = start + k * blockDim.x + threadIdx.x;
      if (i < count) loaded[k] = x[i];
    }
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = start + k * blockDim.x + threadIdx.x;
      if (i < count) {
        if constexpr (kStreaming) {
          __stcs(y + i, loaded[k]);
        } else {
          y[i] = loaded[k];
        }
      }
    }
  }
}

// Sums everything; the result is only there to keep the loads.
template <int kVectors>
__global__ void __launch_bounds__(256) read_kernel(const uint4* x, unsigned* sums, int64_t count) {
  unsigned sum = 0;
  const int64_t tile = int64_t(blockDim.x) * kVectors;
  for (int64_t start = blockIdx.x * tile; start < count; start += int64_t(gridDim.x) * tile) {
    uint4 loaded[kVectors] = {};
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = start + k * blockDim.x + threadIdx.x;
      if (i < count) loaded[k] = x[i];
    }
#pragma unroll
    for (int k = 0; k < kVectors; ++k) sum += loaded[k].x ^ loaded[k].y ^ loaded[k].z ^ loaded[k].w;
  }
  if (sum == 0x12345678u) sums[blockIdx.x] = sum;
}

__global__ void fill_kernel(unsigned* x, int64_t count) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    x[i] = unsigned(i * 2654435761u);
}

// Two kernels in a chain, n of them, with and without dependent launches: microseconds per kernel.
void node_latencies(int multiprocessors) {
  constexpr int kChain = 40;
  for (const int blocks : {1, multiprocessors, 4 * multiprocessors}) {
    const auto chain = [&](bool dependent, void (*kernel)(int*)) {
      return replay(
                 [&](cudaStream_t stream) {
                   for (int i = 0; i < kChain; ++i)
                     launch({dim3(blocks), dim3(256), 0, dependent && i > 0}, stream, kernel,
                            static_cast<int*>(nullptr));
                 },
                 20) /
             kChain;
    };
    std::printf("{\"what\": \"node\", \"blocks\": %d, \"plain_us\": %.3f, \"dependent_us\": %.3f}\n", blocks,
                chain(false, empty_kernel), chain(true, dependent_kernel));
  }
  for (const int count : {0, 16}) {
    const double us = replay(
        [&](cudaStream_t stream) {
          launch({dim3(multiprocessors), dim3(256), 0, false, true}, stream, grid_barriers, count);
        },
        20);
    std::printf("{\"what\": \"cooperative\", \"barriers\": %d, \"us\": %.3f}\n", count, us);
  }
  CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (const int size : {2, 4, 8, 16})
    for (const int count : {1, 64}) {
      const double us = replay(
          [&](cudaStream_t stream) {
            launch({dim3(multiprocessors / size * size), dim3(256), 0, false, false, size}, stream, cluster_barriers,
                   count);
          },
          20);
      std::printf("{\"what\": \"cluster\", \"size\": %d, \"barriers\": %d, \"us\": %.3f}\n", size, count, us);
    }
}

void active_clusters(int most_shared) {
  for (const int size : {1, 2, 4, 8, 16})
    for (const int kib : {0, 50, 100, 200}) {
      const int shared = std::min(kib * 1024, most_shared);
      CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(size * 64);
      config.blockDim = dim3(256);
      config.dynamicSmemBytes = shared;
      cudaLaunchAttribute attribute;
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {unsigned(size), 1, 1};
      config.attrs = &attribute;
      config.numAttrs = 1;
      int clusters = 0;
      const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, cluster_barriers, &config);
      std::printf(
          "{\"what\": \"active clusters\", \"size\": %d, \"shared\": %d, \"clusters\": %d, \"error\": \"%s\"}\n", size,
          shared, clusters, cudaGetErrorString(error));
      cudaGetLastError();
    }
  CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeMaxDynamicSharedMemorySize, 0));
}

template <int kVectors, bool kStreaming>
void copy_rates(const uint4* x, uint4* y, int multiprocessors) {
  for (const int64_t mib : {1, 4, 12, 25, 50, 100, 500})
    for (const int per_multiprocessor : {2, 4, 8, 0}) {  // 0: a block for every tile
      const int64_t count = mib * (1 << 20) / 16, tile = 256 * kVectors;
      const int64_t blocks = per_multiprocessor ? std::min<int64_t>(int64_t(per_multiprocessor) * multiprocessors,
                                                                    (count + tile - 1) / tile)
                                                : (count + tile - 1) / tile;
      const int replays = mib >= 100 ? 3 : 20;
      const double us = replay(
          [&](cudaStream_t stream) {
            launch({dim3(unsigned(blocks)), dim3(256)}, stream, copy_kernel<kVectors, kStreaming>, x, y, count);
          },
          replays);
      std::printf(
          "{\"what\": \"copy\", \"mib\": %ld, \"vectors\": %d, \"streaming\": %d, \"blocks_per_sm\": %d, \"us\": %.3f, "
          "\"tb_s\": %.3f}\n",
          long(mib), kVectors, int(kStreaming), per_multiprocessor, us, 2.0 * double(mib) * (1 << 20) / us * 1e-6);
    }
}

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf(
      "{\"what\": \"device\", \"name\": \"%s\", \"capability\": %d, \"multiprocessors\": %d, \"l2_bytes\": %d, "
      "\"shared_per_block\": %zu, \"shared_per_sm\": %zu, \"persisting_l2\": %d}\n",
      device.name, 10 * device.major + device.minor, device.multiProcessorCount, device.l2CacheSize,
      device.sharedMemPerBlockOptin, device.sharedMemPerMultiprocessor, device.persistingL2CacheMaxSize);
  const int multiprocessors = device.multiProcessorCount;
  constexpr int64_t kBytes = int64_t(1) << 30;
  void *x = nullptr, *y = nullptr;
  unsigned* sums = nullptr;
  CHECK(cudaMalloc(&x, kBytes));
  CHECK(cudaMalloc(&y, kBytes));
  CHECK(cudaMalloc(&sums, 1 << 20));
  fill_kernel<<<4 * multiprocessors, 256>>>(static_cast<unsigned*>(x), kBytes / 4);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());

  node_latencies(multiprocessors);
  active_clusters(int(device.sharedMemPerBlockOptin));
  const auto* from = static_cast<const uint4*>(x);
  auto* to = static_cast<uint4*>(y);
  copy_rates<1, false>(from, to, multiprocessors);
  copy_rates<2, false>(from, to, multiprocessors);
  copy_rates<4, false>(from, to, multiprocessors);
  copy_rates<8, false>(from, to, multiprocessors);
  copy_rates<4, true>(from, to, multiprocessors);
  for (const int64_t mib : {100, 500, 512, 1000}) {
    const double us = replay(
        [&](cudaStream_t stream) { CHECK(cudaMemcpyAsync(y, x, mib << 20, cudaMemcpyDeviceToDevice, stream)); }, 3);
    std::printf("{\"what\": \"memcpy node\", \"mib\": %ld, \"us\": %.3f, \"tb_s\": %.3f}\n", long(mib), us,
                2.0 * double(mib << 20) / us * 1e-6);
  }
  for (const int64_t mib : {2, 4, 8, 12, 16, 24, 32, 40, 60, 200}) {
    const int64_t count = (mib << 20) / 16;
    const double us = replay(
                          [&](cudaStream_t stream) {
                            for (int i = 0; i < 8; ++i)
                              launch({dim3(8 * multiprocessors), dim3(256)}, stream, read_kernel<4>, from, sums, count);
                          },
                          3) /
                      8;
    std::printf("{\"what\": \"read again\", \"mib\": %ld, \"us\": %.3f, \"tb_s\": %.3f}\n", long(mib), us,
                double(mib << 20) / us * 1e-6);
  }
  CHECK(cudaFree(x));
  CHECK(cudaFree(y));
  CHECK(cudaFree(sums));
  CHECK(cudaDeviceSynchronize());
  return 0;
}
