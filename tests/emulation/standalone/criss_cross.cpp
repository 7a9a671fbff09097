// criss_cross [SEED]: runs the CUDA launchers on heap memory of exact size, small odd shapes, and compares with plain
// loops in double. Exits with 1 and a line per wrong result; sanitizers end it by themselves.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/language.cuh"
#include "criss_cross/criss_cross_launch.h"
#include "emulation/device.h"
#include "standalone.h"

namespace cc = attnkernels::criss_cross;
using attnkernels::DataType;
using Numbers = std::vector<double>;

namespace {

using namespace standalone;

// What is given to the calls; of attention and of the affinity functions, which have their own. Results start at
// multiples of 16 bytes.
enum Operand { kQuery, kKey, kValue, kGradOut, kOut, kLogSumExp, kA, kB, kAffinity, kOperands };

struct Case {
  int64_t samples, query_channels, value_channels, depth, height, width;
  int64_t offset = 0;     // of the inputs, in elements past an aligned address
  int moved = kOperands;  // one of them that starts so many elements further
  int64_t by = 0;

  int64_t offset_of(Operand operand) const { return offset + (operand == moved ? by : 0); }
};

constexpr int64_t kLargeMap = 40;  // pixels; larger ones take as long as all others together

// visit(query, key, entry) for every pair of pixels of a sample; in volumes the entry means nothing.
template <class Visit>
void for_each_pair(const cc::Shape& shape, Visit visit) {
  const int64_t H = shape.height, W = shape.width, plane = H * W;
  for (int64_t p = 0; p < shape.pixels(); ++p) {
    const int64_t d = p / plane, h = p / W % H, w = p % W;
    for (int64_t j = 0; j < W; ++j) visit(p, p - w + j, j);
    for (int64_t i = 0; i < H; ++i)
      if (i != h) visit(p, p + (i - h) * W, W + i - (i > h));
    for (int64_t i = 0; i < shape.depth; ++i)
      if (i != d) visit(p, p + (i - d) * plane, -1);
  }
}

// A map [P, channels] of one sample.
struct Map {
  const double* data;
  int64_t channels;
  double dot(int64_t pixel, const Map& other, int64_t other_pixel) const {
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += data[pixel * channels + c] * other.data[other_pixel * channels + c];
    return sum;
  }
};

void add(double* to, int64_t pixel, double weight, const Map& map, int64_t map_pixel) {
  for (int64_t c = 0; c < map.channels; ++c)
    to[pixel * map.channels + c] += weight * map.data[map_pixel * map.channels + c];
}

struct Attention {
  Numbers out, log_sum_exp, grad_query, grad_key, grad_value;
};

// The formulas of attnkernels/ops/criss_cross/reference.py.
Attention attention(const cc::Shape& shape, const Numbers& query, const Numbers& key, const Numbers& value,
                    const Numbers& grad_out) {
  const int64_t P = shape.pixels(), Q = shape.query_channels, C = shape.value_channels;
  Attention result{Numbers(value.size()), Numbers(shape.samples * P), Numbers(query.size()), Numbers(key.size()),
                   Numbers(value.size())};
  for (int64_t n = 0; n < shape.samples; ++n) {
    const Map q{query.data() + n * P * Q, Q}, k{key.data() + n * P * Q, Q}, v{value.data() + n * P * C, C},
        g{grad_out.data() + n * P * C, C}, o{result.out.data() + n * P * C, C};
    double* const statistics = result.log_sum_exp.data() + n * P;
    for_each_pair(shape, [&](int64_t i, int64_t j, int64_t) { statistics[i] += std::exp(q.dot(i, k, j)); });
    for (int64_t p = 0; p < P; ++p) statistics[p] = std::log(statistics[p]);
    const auto probability = [&](int64_t i, int64_t j) { return std::exp(q.dot(i, k, j) - statistics[i]); };
    for_each_pair(shape, [&](int64_t i, int64_t j, int64_t) {
      add(result.out.data() + n * P * C, i, probability(i, j), v, j);
      add(result.grad_value.data() + n * P * C, j, probability(i, j), g, i);
    });
    for_each_pair(shape, [&](int64_t i, int64_t j, int64_t) {
      const double grad_energy = probability(i, j) * (g.dot(i, v, j) - g.dot(i, o, i));
      add(result.grad_query.data() + n * P * Q, i, grad_energy, k, j);
      add(result.grad_key.data() + n * P * Q, j, grad_energy, q, i);
    });
  }
  return result;
}

template <class T>
struct Checker {
  using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
  Case c;
  DataType type;
  double tolerance;
  std::mt19937 generator;
  cc::Shape shape{c.samples, c.query_channels, c.value_channels, c.depth, c.height, c.width, true};
  int64_t count = c.samples * shape.pixels();
  std::string name = "type " + std::to_string(int(type)) + " N " + std::to_string(c.samples) + " C " +
                     std::to_string(c.query_channels) + " " + std::to_string(c.value_channels) + " size " +
                     std::to_string(c.depth) + " " + std::to_string(c.height) + " " + std::to_string(c.width) +
                     " operand " + std::to_string(c.moved) + " by " + std::to_string(c.by) + ": ";

