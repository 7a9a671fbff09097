// selective_kernel [SEED]: runs the CUDA launchers on heap memory of exact size, small odd shapes, both layouts,
// aligned and not, and compares with plain loops in double. Exits with 1 and a line per wrong result; sanitizers end it
// by themselves.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/language.cuh"
#include "selective_kernel/selective_kernel_launch.h"
#include "standalone.h"

namespace sk = attnkernels::selective_kernel;
using attnkernels::DataType;

namespace {

using namespace standalone;

// What a call reads and writes; kBranches and kGrads are the first of kMaxBranches each.
enum Operand {
  kGradY,
  kY,
  kLogits,
  kWeights,
  kPooled,
  kGradPooled,
  kGradLogits,
  kBranches,
  kGrads = kBranches + sk::kMaxBranches,
  kOperands = kGrads + sk::kMaxBranches
};

struct Case {
  int64_t samples, channels, pixels;
  int branches;
  bool stacked = false;   // the branches and their gradients are slices of one tensor
  int64_t offset = 0;     // of all maps, in elements past an aligned address
  double logits = 1;      // their size
  int moved = kOperands;  // one operand that starts so many elements further
  int64_t by = 0;

  int64_t offset_of(int operand) const { return operand == moved ? by : 0; }
};

// A feature map [N, C, P] in the memory of `rows`.
template <class T>
double at(const sk::Rows<T>& rows, bool channels_last, int64_t n, int64_t c, int64_t p) {
  return to_double(rows.row(n, channels_last ? p : c)[channels_last ? c : p]);
}

// Compares as it goes; a NaN is the worst error.
struct Comparison {
  std::string what;
  double tolerance, worst = 0, scale = 1e-30;
  void add(double got, double want) {
    const double error = std::fabs(got - want);
    worst = error <= worst ? worst : error;
    scale = std::max(scale, std::fabs(want));
  }
  ~Comparison() {
    if (worst <= tolerance * scale) return;
    std::printf("%s: error %.3g, allowed %.3g\n", what.c_str(), worst / scale, tolerance);
    ++failures;
  }
};

template <class T>
sk::Rows<const void> untyped(const sk::Rows<T>& x) {
  return {x.data, x.sample_stride, x.row_stride};
}

template <class T>
void check(const Case& c, bool channels_last, DataType type, double tolerance, unsigned seed) {
  using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t N = c.samples, C = c.channels, P = c.pixels;
  const int M = c.branches;
  const sk::Shape shape{{N, C, P, channels_last}, M};
  const std::string name = std::string(channels_last ? "NHWC" : "NCHW") + " type " + std::to_string(int(type)) + " N " +
                           std::to_string(N) + " C " + std::to_string(C) + " P " + std::to_string(P) + " M " +
                           std::to_string(M) + (c.stacked ? " stacked" : "") + " offset " + std::to_string(c.offset) +
                           " operand " + std::to_string(c.moved) + " by " + std::to_string(c.by);
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](auto& buffer, double size = 1) {
    for (int64_t i = 0; i < buffer.count; ++i) assign(buffer[i], size * normal(generator));
  };
  const auto run = [&](const char* what, const attnkernels::Result& result) {
    check_launches(name + ": " + what, result);
  };

  // M maps in one tensor, or each in its own
  std::vector<Buffer<T>> memory;
  const auto maps = [&](int first) {
    std::vector<sk::Rows<T>> result;
    if (c.stacked) {
      memory.emplace_back(N * M * C * P, c.offset + c.offset_of(first));
      for (int m = 0; m < M; ++m)
        result.push_back(
            {memory.back().data() + m * (channels_last ? C : C * P), M * C * P, channels_last ? M * C : P});
    } else {
      for (int m = 0; m < M; ++m) {
        memory.emplace_back(N * C * P, c.offset + c.offset_of(first + m));
        result.push_back({memory.back().data(), C * P, channels_last ? C : P});
      }
    }
    return result;
  };
  const auto map = [&](Operand operand) {
    memory.emplace_back(N * C * P, c.offset + c.offset_of(operand));
    return sk::Rows<T>{memory.back().data(), C * P, channels_last ? C : P};
  };
  memory.reserve(2 * M + 2);  // results point into it
  const std::vector<sk::Rows<T>> x = maps(kBranches);
  const sk::Rows<T> grad_y = map(kGradY);
  for (Buffer<T>& buffer : memory) fill(buffer);
  const sk::Rows<T> y = map(kY);
  const std::vector<sk::Rows<T>> grads = maps(kGrads);
  Buffer<T> logits(N * M * C, c.offset_of(kLogits)), grad_pooled(N * C, c.offset_of(kGradPooled)),
      pooled(N * C, c.offset_of(kPooled)), grad_logits(N * M * C, c.offset_of(kGradLogits));
  // At 16 bytes, as vectors must be, and at no more.
  Buffer<acc_t> weights(N * M * C, 16 / sizeof(acc_t) + c.offset_of(kWeights));
  fill(logits, c.logits);
  fill(grad_pooled);

  sk::Branches<const void> branches{};
  for (int m = 0; m < M; ++m) branches.branch[m] = untyped(x[m]);
  const sk::Rows<const void> dy = untyped(grad_y);
  {
    const sk::Tiles tiles = sk::choose_sums(type, shape, branches, nullptr);
    Buffer<acc_t> partial(sk::partial_sums(shape, tiles, 1));
    run("pool", sk::pool(type, shape, tiles, {branches, pooled.data(), partial.data()}, nullptr));
  }
  run("select",
      sk::select(type, shape, {branches, logits.data(), weights.data(), {y.data, y.sample_stride, y.row_stride}},
                 nullptr));
  {
    const sk::Tiles tiles = sk::choose_sums(type, shape, branches, &dy);
    Buffer<acc_t> partial(sk::partial_sums(shape, tiles, M));
    run("grad_logits", sk::grad_logits(type, shape, tiles,
                                       {dy, branches, weights.data(), grad_logits.data(), partial.data()}, nullptr));
  }

