// The kernels of planted.cuh and the CUDA runtime's host twins, called from Python on numpy arrays.
#include <pybind11/numpy.h>

#include <stdexcept>

#include "emulation/device.h"
#include "emulation/python.h"
#include "planted.cuh"

namespace py = pybind11;
using attnkernels::launch;
using attnkernels::LaunchConfig;

namespace {

// bank[lane] = one read of shared memory with that stride between lanes
__global__ void strided_shared(float* bank, int stride) {
  SHARED(float, words, [1024]);
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) words[i] = 0.f;
  __syncthreads();
  bank[threadIdx.x] = words[threadIdx.x * stride];
}

// last[i] = i, with one array larger than a block may have
__global__ void much_static_shared(float* last) {
  SHARED(float, words, [64 * 1024]);
  words[threadIdx.x] = 1.f;
  last[threadIdx.x] = words[threadIdx.x];
}

// Waits for a count that nothing raises.
__global__ void spin(unsigned* count) {
  while (atomicAdd(count, 0u) == 0) __nanosleep(64);
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  cudaDeviceSynchronize();
}

template <int kVector>
void gate_rows(const py::array_t<float>& x, py::array_t<float>& y) {
  const int rows = int(x.shape(0)), pixels = int(x.shape(1));
  check(launch({dim3(rows), dim3(256), pixels * sizeof(float)}, planted::gate_rows<float, kVector, planted::Bug::kNone>,
               x.data(), y.mutable_data(), pixels));
}

float sum(const py::array_t<float>& x, unsigned blocks, unsigned threads, unsigned cluster, bool cooperative,
          size_t shared_bytes) {
  std::vector<float> partial(blocks);
  unsigned count = 0;
  float total = 0;
  LaunchConfig config{dim3(blocks), dim3(threads), shared_bytes, dim3(cluster)};
  config.cooperative = cooperative;
  check(launch(config, planted::last_block_sum<planted::Bug::kNone>, x.data(), partial.data(), &count, &total,
               int(x.size())));
  return total;
}

// between = reversed x + 2 x, y = reversed between + x + between: a launch and one that depends on it, as the first may
// too, which then follows none.
template <planted::Bug bug>
void dependent(const py::array_t<float>& x, py::array_t<float>& y, bool first) {
  const int size = int(x.size());
  std::vector<float> between(size, NAN);
  LaunchConfig config{dim3((size + 63) / 64), dim3(64)};
  config.dependent = first;
  const cudaError_t error =
      launch(config, planted::add_reversed<planted::Bug::kNone>, x.data(), x.data(), x.data(), between.data(), size);
  if (error != cudaSuccess) return check(error);
  config.dependent = true;
  const cudaError_t refused =
      launch(config, planted::add_reversed<bug>, between.data(), x.data(), between.data(), y.mutable_data(), size);
  cudaDeviceSynchronize();
  check(refused);
}

int attribute(int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, cudaDeviceAttr(index), 0));
  return value;
}

int max_active_clusters(unsigned cluster, unsigned threads, size_t shared_bytes) {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (cluster > 8) check(cudaFuncSetAttribute(spin, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  int clusters = -1;
  check(cudaOccupancyMaxActiveClusters(&clusters, spin, &config));
  return clusters;
}

}  // namespace

PYBIND11_MODULE(emulation_demo, module) {
  attnkernels::emulation::bind_controls(module);
  module.def("gate_rows", &gate_rows<4>);
  module.def("gate_rows_by_one", &gate_rows<1>);
  module.def("sum", &sum, py::arg("x"), py::arg("blocks") = 4, py::arg("threads") = 64, py::arg("cluster") = 1,
             py::arg("cooperative") = false, py::arg("shared_bytes") = 0);
  module.def("dependent", &dependent<planted::Bug::kNone>, py::arg("x"), py::arg("y"), py::arg("first") = false);
  module.def("writes_early", &dependent<planted::Bug::kWriteBeforeWait>, py::arg("x"), py::arg("y"),
             py::arg("first") = false);
  module.def("returns_early", &dependent<planted::Bug::kReturnBeforeWait>, py::arg("x"), py::arg("y"),
             py::arg("first") = false);
  module.def("strided_shared", [](py::array_t<float>& bank, int stride) {
    check(launch({dim3(1), dim3(32)}, strided_shared, bank.mutable_data(), stride));
  });
  module.def("much_static_shared", [] {
    std::vector<float> last(32);
    check(launch({dim3(1), dim3(32)}, much_static_shared, last.data()));
  });
  module.def("spin", [] {
    unsigned count = 0;
    check(launch({dim3(1), dim3(32)}, spin, &count));
  });
  module.def("attribute", &attribute);
  module.def("max_active_clusters", &max_active_clusters);
  module.attr("MULTIPROCESSOR_COUNT") = int(cudaDevAttrMultiProcessorCount);
  module.attr("COMPUTE_CAPABILITY_MAJOR") = int(cudaDevAttrComputeCapabilityMajor);
  module.attr("L2_CACHE_SIZE") = int(cudaDevAttrL2CacheSize);
}