  Buffer<T> random(Operand operand, int64_t channels, double scale = 1) {
    std::normal_distribution<double> normal;
    Buffer<T> buffer(count * channels, c.offset_of(operand));
    for (int64_t i = 0; i < buffer.count; ++i) assign(buffer.data()[i], scale * normal(generator));
    return buffer;
  }
  // A result as another call is given it.
  template <class Number>
  Buffer<Number> given(Operand operand, Buffer<Number>& result) {
    Buffer<Number> buffer(result.count, c.offset_of(operand));
    for (int64_t i = 0; i < result.count; ++i) buffer[i] = result[i];
    return buffer;
  }
  Buffer<acc_t> partial(int64_t channels) {
    return Buffer<acc_t>(cc::needs_partial(type, shape) ? count * channels : 0);
  }

  void run(const char* what, const attnkernels::Result& result) { check_launches(name + what, result); }
  void expect(const std::string& what, const Numbers& got, const Numbers& want, double allowed, double terms = 0) {
    compare(name + what, got, want, allowed, terms);
  }

  void check_attention() {
    const int64_t Q = c.query_channels, C = c.value_channels;
    auto query = random(kQuery, Q, 1 / std::sqrt(double(std::max<int64_t>(Q, 1)))), key = random(kKey, Q),
         value = random(kValue, C), grad_out = random(kGradOut, C);
    Buffer<T> out(count * C);
    Buffer<acc_t> log_sum_exp(count), partial_out = partial(C), delta(count);
    const Attention want = attention(shape, query.doubles(), key.doubles(), value.doubles(), grad_out.doubles());
    const auto forward = [&](int line_channels) {
      Buffer<acc_t> statistics(cc::forward_statistics(shape));
      const cc::AttentionForward<void, void> arguments{
          shape,      query.data(),       key.data(),         value.data(),
          out.data(), partial_out.data(), log_sum_exp.data(), statistics.data()};
      if (line_channels && !cc::fits_lines(type, arguments, line_channels)) return;
      run("attention", cc::attention(type, arguments, cc::ForwardPlan{line_channels, true}, nullptr));
      const std::string which = ", lines of " + std::to_string(line_channels);
      expect("out" + which, out.doubles(), want.out, tolerance);
      expect("log_sum_exp" + which, log_sum_exp.doubles(), want.log_sum_exp, std::is_same_v<T, double> ? 1e-13 : 1e-5);
    };
    for (const int line_channels : {256, 128, 0}) forward(line_channels);
    auto out_given = given(kOut, out);
    auto log_sum_exp_given = given(kLogSumExp, log_sum_exp);
    // Gradients of energies are differences of terms as large as the largest of all gradients.
    const double terms = std::max({largest(want.grad_query), largest(want.grad_key), largest(want.grad_value)});
    const auto backward = [&](bool by_lines, int needs) {
      const std::string which = std::string(by_lines ? ", lines" : ", tiles") + ", needs " + std::to_string(needs);
      Buffer<T> grads[3] = {Buffer<T>(count * Q), Buffer<T>(count * Q), Buffer<T>(count * C)};
      Buffer<acc_t> partials[3] = {partial(Q), partial(Q), partial(C)};
      const auto wanted = [&](int i) { return needs >> i & 1 ? grads[i].data() : nullptr; };
      const cc::AttentionBackward<void, void> arguments{shape,
                                                        grad_out.data(),
                                                        query.data(),
                                                        key.data(),
                                                        value.data(),
                                                        out_given.data(),
                                                        log_sum_exp_given.data(),
                                                        delta.data(),
                                                        wanted(0),
                                                        wanted(1),
                                                        wanted(2),
                                                        partials[0].data(),
                                                        partials[1].data(),
                                                        partials[2].data()};
      if (by_lines && !cc::fits_lines(type, arguments)) return;
      run("attention_backward", cc::attention_backward(type, arguments, cc::BackwardPlan{by_lines, true}, nullptr));
      if (needs & 1) expect("grad_query" + which, grads[0].doubles(), want.grad_query, 2 * tolerance, terms);
      if (needs & 2) expect("grad_key" + which, grads[1].doubles(), want.grad_key, 2 * tolerance, terms);
      if (needs & 4) expect("grad_value" + which, grads[2].doubles(), want.grad_value, tolerance);
    };
    // What a call skips, of the smaller maps in one type of each size; bfloat16 is accessed as half is.
    const bool every_need = shape.pixels() <= kLargeMap && c.by <= 1 && !std::is_same_v<T, __nv_bfloat16>;
    for (const bool by_lines : {false, true})
      for (const int needs : every_need ? std::vector<int>{7, 1, 2, 4} : std::vector<int>{7}) backward(by_lines, needs);
  }