  Comparison pool{name + " pooled", tolerance}, select{name + " y", tolerance}, dz{name + " grad_logits", tolerance};
  std::vector<double> a(N * M * C);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t i = 0; i < C; ++i) {
      double total = 0, mean = 0, sum = 0;
      std::vector<double> da(M);
      const auto coefficient = [&](int m) { return (n * M + m) * C + i; };
      for (int m = 0; m < M; ++m) total += a[coefficient(m)] = std::exp(to_double(logits[coefficient(m)]));
      for (int m = 0; m < M; ++m) a[coefficient(m)] /= total;
      for (int64_t p = 0; p < P; ++p) {
        double selected = 0;
        for (int m = 0; m < M; ++m) {
          const double value = at(x[m], channels_last, n, i, p);
          sum += value;
          selected += a[coefficient(m)] * value;
          da[m] += at(grad_y, channels_last, n, i, p) * value;
        }
        select.add(at(y, channels_last, n, i, p), selected);
      }
      for (int m = 0; m < M; ++m) mean += a[coefficient(m)] * da[m];
      pool.add(to_double(pooled[n * C + i]), sum / double(P));
      for (int m = 0; m < M; ++m) dz.add(to_double(grad_logits[coefficient(m)]), a[coefficient(m)] * (da[m] - mean));
    }

  for (const bool with_pooled : {true, false}) {
    sk::Branches<void> results{};
    for (int m = 0; m < M; ++m)  // without the pooled term also without the first branch, where there are others
      if (with_pooled || m || M == 1) results.branch[m] = {grads[m].data, grads[m].sample_stride, grads[m].row_stride};
    run("grad_branches",
        sk::grad_branches(type, shape, {dy, weights.data(), with_pooled ? grad_pooled.data() : nullptr, results},
                          nullptr));
    Comparison dx{name + " grad_branches", tolerance};
    for (int m = 0; m < M; ++m)
      for (int64_t n = 0; results.branch[m].data && n < N; ++n)
        for (int64_t i = 0; i < C; ++i)
          for (int64_t p = 0; p < P; ++p) {
            const double shift = with_pooled ? to_double(grad_pooled[n * C + i]) / double(P) : 0;
            dx.add(at(grads[m], channels_last, n, i, p),
                   a[(n * M + m) * C + i] * at(grad_y, channels_last, n, i, p) + shift);
          }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const unsigned seed = count > 1 ? unsigned(std::atoi(arguments[1])) : 1;
  const std::vector<Case> cases = {
      {2, 5, 49, 2},
      {1, 16, 9, 3, true},
      {1, 3, 2100, 2},               // planes split among warps
      {1, 1, 10000, 2, true},        // planes and pixels split among blocks
      {1, 8, 3000, 3},               // the same of vectors of pixels, with more than two branches
      {2, 40, 16, 4, true, 0, 100},  // exp(logit) is infinite
      {1, 33, 6, 2},                 // the last tile of channels is not full
      {1, 264, 5, 2},                // nor is it in vectors of 16-bit elements
      {2, 24, 1, 8},
      {1, 16, 61, 2, false, 1},  // rows that begin alike, off the boundary
      {2, 16, 33, 3, false, 3},
      {1, 1, 1, 1},
  };
  for (const Case& c : cases)
    for (const bool channels_last : {false, true}) {
      check<float>(c, channels_last, DataType::kFloat, 1e-5, seed);
      if (!kWatchesOrder) {
        check<__nv_bfloat16>(c, channels_last, DataType::kBFloat16, 5e-3, seed);
        check<__half>(c, channels_last, DataType::kHalf, 6e-4, seed);
        check<double>(c, channels_last, DataType::kDouble, 1e-13, seed);
      }
      if (failures) return finish();
    }
  // Each operand at an alignment of its own.
  for (const bool stacked : {false, true})
    for (const bool channels_last : {false, true})
      for (int moved = 0; moved < kOperands; ++moved)
        for (const int64_t by : {1, 3}) {
          Case c{1, 16, 20, 3, stacked};
          c.moved = moved;
          c.by = by;
          const int of_them = moved >= kGrads ? moved - kGrads : moved - kBranches;  // branches, or gradients
          if (moved >= kBranches && of_them >= (stacked ? 1 : c.branches)) continue;
          if (kWatchesOrder && (by > 1 || stacked)) continue;
          check<float>(c, channels_last, DataType::kFloat, 1e-5, seed);
          if (!kWatchesOrder) check<__nv_bfloat16>(c, channels_last, DataType::kBFloat16, 5e-3, seed);
          if (failures) return finish();
        }
  // What is split among blocks, and vectorised, must be among the cases.
  const sk::Shape planes{{1, 1, 10000, false}, 2}, pixels{{1, 8, 3000, true}, 3};
  for (const sk::Shape& shape : {planes, pixels}) {
    const sk::Tiles tiles = sk::choose_tiles(shape, 4, true, sk::Tuning().most_sum_blocks);
    if (tiles.splits > 1) continue;
    std::printf("%s are not split\n", shape.channels_last ? "pixels" : "planes");
    ++failures;
  }
  return finish();
}
