// Tensor-core tiles against a plain product; exits with 1 where they differ.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../mma_matmul.cuh"

namespace {

// The product of 16-bit numbers is exact in float; only the order of the sum differs.
template <class T>
bool agrees(int depth) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<T> a(16 * depth), b(8 * depth);
  std::vector<float> d(16 * 8, NAN);
  for (T& value : a) value = T(normal(generator));
  for (T& value : b) value = T(normal(generator));
  const attnkernels::LaunchConfig config{dim3(1), dim3(32)};
  if (attnkernels::launch(config, mma_matmul<T>, a.data(), b.data(), d.data(), depth) != cudaSuccess) return false;
  cudaDeviceSynchronize();
  double worst = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      double want = 0;
      for (int k = 0; k < depth; ++k) want += double(float(a[i * depth + k])) * double(float(b[j * depth + k]));
      const double difference = std::fabs(d[i * 8 + j] - want);
      worst = difference <= worst ? worst : difference;  // keeps a NaN
    }
  std::printf("depth %d: largest difference %g\n", depth, worst);
  return worst < 1e-4;
}

}  // namespace

int main() { return agrees<__half>(64) && agrees<__nv_bfloat16>(48) ? 0 : 1; }
