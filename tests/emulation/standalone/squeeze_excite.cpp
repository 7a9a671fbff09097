// squeeze_excite [SEED]: runs the CUDA launchers on heap memory of exact size, small odd shapes, every path, and
// compares with plain loops in double. Exits with 1 and a line per wrong result; sanitizers end it by themselves.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/language.cuh"
#include "squeeze_excite/squeeze_excite_launch.h"
#include "standalone.h"

namespace se = attnkernels::squeeze_excite;
using attnkernels::DataType;
using attnkernels::Result;

namespace {

using namespace standalone;

// What a call reads and writes.
enum Operand {
  kX,
  kResidual,
  kGradY,
  kReduceWeight,
  kReduceBias,
  kExpandWeight,
  kExpandBias,
  kY,
  kSaved,
  kGradX,
  kGradResidual,
  kGradReduceWeight,
  kGradReduceBias,
  kGradExpandWeight,
  kGradExpandBias,
  kOperands
};
constexpr bool is_map(Operand operand) {
  return operand <= kGradY || operand == kY || operand == kGradX || operand == kGradResidual;
}

struct Case {
  int64_t samples, channels, hidden, pixels;
  bool residual = false, clip = false, bias = true, silu = false, hard = false;
  int64_t offset = 0;         // of the feature maps, in elements past an aligned address
  Operand moved = kOperands;  // one operand that starts so many elements further
  int64_t by = 0;
  bool is_large = false;

