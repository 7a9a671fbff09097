// Counts the memory traffic of unmodified kernels. Built with -fsanitize=thread, but without TSan's runtime, kernels
// call
// __tsan_readN(address) and __tsan_writeN(address) at every access; traffic.cpp has those functions.
//
// The accesses that the lanes of a warp make at one instruction, each for the n-th time, are one request, as on a GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attnkernels::emulation {

struct GlobalRequest {
  uint64_t kernel;   // address of the kernel's function
  uint64_t address;  // the lowest one
  uint32_t lanes;
  uint32_t lane_bytes;  // bytes of all lanes' accesses together
  uint32_t bytes;       // different bytes among them
  uint32_t sectors;     // 32-byte sectors touched
  uint32_t write;       // 0 or 1
  uint32_t atomic;      // 0 or 1
};

// All shared-memory requests of one kernel. A wavefront serves one 4-byte word of each of the 32 banks; lanes that read
// the same word share it. Accesses of 8 bytes are served by half warps, of 16 bytes by quarter warps.
struct SharedTraffic {
  uint64_t kernel;
  uint64_t requests, wavefronts, least_wavefronts, remote_bytes;
};

void begin_traffic();
void end_traffic();
const std::vector<GlobalRequest>& global_requests();
const std::vector<SharedTraffic>& shared_traffic();

}  // namespace attnkernels::emulation
