// Runs the threads of CUDA launches as fibers on one operating-system thread (scheduler.cpp, residents.cpp,
// launch.cpp).
//
// A fiber gives up control only at a barrier, a warp exchange or __nanosleep; the scheduler resumes a random one of
// those that can go on. Shared memory belongs to a block and is filled with NaN when the block starts and, where other
// blocks of its cluster may still look at it, when the block ends.
#pragma once
#include <cuda_runtime_api.h>  // types only: dim3, uint3, cudaError_t

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

// CUDA's built-in variables, of the thread that is running.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace attnkernels::emulation {

using Location = std::source_location;

struct Block {
  uint3 index{};
  unsigned cluster_rank = 0, cluster_size = 1;
  char* dynamic_shared = nullptr;
  int votes = 0;  // threads whose predicate was true at the last __syncthreads_or, _and or _count
};

struct Thread {
  uint3 index{};
  unsigned rank = 0, lane = 0, warp = 0;  // rank: the linear index in the block
  Block* block = nullptr;
};

// A launch as language.cuh's LaunchConfig describes it, without the stream: there is one per host thread.
struct Grid {
  dim3 grid, block, cluster{1, 1, 1};
  size_t dynamic_shared = 0;
  bool cooperative = false, dependent = false;
  const void* kernel = nullptr;
};

// A kernel with its arguments.
struct Call {
  const void* begin = nullptr;  // of the object
  const void* end = nullptr;
  virtual ~Call() = default;
  virtual void make() const = 0;
};

extern Thread* current_thread;    // the thread that is running; null outside kernels
extern const Grid* current_grid;  // the launch that is running
extern const Call* current_call;

enum class Exchange : uint8_t { kShuffle, kVote, kSync };

void block_barrier(int predicate, const char* name, Location where);
void grid_barrier(Location where);
void cluster_arrive(Location where);
void cluster_wait(Location where);
void wait_for_primary(Location where);
void yield();
// kShuffle: the value that lane `source` gave; kVote: the mask of the lanes whose value was not 0; kSync: nothing.
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source, const char* name, Location where);
unsigned active_lanes();

void* shared_array(const void* key, size_t bytes);     // the block's array of that declaration
void* map_shared(const void* address, unsigned rank);  // the same place in another block of the cluster
void fence();                                          // __threadfence
void atomic_access(void* address);                     // after every atomic: what it orders, fences decide

// Ends the launch: synchronize() throws std::runtime_error with this text.
[[noreturn]] void fail(const std::string& text);

// Launches a call, to be made once per thread. A configuration that the device cannot run gives the error the CUDA
// runtime would give (device.h keeps the explanation). The launch runs in synchronize(), which the next plain launch
// calls too: not before, since a dependent launch that follows may start earlier.
cudaError_t enqueue(const Grid& grid, std::unique_ptr<const Call> call);

// Runs what this host thread has launched. A kernel that goes wrong (deadlock, misuse) throws std::runtime_error, and
// the dependent launches after it are forgotten.
void synchronize();

void set_seed(uint64_t seed);  // of the random order; the environment's ATTNKERNELS_EMULATION_SEED is the first

// What the launches since record_launches(true) were; see python.cpp.
struct LaunchRecord {
  Grid grid;
  size_t static_shared;
};
void record_launches(bool on);
const std::vector<LaunchRecord>& recorded_launches();

struct Place {
  const char* file;  // the program or library
  uint64_t offset;   // which `nm` turns into a name, and addr2line into a line
};
Place place_of(const void* kernel);

// For those who watch the memory (traffic.cpp).
enum class Memory { kGlobal, kShared, kRemoteShared };
Memory memory_of(const Block& block, const void* address);       // as a thread of that block sees it
bool is_bookkeeping(const Thread& thread, const void* address);  // its stack, or what threadIdx and the like read
extern void (*block_ended)(const Block& block);  // null, or called when the last thread of a block has returned
void check_write(const Thread& thread, const void* address);  // that it is not one before wait_for_primary_grid

template <class... Parameters>
struct CallOf final : Call {
  template <class... Arguments>
  explicit CallOf(void (*called)(Parameters...), Arguments&&... given)
      : kernel(called), arguments(std::forward<Arguments>(given)...) {
    begin = this, end = this + 1;
  }
  void make() const override { std::apply(kernel, arguments); }

  void (*const kernel)(Parameters...);
  const std::tuple<Parameters...> arguments;
};

template <class Config, class... Parameters, class... Arguments>
cudaError_t launch(const Config& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const Grid grid{config.grid,
                  config.block,
                  config.cluster,
                  config.shared_bytes,
                  config.cooperative,
                  config.dependent,
                  reinterpret_cast<const void*>(kernel)};
  return enqueue(grid, std::make_unique<CallOf<Parameters...>>(kernel, std::forward<Arguments>(arguments)...));
}

}  // namespace attnkernels::emulation
