// efficient_channel_attention [SEED]: runs the CUDA launchers on heap memory of exact size, small odd shapes, every
// path, and compares with plain loops in double. Exits with 1 and a line per wrong result; sanitizers end it by
// themselves.
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "common/language.cuh"
#include "efficient_channel_attention/efficient_channel_attention_launch.h"
#include "standalone.h"

namespace eca = attnkernels::efficient_channel_attention;
using attnkernels::DataType;

namespace {

using namespace standalone;

// What a call reads and writes.
enum Operand { kX, kResidual, kGradY, kWeight, kY, kSaved, kGradX, kGradResidual, kGradWeight, kOperands };
constexpr bool is_map(Operand operand) { return operand != kWeight && operand != kSaved && operand != kGradWeight; }

struct Case {
  int64_t samples, channels, pixels, taps;
  bool circular = false, residual = false, clip = false, hard = false;
  int64_t offset = 0;         // of the feature maps, in elements past an aligned address
  Operand moved = kOperands;  // one operand that starts so many elements further
  int64_t by = 0;

  int64_t offset_of(Operand operand) const { return (is_map(operand) ? offset : 0) + (operand == moved ? by : 0); }
};

struct Path {
  const char* name;
  eca::Limits limits;
  eca::Tuning tuning;
  int64_t samples_at_once;
};

// Few and many multiprocessors: few blocks, and as many as the sizes allow, with splits.
constexpr Path kPaths[] = {
    {"plain launches", {80, 1, 1 << 24, false}, {}, eca::kMostSamples},
    {"splits", {90, 64, 4 << 10, true}, {}, eca::kMostSamples},
    {"a sample at a time", {90, 64, 4 << 10, true}, {.most_splits = 1}, 1},
};

struct Expected {
  std::vector<double> y, saved, grad_x, grad_residual, grad_weight;
};

// The formulas of attnkernels/ops/efficient_channel_attention/reference.py. y_seen: what the forward gave, whose sign
// decides in the backward.
Expected expect(const Case& c, bool channels_last, const std::vector<double>& x, const std::vector<double>& weight,
                const std::vector<double>& residual, const std::vector<double>& grad_y,
                const std::vector<double>& y_seen) {
  const int64_t C = c.channels, P = c.pixels;
  const auto place = [=](int64_t n, int64_t i, int64_t p) {
    return channels_last ? (n * P + p) * C + i : (n * C + i) * P + p;
  };
  Expected e;
  for (std::vector<double>* map : {&e.y, &e.grad_x, &e.grad_residual}) map->resize(x.size());
  e.saved.resize(c.samples * 2 * C);
  e.grad_weight.resize(c.taps);
  const auto for_each_tap = [&](auto body) {  // body(channel of the gate, tap, channel of the mean)
    for (int64_t i = 0; i < C; ++i)
      for (int64_t j = 0; j < c.taps; ++j) {
        const int64_t other = i + j - c.taps / 2;
        if (c.circular || (other >= 0 && other < C)) body(i, j, (other + C) % C);
      }
  };
  for (int64_t n = 0; n < c.samples; ++n) {
    double *mean = &e.saved[n * 2 * C], *gate = mean + C;
    std::vector<double> v(C), dv(C), dm(C);
    for (int64_t i = 0; i < C; ++i)
      for (int64_t p = 0; p < P; ++p) mean[i] += x[place(n, i, p)] / double(P);
    for_each_tap([&](int64_t i, int64_t j, int64_t other) { v[i] += weight[j] * mean[other]; });
    for (int64_t i = 0; i < C; ++i) {
      gate[i] = c.hard ? std::min(std::max(v[i] / 6 + 0.5, 0.), 1.) : 1 / (1 + std::exp(-v[i]));
      for (int64_t p = 0; p < P; ++p) {
        const int64_t at = place(n, i, p);
        const double y = x[at] * gate[i] + (residual.empty() ? 0 : residual[at]);
        e.y[at] = c.clip ? std::max(y, 0.) : y;
        e.grad_residual[at] = c.clip && y_seen[at] <= 0 ? 0 : grad_y[at];
        dv[i] += e.grad_residual[at] * x[at];
      }
      dv[i] *= c.hard ? (std::fabs(v[i]) < 3 ? 1. / 6 : 0) : gate[i] * (1 - gate[i]);
    }
    for_each_tap([&](int64_t i, int64_t j, int64_t other) {
      e.grad_weight[j] += dv[i] * mean[other];
      dm[other] += weight[j] * dv[i];
    });
    for (int64_t i = 0; i < C; ++i)
      for (int64_t p = 0; p < P; ++p) {
        const int64_t at = place(n, i, p);
        e.grad_x[at] = e.grad_residual[at] * gate[i] + dm[i] / double(P);
      }
  }
  return e;
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
  const int64_t elements = c.samples * c.channels * c.pixels;
  auto x = fill(kX, elements), residual = fill(kResidual, c.residual ? elements : 0), grad_y = fill(kGradY, elements);
  auto weight = fill(kWeight, c.taps);
  Buffer<T> y(elements, c.offset_of(kY));
  const eca::Shape shape{{c.samples, c.channels, c.pixels, channels_last},
                         c.taps,
                         c.circular,
                         c.hard ? attnkernels::Gate::kHardSigmoid : attnkernels::Gate::kSigmoid,
                         c.clip ? attnkernels::OutputActivation::kRelu : attnkernels::OutputActivation::kNone};
  Buffer<acc_t> saved(c.samples * shape.saved_columns(), c.offset_of(kSaved));
  const std::string name = std::string(path.name) + (channels_last ? " channels_last" : "") + " type " +
                           std::to_string(int(type)) + " N " + std::to_string(c.samples) + " C " +
                           std::to_string(c.channels) + " HW " + std::to_string(c.pixels) + " k " +
                           std::to_string(c.taps) + " offset " + std::to_string(c.offset) + " operand " +
                           std::to_string(c.moved) + " by " + std::to_string(c.by);

  eca::Plan plan = eca::choose(type, shape, path.limits, false, path.tuning);
  plan.samples_at_once = path.samples_at_once;
  Buffer<acc_t> scratch(eca::forward_scratch(shape, plan));
  check_launches(
      name + ": forward",
      eca::forward(type, shape, plan,
                   {x.data(), weight.data(), residual.data(), y.data(), saved.data(), scratch.data()}, nullptr));
  const Expected want =
      expect(c, channels_last, x.doubles(), weight.doubles(), residual.doubles(), grad_y.doubles(), y.doubles());
  compare(name + " y", y.doubles(), want.y, tolerance);
  compare(name + " saved", saved.doubles(), want.saved, std::is_same_v<T, double> ? 1e-13 : 1e-5);

  constexpr int kAll = eca::kNeedsX | eca::kNeedsWeight | eca::kNeedsResidual;
  const std::vector<int> every_need = {kAll, eca::kNeedsX, eca::kNeedsWeight, eca::kNeedsResidual};
  // What a call skips, in one type of each size but double's: half is accessed as bfloat16 is.
  const bool every = !kWatchesOrder && c.by <= 1 && type != DataType::kHalf && type != DataType::kDouble;
  for (const int needs : every ? every_need : std::vector<int>{kAll}) {
    eca::Plan backward = eca::choose(type, shape, path.limits, true, path.tuning);
    backward.samples_at_once = path.samples_at_once;
    Buffer<acc_t> backward_scratch(eca::backward_scratch(shape, backward));
    Buffer<T> grad_x(needs & eca::kNeedsX ? elements : 0, c.offset_of(kGradX));
    Buffer<T> grad_residual(needs & eca::kNeedsResidual ? elements : 0, c.offset_of(kGradResidual));
    Buffer<T> grad_weight(needs & eca::kNeedsWeight ? c.taps : 0, c.offset_of(kGradWeight));
    const std::string with = name + " needs " + std::to_string(needs);
    check_launches(with,
                   eca::backward(type, shape, backward,
                                 {grad_y.data(), x.data(), c.clip ? y.data() : nullptr, weight.data(), saved.data(),
                                  grad_x.data(), grad_residual.data(), grad_weight.data(), backward_scratch.data()},
                                 nullptr));
    if (grad_x.count) compare(with + " grad_x", grad_x.doubles(), want.grad_x, tolerance);
    if (grad_residual.count) compare(with + " grad_residual", grad_residual.doubles(), want.grad_residual, tolerance);
    if (grad_weight.count) compare(with + " grad_weight", grad_weight.doubles(), want.grad_weight, tolerance);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const unsigned seed = count > 1 ? unsigned(std::atoi(arguments[1])) : 1;
  const std::vector<Case> cases = {
      {2, 5, 49, 3, false, true, true},
      {3, 16, 9, 5, true, false, true, true},
      {1, 8, 600, 3, true, true},         // long planes
      {2, 24, 1, 7, false, false, true},  // one pixel
      {2, 3, 21, 255},                    // most taps lie beyond the channels
      {2, 3, 21, 7, true, true, true},    // taps all around the channels
      {1, 1, 1, 1},
      {1, 7, 61, 3, false, true, true, false, 1},  // maps that begin alike, off the boundary
      {1, 70, 33, 9, true, true, true, true, 3},   // several tiles of channels, the last not full
      {2, 5, 1100, 3, false, true, true},          // pixels split among blocks
      {1, 1, 8300, 1},                             // planes split among blocks
  };
  for (const Path& path : kPaths)
    for (const bool channels_last : {false, true})
      for (const Case& c : cases) {
        // Blocks of more threads than ThreadSanitizer has: one for each tap, and for each few hundred pixels.
        if (kWatchesOrder && (c.taps > 9 || (channels_last && c.pixels > 8000))) continue;
        check<float>(c, path, channels_last, DataType::kFloat, 2e-5, seed);
        if (!kWatchesOrder) {
          check<__nv_bfloat16>(c, path, channels_last, DataType::kBFloat16, 6e-3, seed);
          check<__half>(c, path, channels_last, DataType::kHalf, 8e-4, seed);
          check<double>(c, path, channels_last, DataType::kDouble, 1e-13, seed);
        }
        if (failures) return finish();
      }
  // Each operand at an alignment of its own.
  for (const bool channels_last : {false, true})
    for (int moved = 0; moved < kOperands; ++moved)
      for (const int64_t by : {1, 3}) {
        if (kWatchesOrder && by > 1) continue;
        Case c{1, 16, 21, 5, true, true, true};
        c.moved = Operand(moved);
        c.by = by;
        check<float>(c, kPaths[1], channels_last, DataType::kFloat, 2e-5, seed);
        if (!kWatchesOrder) check<__nv_bfloat16>(c, kPaths[1], channels_last, DataType::kBFloat16, 6e-3, seed);
        if (failures) return finish();
      }
  // What is split among blocks must be among the cases, in both directions.
  const eca::Shape planes_split{{1, 1, 8300, false}, 1}, pixels_split{{2, 5, 1100, true}, 3};
  for (const eca::Shape& shape : {planes_split, pixels_split})
    for (const bool backward : {false, true}) {
      if (eca::choose(DataType::kFloat, shape, kPaths[1].limits, backward).sums.splits > 1) continue;
      std::printf("%s are not split\n", shape.channels_last ? "pixels" : "planes");
      ++failures;
    }
  return finish();
}
