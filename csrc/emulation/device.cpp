#include "emulation/device.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace attnkernels::emulation {

Device device;

namespace {

constexpr size_t kPortableClusterSize = 8, kLargestClusterSize = 16;  // the second: of kernels that opt in
std::set<const void*> kernels_with_large_clusters;
cudaError_t last_error = cudaSuccess;
std::string last_explanation;

std::string text(const dim3& size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

size_t volume(const dim3& size) { return size_t(size.x) * size.y * size.z; }

size_t largest_cluster(const void* kernel) {
  return kernels_with_large_clusters.contains(kernel) ? kLargestClusterSize : kPortableClusterSize;
}

}  // namespace

int blocks_per_multiprocessor(size_t threads, size_t shared_bytes) {
  if (threads == 0 || threads > 1024 || shared_bytes > size_t(device.shared_per_block_opt_in)) return 0;
  const size_t warps = (threads + 31) / 32;
  const size_t by_threads = size_t(device.threads_per_multiprocessor) / (warps * 32);
  const size_t shared = shared_bytes + device.shared_reserved_per_block;
  const size_t by_shared = size_t(device.shared_per_multiprocessor) / std::max<size_t>(shared, 1);
  return int(std::min({by_threads, by_shared, size_t(device.blocks_per_multiprocessor)}));
}

int active_clusters(size_t threads, size_t shared_bytes, size_t cluster) {
  if (device.major < 9 || cluster == 0 || cluster > kLargestClusterSize) return 0;
  const size_t blocks = blocks_per_multiprocessor(threads, shared_bytes);
  size_t clusters = 0;
  for (const size_t group : device.cluster_groups)
    if (group >= cluster) clusters += group * blocks / cluster;
  return int(clusters);
}

cudaError_t check_configuration(const Grid& launch, std::string& explanation) {
  const dim3 grid = launch.grid, block = launch.block, cluster = launch.cluster;
  const size_t threads = volume(block);
  const auto refuse = [&](cudaError_t error, const std::string& why) {
    explanation = why;
    return error;
  };
  if (threads == 0 || threads > 1024 || block.z > 64)
    return refuse(cudaErrorInvalidConfiguration, "block " + text(block) + " is empty or has more than 1024 threads");
  if (volume(grid) == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse(cudaErrorInvalidConfiguration,
                  "grid " + text(grid) + " is empty or exceeds (2^31 - 1, 65535, 65535)");
  if (launch.dynamic_shared > size_t(device.shared_per_block_opt_in))
    return refuse(cudaErrorInvalidValue, std::to_string(launch.dynamic_shared) +
                                             " bytes of shared memory, the device has " +
                                             std::to_string(device.shared_per_block_opt_in));
  if (volume(cluster) == 0) return refuse(cudaErrorInvalidClusterSize, "cluster " + text(cluster) + " is empty");
  if (volume(cluster) > 1) {
    if (device.major < 9) return refuse(cudaErrorNotSupported, "clusters need compute capability 9.0");
    if (const size_t most = largest_cluster(launch.kernel); volume(cluster) > most)
      return refuse(cudaErrorInvalidClusterSize,
                    "cluster " + text(cluster) + " has more than " + std::to_string(most) + " blocks");
    if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
      return refuse(cudaErrorInvalidClusterSize, "cluster " + text(cluster) + " does not divide grid " + text(grid));
    if (active_clusters(threads, launch.dynamic_shared, volume(cluster)) == 0)
      return refuse(cudaErrorLaunchOutOfResources, "no cluster " + text(cluster) + " of such blocks fits");
  }
  if (launch.dependent && device.major < 9)
    return refuse(cudaErrorNotSupported, "dependent launches need compute capability 9.0");
  const size_t resident = size_t(blocks_per_multiprocessor(threads, launch.dynamic_shared)) * device.multiprocessors;
  if (launch.cooperative && volume(grid) > resident)
    return refuse(cudaErrorCooperativeLaunchTooLarge, "a cooperative grid of " + std::to_string(volume(grid)) +
                                                          " blocks, " + std::to_string(resident) +
                                                          " are resident at once");
  return cudaSuccess;
}

cudaError_t set_last_error(cudaError_t error, const std::string& explanation) {
  if (error != cudaSuccess) last_error = error, last_explanation = explanation;
  return error;
}

}  // namespace attnkernels::emulation

// The host twins of the runtime functions that launchers call.
using namespace attnkernels::emulation;

namespace {

int attribute_value(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return device.multiprocessors;
    case cudaDevAttrComputeCapabilityMajor:
      return device.major;
    case cudaDevAttrComputeCapabilityMinor:
      return device.minor;
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return device.threads_per_multiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return device.blocks_per_multiprocessor;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return device.shared_per_block;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return device.shared_per_block_opt_in;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return device.shared_per_multiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return device.shared_reserved_per_block;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return device.registers_per_multiprocessor;
    case cudaDevAttrL2CacheSize:
      return device.l2_bytes;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrCooperativeLaunch:
      return 1;
    case cudaDevAttrClusterLaunch:
      return device.major >= 9;
    default:
      return -1;
  }
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    default:
      return "an error that the emulation never gives";
  }
}

// The last launch's explanation, which a GPU would not give, helps whoever reads the failing test.
const char* cudaGetErrorString(cudaError_t error) {
  static std::string result;
  result = cudaGetErrorName(error);
  if (error != cudaSuccess && !last_explanation.empty()) result += ": " + last_explanation;
  return result.c_str();
}

cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int index) {
  return set_last_error(index ? cudaErrorInvalidDevice : cudaSuccess, "one device");
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return synchronize(), cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return synchronize(), cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != 0) return set_last_error(cudaErrorInvalidDevice, "one device");
  *value = attribute_value(attribute);
  return *value < 0 ? set_last_error(cudaErrorInvalidValue, "an attribute that the emulation does not know")
                    : cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > device.shared_per_block_opt_in)
    return set_last_error(cudaErrorInvalidValue, std::to_string(value) + " bytes of shared memory, the device has " +
                                                     std::to_string(device.shared_per_block_opt_in));
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed && value) kernels_with_large_clusters.insert(kernel);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared_bytes) {
  *blocks = blocks_per_multiprocessor(size_t(threads), shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  size_t cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& size = config->attrs[i].val.clusterDim;
      cluster = size_t(size.x) * size.y * size.z;
    }
  const bool allowed = cluster <= largest_cluster(kernel);
  *clusters = allowed ? active_clusters(volume(config->blockDim), config->dynamicSmemBytes, cluster) : 0;
  return device.major < 9 ? set_last_error(cudaErrorNotSupported, "clusters need compute capability 9.0") : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  synchronize();
  std::memset(data, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  synchronize();
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

}  // extern "C"