  int64_t offset_of(Operand operand) const { return (is_map(operand) ? offset : 0) + (operand == moved ? by : 0); }
};

struct Path {
  const char* name;
  se::Limits limits;
  se::Tuning tuning;
  int64_t samples_at_once;
  bool orders_as_another = false;  // its accesses are those of the next
};

// Few and many multiprocessors: few blocks, and as many as the sizes allow, with splits.
constexpr Path kPaths[] = {
    {"plain launches", {80, 1, 1 << 24, false}, {}, se::kMostSamples, true},
    {"last layer in the map", {90, 64, 1 << 24, true}, {.layer_in_map = 1}, se::kMostSamples},
    {"layers apart, a sample at a time", {90, 1, 4 << 10, true}, {.layer_in_map = 0}, 1},
    {"layers apart, splits", {90, 64, 4 << 10, true}, {.layer_in_map = 0}, se::kMostSamples},
};

struct Expected {
  std::vector<double> y, saved, grad_x, grad_residual, grad_w1, grad_b1, grad_w2, grad_b2;
};

double activation(double u, bool silu) { return silu ? u / (1 + std::exp(-u)) : std::max(u, 0.); }
double activation_derivative(double u, bool silu) {
  const double s = 1 / (1 + std::exp(-u));
  return silu ? s * (1 + u * (1 - s)) : u > 0;
}

// The formulas of attnkernels/ops/squeeze_excite/reference.py; feature maps are [N, C, HW]. y_seen: what the forward
// gave, whose sign decides in the backward.
Expected expect(const Case& c, const std::vector<double>& x, const std::vector<double>& w1,
                const std::vector<double>& b1, const std::vector<double>& w2, const std::vector<double>& b2,
                const std::vector<double>& residual, const std::vector<double>& grad_y,
                const std::vector<double>& y_seen) {
  const int64_t C = c.channels, R = c.hidden, P = c.pixels, K = R ? R : C, columns = 2 * C + R;
  Expected e;
  e.y.resize(x.size());
  e.grad_x.resize(x.size());
  e.grad_residual.resize(x.size());
  e.saved.resize(c.samples * columns);
  e.grad_w1.resize(w1.size());
  e.grad_b1.resize(b1.size());
  e.grad_w2.resize(w2.size());
  e.grad_b2.resize(b2.size());
  for (int64_t n = 0; n < c.samples; ++n) {
    double *mean = &e.saved[n * columns], *u = mean + C, *g = u + R;
    std::vector<double> input(K), slope(C), dv(C), du(K), ds(C);
    for (int64_t i = 0; i < C; ++i) {
      for (int64_t p = 0; p < P; ++p) mean[i] += x[(n * C + i) * P + p] / double(P);
    }
    for (int64_t r = 0; r < R; ++r) {
      u[r] = b1.empty() ? 0 : b1[r];
      for (int64_t i = 0; i < C; ++i) u[r] += w1[r * C + i] * mean[i];
      input[r] = activation(u[r], c.silu);
    }
    if (!R) input.assign(mean, mean + C);
    for (int64_t i = 0; i < C; ++i) {
      double v = b2.empty() ? 0 : b2[i];
      for (int64_t k = 0; k < K; ++k) v += w2[i * K + k] * input[k];
      g[i] = c.hard ? std::min(std::max(v / 6 + 0.5, 0.), 1.) : 1 / (1 + std::exp(-v));
      slope[i] = c.hard ? (std::fabs(v) < 3 ? 1. / 6 : 0) : g[i] * (1 - g[i]);
      double dg = 0;
      for (int64_t p = 0; p < P; ++p) {
        const int64_t at = (n * C + i) * P + p;
        const double y = x[at] * g[i] + (residual.empty() ? 0 : residual[at]);
        e.y[at] = c.clip ? std::max(y, 0.) : y;
        e.grad_residual[at] = c.clip && y_seen[at] <= 0 ? 0 : grad_y[at];
        dg += e.grad_residual[at] * x[at];
      }
      dv[i] = dg * slope[i];
      if (!b2.empty()) e.grad_b2[i] += dv[i];
      for (int64_t k = 0; k < K; ++k) {
        e.grad_w2[i * K + k] += dv[i] * input[k];
        du[k] += dv[i] * w2[i * K + k];
      }
    }
    for (int64_t r = 0; r < R; ++r) {
      du[r] *= activation_derivative(u[r], c.silu);
      if (!b1.empty()) e.grad_b1[r] += du[r];
      for (int64_t i = 0; i < C; ++i) {
        e.grad_w1[r * C + i] += du[r] * mean[i];
        ds[i] += du[r] * w1[r * C + i];
      }
    }
    if (!R) ds = du;
    for (int64_t i = 0; i < C; ++i)
      for (int64_t p = 0; p < P; ++p) {
        const int64_t at = (n * C + i) * P + p;
        e.grad_x[at] = e.grad_residual[at] * g[i] + ds[i] / double(P);
      }
  }
  return e;
}

// [N, C, HW] from the layout of the kernels.
std::vector<double> planes(const std::vector<double>& values, const Case& c, bool channels_last) {
  if (!channels_last || values.empty()) return values;
  std::vector<double> result(values.size());
  for (int64_t n = 0; n < c.samples; ++n)
    for (int64_t i = 0; i < c.channels; ++i)
      for (int64_t p = 0; p < c.pixels; ++p)
        result[(n * c.channels + i) * c.pixels + p] = values[(n * c.pixels + p) * c.channels + i];
  return result;
}

template <class T>
void check(const Case& c, const Path& path, bool channels_last, DataType type, double tolerance, unsigned seed) {
  using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](Operand operand, int64_t count) {
    Buffer<T> buffer(count, c.offset_of(operand));
    for (int64_t i = 0; i < count; ++i) assign(buffer[i], normal(generator));
    return buffer;
  };
  const int64_t elements = c.samples * c.channels * c.pixels, width = c.hidden ? c.hidden : c.channels;
  auto x = fill(kX, elements), residual = fill(kResidual, c.residual ? elements : 0), grad_y = fill(kGradY, elements);
  auto w1 = fill(kReduceWeight, c.hidden * c.channels), b1 = fill(kReduceBias, c.bias ? c.hidden : 0);
  auto w2 = fill(kExpandWeight, c.channels * width), b2 = fill(kExpandBias, c.bias ? c.channels : 0);
  Buffer<T> y(elements, c.offset_of(kY));

