// The numbers of a GPU that decide how kernels are planned; one line of JSON for each: limits, what a launch in a graph
// costs (plain, dependent, cooperative, clusters), barriers, clusters that run at once, rates of copies by size and
// bytes in flight, of memory copies as nodes, and of reading again what the cache holds.
#include "common/language.cuh"
#include "tune/timing.cuh"

namespace cg = cooperative_groups;
using attnkernels::LaunchConfig;
using attnkernels::tune::Buffer;
using attnkernels::tune::Chain;

// Microseconds per replay of a graph of that chain.
double replay(const Chain& chain, int replays) {
  static attnkernels::tune::Timer timer;
  return timer.warm(chain, 9, 1, replays);
}

template <class... Parameters, class... Arguments>
void launch_on(cudaStream_t stream, LaunchConfig config, void (*kernel)(Parameters...), Arguments... arguments) {
  config.stream = stream;
  TUNE_CHECK(attnkernels::launch(config, kernel, arguments...));
}

__global__ void empty_kernel(int* word) {
  if (word && threadIdx.x == 9999) *word = 1;
}

// Starts early, then waits for the grid before it.
__global__ void dependent_kernel(int* word) {
  attnkernels::launch_dependent_grids();
  attnkernels::wait_for_primary_grid();
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
                     launch_on(stream, {.grid = dim3(blocks), .block = dim3(256), .dependent = dependent && i > 0},
                               kernel, static_cast<int*>(nullptr));
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
          launch_on(stream, {.grid = dim3(multiprocessors), .block = dim3(256), .cooperative = true}, grid_barriers,
                    count);
        },
        20);
    std::printf("{\"what\": \"cooperative\", \"barriers\": %d, \"us\": %.3f}\n", count, us);
  }
  TUNE_CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (const int size : {2, 4, 8, 16})
    for (const int count : {1, 64}) {
      const double us = replay(
          [&](cudaStream_t stream) {
            launch_on(stream, {.grid = dim3(multiprocessors / size * size), .block = dim3(256), .cluster = dim3(size)},
                      cluster_barriers, count);
          },
          20);
      std::printf("{\"what\": \"cluster\", \"size\": %d, \"barriers\": %d, \"us\": %.3f}\n", size, count, us);
    }
}

void active_clusters(int most_shared) {
  for (const int size : {1, 2, 4, 8, 16})
    for (const int kib : {0, 50, 100, 200}) {
      const int shared = std::min(kib * 1024, most_shared);
      TUNE_CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
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
  TUNE_CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeMaxDynamicSharedMemorySize, 0));
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
            launch_on(stream, {.grid = dim3(unsigned(blocks)), .block = dim3(256)}, copy_kernel<kVectors, kStreaming>,
                      x, y, count);
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
  TUNE_CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf(
      "{\"what\": \"device\", \"name\": \"%s\", \"capability\": %d, \"multiprocessors\": %d, \"l2_bytes\": %d, "
      "\"shared_per_block\": %zu, \"shared_per_sm\": %zu, \"persisting_l2\": %d}\n",
      device.name, 10 * device.major + device.minor, device.multiProcessorCount, device.l2CacheSize,
      device.sharedMemPerBlockOptin, device.sharedMemPerMultiprocessor, device.persistingL2CacheMaxSize);
  const int multiprocessors = device.multiProcessorCount;
  constexpr int64_t kBytes = int64_t(1) << 30;
  const Buffer<uint4> x(kBytes / 16), y(kBytes / 16);
  const Buffer<unsigned> sums(1 << 18);
  fill_kernel<<<4 * multiprocessors, 256>>>(reinterpret_cast<unsigned*>(x.data()), kBytes / 4);
  TUNE_CHECK(cudaGetLastError());
  TUNE_CHECK(cudaDeviceSynchronize());

  node_latencies(multiprocessors);
  active_clusters(int(device.sharedMemPerBlockOptin));
  const uint4* const from = x.data();
  uint4* const to = y.data();
  copy_rates<1, false>(from, to, multiprocessors);
  copy_rates<2, false>(from, to, multiprocessors);
  copy_rates<4, false>(from, to, multiprocessors);
  copy_rates<8, false>(from, to, multiprocessors);
  copy_rates<4, true>(from, to, multiprocessors);
  for (const int64_t mib : {100, 500, 512, 1000}) {
    const double us = replay(
        [&](cudaStream_t stream) {
          TUNE_CHECK(cudaMemcpyAsync(to, from, mib << 20, cudaMemcpyDeviceToDevice, stream));
        },
        3);
    std::printf("{\"what\": \"memcpy node\", \"mib\": %ld, \"us\": %.3f, \"tb_s\": %.3f}\n", long(mib), us,
                2.0 * double(mib << 20) / us * 1e-6);
  }
  for (const int64_t mib : {2, 4, 8, 12, 16, 24, 32, 40, 60, 200}) {
    const int64_t count = (mib << 20) / 16;
    const double us = replay(
                          [&](cudaStream_t stream) {
                            for (int i = 0; i < 8; ++i)
                              launch_on(stream, {.grid = dim3(8 * multiprocessors), .block = dim3(256)}, read_kernel<4>,
                                        from, sums.data(), count);
                          },
                          3) /
                      8;
    std::printf("{\"what\": \"read again\", \"mib\": %ld, \"us\": %.3f, \"tb_s\": %.3f}\n", long(mib), us,
                double(mib << 20) / us * 1e-6);
  }
  TUNE_CHECK(cudaDeviceSynchronize());
  return 0;
}
