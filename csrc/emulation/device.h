// The GPU that the emulation pretends to be, and why it refused a launch.
#pragma once
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "emulation/scheduler.h"

namespace attnkernels::emulation {

// Defaults: H100 SXM (CUDA C++ programming guide, technical specifications of compute capability 9.0).
struct Device {
  int major = 9, minor = 0;
  int multiprocessors = 132;
  // Multiprocessors of each group that a cluster stays within; a group smaller than the cluster holds none. With these,
  // active_clusters() gives what cudaOccupancyMaxActiveClusters does on an H100, for clusters of 1 to 16 blocks of
  // which a multiprocessor holds 1 to 8.
  std::vector<int> cluster_groups{18, 18, 16, 16, 16, 16, 16, 8, 2, 2, 2, 2};
  int threads_per_multiprocessor = 2048;
  int blocks_per_multiprocessor = 32;
  int shared_per_block = 48 * 1024;
  int shared_per_block_opt_in = 227 * 1024;
  int shared_per_multiprocessor = 228 * 1024;
  int shared_reserved_per_block = 1024;
  int registers_per_multiprocessor = 64 * 1024;
  int l2_bytes = 50 * 1024 * 1024;
};

extern Device device;

// Blocks of that size that fit on one multiprocessor; registers, which the host compiler does not know, do not count.
int blocks_per_multiprocessor(size_t threads, size_t shared_bytes);
int active_clusters(size_t threads, size_t shared_bytes, size_t cluster);  // of so many blocks each

// cudaSuccess, or the error of a launch that the device cannot run; `explanation` then says why.
cudaError_t check_configuration(const Grid& grid, std::string& explanation);

// The error that cudaGetLastError returns next.
cudaError_t set_last_error(cudaError_t error, const std::string& explanation);

}  // namespace attnkernels::emulation