  const se::Shape shape{{c.samples, c.channels, c.pixels, channels_last},
                        c.hidden,
                        c.silu ? se::Activation::kSilu : se::Activation::kRelu,
                        c.hard ? attnkernels::Gate::kHardSigmoid : attnkernels::Gate::kSigmoid,
                        c.clip ? attnkernels::OutputActivation::kRelu : attnkernels::OutputActivation::kNone};
  Buffer<acc_t> saved(c.samples * shape.saved_columns(), c.offset_of(kSaved));
  std::string name = std::string(path.name) + (channels_last ? " channels_last" : "") + " type " +
                     std::to_string(int(type)) + " N " + std::to_string(c.samples) + " C " +
                     std::to_string(c.channels) + " rd " + std::to_string(c.hidden) + " HW " +
                     std::to_string(c.pixels) + " operand " + std::to_string(c.moved) + " by " + std::to_string(c.by);
  const auto run = [&](const char* what, const Result& result) { check_launches(name + ": " + what, result); };

  se::Plan plan = se::choose_forward(type, shape, path.limits, path.tuning);
  plan.samples_at_once = path.samples_at_once;
  Buffer<acc_t> scratch(se::forward_scratch(shape, plan));
  run("forward", se::forward(type, shape, plan,
                             {x.data(), w1.data(), b1.data(), w2.data(), b2.data(), residual.data(), y.data(),
                              saved.data(), scratch.data()},
                             nullptr));
  const Expected want = expect(c, planes(x.doubles(), c, channels_last), w1.doubles(), b1.doubles(), w2.doubles(),
                               b2.doubles(), planes(residual.doubles(), c, channels_last),
                               planes(grad_y.doubles(), c, channels_last), planes(y.doubles(), c, channels_last));
  compare(name + " y", planes(y.doubles(), c, channels_last), want.y, tolerance);
  compare(name + " saved", saved.doubles(), want.saved, std::is_same_v<T, double> ? 1e-13 : 1e-5);

