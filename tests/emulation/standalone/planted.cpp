// planted CASE [BUG]: runs a kernel of planted.cuh on data of exact size; exits with 1 and a line where its numbers are
// wrong or the emulation refuses it. Sanitizers end it by themselves.
#include "../planted.cuh"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

using attnkernels::launch;
using attnkernels::LaunchConfig;
using planted::Bug;

namespace {

// Memory of exact size: AddressSanitizer guards both ends.
template <class T>
std::vector<T> numbers(size_t count) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<T> result(count);
  for (T& value : result) value = static_cast<T>(normal(generator));
  result.shrink_to_fit();
  return result;
}

void expect_close(double got, double want, double tolerance, const char* what) {
  if (std::fabs(got - want) <= tolerance) return;  // a NaN is not close
  throw std::runtime_error(std::string(what) + ": got " + std::to_string(got) + ", want " + std::to_string(want));
}

void expect_launched(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void expect_success(cudaError_t launched) {
  expect_launched(launched);
  expect_launched(cudaDeviceSynchronize());
}

template <class T, int kVector, Bug bug>
void gate(int rows, int pixels, double tolerance) {
  constexpr int kOffset = bug == Bug::kMisalignedVector;
  const std::vector<T> all = numbers<T>(size_t(rows) * pixels + kOffset);
  const T* const x = all.data() + kOffset;
  std::vector<T> y(all.size() - kOffset);
  expect_success(launch({dim3(rows), dim3(256), pixels * sizeof(float)}, planted::gate_rows<T, kVector, bug>, x,
                        y.data(), pixels));
  for (int row = 0; row < rows; ++row) {
    double sum = 0;
    for (int p = 0; p < pixels; ++p) sum += double(float(x[row * pixels + p]));
    for (int p = 0; p < pixels; ++p) {
      const double want = float(x[row * pixels + p]) / (1 + std::exp(-sum / pixels));
      expect_close(float(y[row * pixels + p]), want, tolerance * (std::fabs(want) + 1e-3), "gate_rows");
    }
  }
}

template <Bug bug>
void subtract_last() {
  const int rows = 3;
  const std::vector<float> x = numbers<float>(rows * 3 * 64);
  std::vector<float> y(x.size());
  expect_success(launch({dim3(3), dim3(64)}, planted::subtract_last<bug>, x.data(), y.data(), rows));
  for (size_t i = 0; i < x.size(); ++i) expect_close(y[i], x[i] - x[i / 64 * 64 + 63], 0, "subtract_last");
}

template <Bug bug>
void reverse_warps() {
  const std::vector<float> x = numbers<float>(2 * 64);
  std::vector<float> y(x.size());
  expect_success(launch({dim3(2), dim3(64)}, planted::reverse_warps<bug>, x.data(), y.data()));
  for (size_t i = 0; i < x.size(); ++i) expect_close(y[i], x[i], 0, "reverse_warps");
}

template <Bug bug>
void subtract_mean() {
  const std::vector<float> x = numbers<float>(1500);
  std::vector<float> y(x.size()), total(1);
  LaunchConfig config{dim3(4), dim3(64)};
  config.cooperative = true;
  expect_success(launch(config, planted::subtract_mean<bug>, x.data(), y.data(), total.data(), int(x.size())));
  double sum = 0;
  for (float value : x) sum += value;
  for (size_t i = 0; i < x.size(); ++i) expect_close(y[i], x[i] - sum / x.size(), 1e-5, "subtract_mean");
}

template <Bug bug>
void cluster_mean() {
  const int rows = 3, pixels = 777;
  const std::vector<float> x = numbers<float>(rows * pixels);
  std::vector<float> mean(rows);
  expect_success(
      launch({dim3(rows * 4), dim3(64), 0, dim3(4)}, planted::cluster_mean<bug>, x.data(), mean.data(), pixels));
  for (int row = 0; row < rows; ++row) {
    double sum = 0;
    for (int p = 0; p < pixels; ++p) sum += x[row * pixels + p];
    expect_close(mean[row], sum / pixels, 1e-5, "cluster_mean");
  }
}

template <Bug bug>
void last_block() {
  const std::vector<float> x = numbers<float>(1000);
  const unsigned blocks = 5;
  std::vector<float> partial(blocks), total(1);
  std::vector<unsigned> count(1);
  expect_success(launch({dim3(blocks), dim3(64)}, planted::last_block_sum<bug>, x.data(), partial.data(), count.data(),
                        total.data(), int(x.size())));
  double sum = 0;
  for (float value : x) sum += value;
  expect_close(total[0], sum, 1e-4, "last_block_sum");
  expect_close(count[0], 0, 0, "last_block_sum's counter");
}

// Launches that may each start before the one before it is over: x -> a -> b -> y. The second has the bug. In a second
// round it could read what the first has left, and be right.
enum class Chain { kRight, kReadsFirstBeforeWait, kWritesOverInput };
template <Bug bug>
void dependent_chain(Chain chain, const LaunchConfig& dependent = {dim3(5), dim3(64), 0, dim3(1), false, true}) {
  const int size = 300;
  const std::vector<float> all = numbers<float>(2 * size);
  const std::vector<float> given(all.begin(), all.begin() + size), w(all.begin() + size, all.end());
  std::vector<float> x = given, a(size, NAN), b(size, NAN), y(size, NAN);
  float* const second = chain == Chain::kWritesOverInput ? x.data() : b.data();
  const float* const early = chain == Chain::kReadsFirstBeforeWait ? a.data() : w.data();
  LaunchConfig config{dim3(5), dim3(64)};
  const int rounds = bug == Bug::kNone && chain == Chain::kRight ? 3 : 1;
  for (int round = 0; round < rounds; ++round, config = dependent) {
    expect_launched(launch(config, planted::add_reversed<Bug::kNone>, x.data(), w.data(), w.data(), a.data(), size));
    expect_launched(launch(dependent, planted::add_reversed<bug>, a.data(), w.data(), w.data(), second, size));
    expect_launched(launch(dependent, planted::add_reversed<Bug::kNone>, second, early, a.data(), y.data(), size));
  }
  expect_launched(cudaDeviceSynchronize());
  std::vector<float> first(size), next(size);
  for (int i = 0; i < size; ++i) first[i] = given[size - 1 - i] + w[i] + w[i];
  for (int i = 0; i < size; ++i) next[i] = first[size - 1 - i] + w[i] + w[i];
  for (int i = 0; i < size; ++i) {
    const float staged = chain == Chain::kReadsFirstBeforeWait ? first[i] : w[i];
    expect_close(y[i], next[size - 1 - i] + staged + first[i], 1e-5, "dependent_chain");
  }
}

void divergent(unsigned stop, bool elsewhere) {
  expect_success(launch({dim3(1), dim3(64)}, planted::divergent_barrier, stop, elsewhere));
}

int run(const std::string& kernel, const std::string& bug) {
  const std::string name = kernel + " " + bug;
  if (name == "gate_rows none") {
    gate<float, 4, Bug::kNone>(3, 1024, 1e-5);
    gate<__half, 8, Bug::kNone>(3, 512, 1e-3);
    gate<__nv_bfloat16, 8, Bug::kNone>(3, 1000, 1e-2);
  } else if (name == "gate_rows no_block_barrier") {
    gate<float, 4, Bug::kNoBlockBarrier>(3, 1024, 1e-5);
  } else if (name == "gate_rows global_out_of_bounds") {
    gate<float, 4, Bug::kGlobalOutOfBounds>(3, 1000, 1e-5);
  } else if (name == "gate_rows misaligned_vector") {
    gate<float, 4, Bug::kMisalignedVector>(3, 1000, 1e-5);
  } else if (name == "gate_rows shared_out_of_bounds") {
    gate<float, 4, Bug::kSharedOutOfBounds>(3, 1000, 1e-5);
  } else if (name == "subtract_last none") {
    subtract_last<Bug::kNone>();
  } else if (name == "subtract_last no_block_barrier") {
    subtract_last<Bug::kNoBlockBarrier>();
  } else if (name == "subtract_last no_barrier_before_reuse") {
    subtract_last<Bug::kNoBarrierBeforeReuse>();
  } else if (name == "reverse_warps none") {
    reverse_warps<Bug::kNone>();
  } else if (name == "reverse_warps no_warp_barrier") {
    reverse_warps<Bug::kNoWarpBarrier>();
  } else if (name == "subtract_mean none") {
    subtract_mean<Bug::kNone>();
  } else if (name == "subtract_mean plain_accumulate") {
    subtract_mean<Bug::kPlainAccumulate>();
  } else if (name == "subtract_mean no_grid_barrier") {
    subtract_mean<Bug::kNoGridBarrier>();
  } else if (name == "cluster_mean none") {
    cluster_mean<Bug::kNone>();
  } else if (name == "cluster_mean no_cluster_barrier") {
    cluster_mean<Bug::kNoClusterBarrier>();
  } else if (name == "cluster_mean no_final_cluster_barrier") {
    cluster_mean<Bug::kNoFinalClusterBarrier>();
  } else if (name == "last_block_sum none") {
    last_block<Bug::kNone>();
  } else if (name == "last_block_sum no_release_fence") {
    last_block<Bug::kNoReleaseFence>();
  } else if (name == "last_block_sum no_acquire_fence") {
    last_block<Bug::kNoAcquireFence>();
  } else if (name == "dependent_chain none") {
    dependent_chain<Bug::kNone>(Chain::kRight);
    dependent_chain<Bug::kNone>(Chain::kRight, {dim3(5), dim3(64), 0, dim3(5), false, true});
    dependent_chain<Bug::kNone>(Chain::kRight, {dim3(5), dim3(64), 0, dim3(1), true, true});
    dependent_chain<Bug::kNone>(Chain::kWritesOverInput);
  } else if (name == "dependent_chain read_before_wait") {
    dependent_chain<Bug::kReadBeforeWait>(Chain::kRight);
  } else if (name == "dependent_chain read_of_first_before_wait") {
    dependent_chain<Bug::kNone>(Chain::kReadsFirstBeforeWait);
  } else if (name == "dependent_chain write_before_wait") {
    dependent_chain<Bug::kWriteBeforeWait>(Chain::kWritesOverInput);
  } else if (name == "dependent_chain return_before_wait") {
    dependent_chain<Bug::kReturnBeforeWait>(Chain::kRight);
  } else if (name == "divergent_barrier none") {
    divergent(64, false);
  } else if (name == "divergent_barrier elsewhere") {
    divergent(40, true);
  } else if (name == "divergent_barrier never") {
    divergent(40, false);
  } else {
    throw std::invalid_argument("no such case: " + name);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  return run(count > 1 ? arguments[1] : "", count > 2 ? arguments[2] : "none");
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