  // Aggregate, and its backward, whose kernels are those of affinity with the roles exchanged.
  void check_affinity() {
    const int64_t C = c.value_channels, A = shape.affinity_channels(), P = shape.pixels();
    auto a = random(kA, C), b = random(kB, C), weights = random(kAffinity, A);
    Buffer<T> scores(count * A), applied(count * C), spread(count * C);
    Buffer<acc_t> partial_applied = partial(C), partial_spread = partial(C);
    cc::Shape of_affinity = shape;
    of_affinity.query_channels = C;
    run("affinity", cc::affinity(type, {of_affinity, a.data(), b.data(), scores.data()}, nullptr));
    run("affinity_backward", cc::affinity_backward(type,
                                                   {of_affinity, weights.data(), a.data(), b.data(), applied.data(),
                                                    spread.data(), partial_applied.data(), partial_spread.data()},
                                                   nullptr));
    Numbers want_scores(count * A), want_applied(count * C), want_spread(count * C);
    const Numbers a64 = a.doubles(), b64 = b.doubles(), weights64 = weights.doubles();
    for (int64_t n = 0; n < c.samples; ++n) {
      const Map from_a{a64.data() + n * P * C, C}, from_b{b64.data() + n * P * C, C};
      for_each_pair(shape, [&](int64_t i, int64_t j, int64_t entry) {
        const int64_t at = (n * P + i) * A + entry;
        want_scores[at] = from_a.dot(i, from_b, j);
        add(want_applied.data() + n * P * C, i, weights64[at], from_b, j);
        add(want_spread.data() + n * P * C, j, weights64[at], from_a, i);
      });
    }
    expect("affinity", scores.doubles(), want_scores, tolerance);
    expect("grad_query of affinity", applied.doubles(), want_applied, tolerance);
    expect("grad_key of affinity", spread.doubles(), want_spread, tolerance);

    Buffer<T> out(count * C), grad_affinity(count * A), grad_value(count * C);
    run("aggregate",
        cc::aggregate(type, {shape, weights.data(), b.data(), out.data(), partial_applied.data()}, nullptr));
    run("aggregate_backward", cc::aggregate_backward(type,
                                                     {shape, a.data(), weights.data(), b.data(), grad_affinity.data(),
                                                      grad_value.data(), partial_spread.data()},
                                                     nullptr));
    expect("aggregate", out.doubles(), want_applied, tolerance);
    expect("grad_affinity of aggregate", grad_affinity.doubles(), want_scores, tolerance);
    expect("grad_value of aggregate", grad_value.doubles(), want_spread, tolerance);
  }
};

template <class T>
void check(const Case& c, DataType type, double tolerance, unsigned seed) {
  Checker<T> checker{c, type, tolerance, std::mt19937(seed)};
  checker.check_attention();
  if (c.depth == 1 && c.height * c.width > 0) checker.check_affinity();
}

}  // namespace

int main(int count, char** arguments) {
  const unsigned seed = count > 1 ? unsigned(std::atoi(arguments[1])) : 1;
  const std::vector<Case> cases = {
      {2, 3, 5, 1, 4, 3},     {1, 8, 16, 1, 3, 2}, {1, 2, 3, 2, 3, 2},
      {1, 1, 2, 1, 1, 4},     {1, 2, 1, 1, 3, 1},  {1, 16, 8, 1, 2, 3, 1},  // misaligned
      {1, 2, 0, 1, 2, 2},                                                   // values without a channel
      {1, 0, 2, 1, 2, 2},                                                   // energies without a channel
      {0, 2, 2, 1, 2, 2},     {1, 2, 2, 1, 0, 2},  {1, 2, 2, 1, 1, 67},     // two tiles of a line
      {1, 70, 130, 1, 1, 2},                                                // two tiles of channels
      {1, 16, 72, 1, 2, 19},  {1, 8, 8, 2, 2, 17},                          // lines on tensor cores: parts of tiles
      {1, 64, 264, 1, 1, 33},                                               // and of blocks
      {1, 8, 8, 1, 1, 115},                                                 // eight warps
  };
  for (const Case& c : cases) {
    check<float>(c, DataType::kFloat, 2e-5, seed);
    if (!kWatchesOrder) check<double>(c, DataType::kDouble, 1e-13, seed);
    for (const int major : {7, 9}) {  // without and with tensor cores
      attnkernels::emulation::device.major = major;
      if (kWatchesOrder && major < 8) continue;
      check<__half>(c, DataType::kHalf, 2e-3, seed);
      if (!kWatchesOrder && c.depth * c.height * c.width <= kLargeMap)
        check<__nv_bfloat16>(c, DataType::kBFloat16, 1.6e-2, seed);
    }
    if (failures) return finish();
  }
  // Each operand at an alignment of its own.
  for (int moved = 0; moved < kOperands; ++moved)
    for (const int64_t by : {1, 3}) {
      if (kWatchesOrder && by > 1) continue;
      Case c{1, 8, 16, 1, 2, 3};
      c.moved = moved;
      c.by = by;
      check<float>(c, DataType::kFloat, 2e-5, seed);
      if (!kWatchesOrder) check<__nv_bfloat16>(c, DataType::kBFloat16, 1.6e-2, seed);
      if (failures) return finish();
    }
  return finish();
}