  // Of the parameters: the weights alone, or the biases alone.
  enum { kWeights = 0b01010, kBiases = 0b10100, kAll = se::kNeedsX | se::kNeedsWeights | se::kNeedsResidual };
  const std::vector<int> every_need = {kAll, se::kNeedsX, se::kNeedsResidual, kWeights, kBiases};
  // What a call skips, in one type of each size but double's: half is accessed as bfloat16 is.
  const bool every = !kWatchesOrder && !c.is_large && c.by <= 1 && type != DataType::kHalf && type != DataType::kDouble;
  for (const int needs : every ? every_need : std::vector<int>{kAll}) {
    se::Plan backward = se::choose_backward(type, shape, path.limits, path.tuning);
    backward.samples_at_once = path.samples_at_once;
    Buffer<acc_t> backward_scratch(se::backward_scratch(shape, backward));
    const auto result = [&](Operand operand, int64_t count) { return Buffer<T>(count, c.offset_of(operand)); };
    auto grad_x = result(kGradX, elements), grad_residual = result(kGradResidual, elements);
    auto grad_w1 = result(kGradReduceWeight, w1.count), grad_b1 = result(kGradReduceBias, b1.count);
    auto grad_w2 = result(kGradExpandWeight, w2.count), grad_b2 = result(kGradExpandBias, b2.count);
    const bool for_x = needs & se::kNeedsX, for_residual = needs & se::kNeedsResidual, for_weights = needs & kWeights,
               for_biases = needs & kBiases;
    run("backward", se::backward(type, shape, backward,
                                 {grad_y.data(), x.data(), c.clip ? y.data() : nullptr, w1.data(), w2.data(),
                                  saved.data(), for_x ? grad_x.data() : nullptr,
                                  for_residual ? grad_residual.data() : nullptr, for_weights ? grad_w1.data() : nullptr,
                                  for_biases ? grad_b1.data() : nullptr, for_weights ? grad_w2.data() : nullptr,
                                  for_biases ? grad_b2.data() : nullptr, backward_scratch.data()},
                                 nullptr));
    const std::string with = name + " needs " + std::to_string(needs);
    if (for_x) compare(with + " grad_x", planes(grad_x.doubles(), c, channels_last), want.grad_x, tolerance);
    if (for_residual)
      compare(with + " grad_residual", planes(grad_residual.doubles(), c, channels_last), want.grad_residual,
              tolerance);
    if (for_weights) {
      compare(with + " grad_reduce_weight", grad_w1.doubles(), want.grad_w1, tolerance);
      compare(with + " grad_expand_weight", grad_w2.doubles(), want.grad_w2, tolerance);
    }
    if (for_biases) {
      compare(with + " grad_reduce_bias", grad_b1.doubles(), want.grad_b1, tolerance);
      compare(with + " grad_expand_bias", grad_b2.doubles(), want.grad_b2, tolerance);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const unsigned seed = count > 1 ? unsigned(std::atoi(arguments[1])) : 1;
  const std::vector<Case> cases = {
      {2, 5, 3, 49, true, true},
      {3, 16, 4, 9, false, true, false, true},
      {1, 8, 2, 600, true, false, true, false, true},  // long planes
      {2, 24, 20, 1, false, false, true, true},
      {2, 20, 12, 1, false, false, true, false, true},  // gates that are shut, and wide open
      {1, 3, 0, 50, true, true, true, false, true},
      {2, 16, 0, 16, false, false},
      {1, 4, 0, 1100},  // the same with splits
      {1, 7, 2, 61, true, true, true, false, false, 1},
      {1, 8, 2, 33, true, true, true, true, true, 3},
      {3, 11, 9, 130, false, false, false},  // odd widths, fewer samples than a block of a layer takes
      {5, 8, 12, 66, false, true},           // and one more
      {1, 1, 1, 1},
  };
  for (const Path& path : kPaths)
    for (const bool channels_last : {false, true}) {
      if (kWatchesOrder && path.orders_as_another) continue;
      for (const Case& c : cases) {
        check<float>(c, path, channels_last, DataType::kFloat, 2e-5, seed);
        if (!kWatchesOrder) {
          check<__nv_bfloat16>(c, path, channels_last, DataType::kBFloat16, 6e-3, seed);
          check<__half>(c, path, channels_last, DataType::kHalf, 8e-4, seed);
          check<double>(c, path, channels_last, DataType::kDouble, 1e-13, seed);
        }
        if (failures) return finish();
      }
    }
  // Each operand at an alignment of its own: planes of several vectors, which start anywhere, and pixels of whole ones.
  for (const Path& path : kPaths)
    for (const bool channels_last : {false, true}) {
      if (path.orders_as_another || (kWatchesOrder && channels_last)) continue;
      for (const bool long_planes : kWatchesOrder ? std::vector<bool>{false} : std::vector<bool>{false, true})
        for (int moved = 0; moved < kOperands; ++moved)
          for (const int64_t by : {1, 3}) {
            Case c{1, long_planes ? 2 : 16, long_planes ? 1 : 8, long_planes ? 300 : 21, true, true};
            c.moved = Operand(moved);
            c.by = by;
            if ((kWatchesOrder || long_planes) && (by > 1 || !is_map(c.moved))) continue;
            check<float>(c, path, channels_last, DataType::kFloat, 2e-5, seed);
            if (!kWatchesOrder && !long_planes)
              check<__nv_bfloat16>(c, path, channels_last, DataType::kBFloat16, 6e-3, seed);
            if (failures) return finish();
          }
    }
  // Splits, of columns of odd channels and of planes.
  check<float>({2, 5, 3, 1100, true}, kPaths[1], true, DataType::kFloat, 2e-5, seed);
  if (!kWatchesOrder) check<float>({2, 1, 1, 8300}, kPaths[1], false, DataType::kFloat, 2e-5, seed);
  // Layers of more rows, columns and inputs than a block takes at once, and of several samples; tiles of weights.
  if (!kWatchesOrder) {
    const auto large = [](int64_t samples, int64_t channels, int64_t hidden, int64_t pixels) {
      Case c{samples, channels, hidden, pixels};
      c.is_large = true;
      return c;
    };
    for (const Case& c : {large(2, 1026, 5, 2), large(1, 1026, 0, 1), large(2, 3, 1030, 2)})
      check<double>(c, kPaths[2], false, DataType::kDouble, 1e-13, seed);
    for (const Case& c : {large(2, 2056, 12, 1), large(17, 264, 136, 1), large(130, 16, 16, 1)})
      for (const Path& path : kPaths) check<__nv_bfloat16>(c, path, true, DataType::kBFloat16, 6e-3, seed);
  }
  return finish();
}
