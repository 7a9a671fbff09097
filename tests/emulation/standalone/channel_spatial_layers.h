// The layers of the channel gates on heap memory of exact size, compared with plain loops in double.
#pragma once
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "channel_spatial/channel_spatial_layers_launch.h"
#include "standalone.h"

namespace standalone {

struct LayersCase {
  int64_t samples, pools, channels, hidden;
  bool bias = true;
  int64_t offset = 0;  // of every operand, in elements past an aligned address
};

template <class T>
void check_layers(const LayersCase& c, attnkernels::DataType type, double tolerance, unsigned seed) {
  namespace cs = attnkernels::channel_spatial;
  using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using Numbers = std::vector<double>;
  const int64_t N = c.samples, K = c.pools, C = c.channels, R = c.hidden, inner = R ? R : C;
  const cs::Layers shape{N, K, C, R};
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](auto zero, int64_t count, double scale) {
    Buffer<decltype(zero)> buffer(count, c.offset);
    for (int64_t i = 0; i < count; ++i) assign(buffer[i], scale * normal(generator));
    return buffer;
  };
  auto pooled = fill(acc_t(), N * K * C, 1), grad = fill(acc_t(), N * C, 1);
  auto w1 = fill(T(), R * C, 1 / std::sqrt(double(C))), b1 = fill(T(), c.bias ? R : 0, 1);
  auto w2 = fill(T(), C * inner, 1 / std::sqrt(double(inner))), b2 = fill(T(), c.bias ? C : 0, 1);
  Buffer<acc_t> gate(N * C, c.offset), hidden(N * K * R, c.offset);
  const std::string name = "layers type " + std::to_string(int(type)) + " N " + std::to_string(N) + " K " +
                           std::to_string(K) + " C " + std::to_string(C) + " rd " + std::to_string(R) + " offset " +
                           std::to_string(c.offset) + ": ";
  check_launches(name + "forward",
                 cs::layers(type, shape, {pooled.data(), w1.data(), b1.data(), w2.data(), b2.data(), gate.data(),
                                          hidden.data()},
                            nullptr));

  const Numbers p = pooled.doubles(), dg = grad.doubles(), a1 = w1.doubles(), a2 = w2.doubles();
  const Numbers c1 = b1.doubles(), c2 = b2.doubles();
  Numbers want_hidden(N * K * R), want_gate(N * C), dt(N * C), sum(N * inner), dh(N * inner), du(N * K * R);
  Numbers dp(N * K * C), dw1(R * C), db1(R), dw2(C * inner), db2(C);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const double* const row = &p[(n * K + k) * C];
      for (int64_t r = 0; r < inner; ++r) {
        double value = R ? (c1.empty() ? 0 : c1[r]) : row[r];
        for (int64_t i = 0; R && i < C; ++i) value += a1[r * C + i] * row[i];
        if (R) value = want_hidden[(n * K + k) * R + r] = std::max(value, 0.);
        sum[n * inner + r] += value;
      }
    }
    for (int64_t i = 0; i < C; ++i) {
      double logit = c2.empty() ? 0 : double(K) * c2[i];
      for (int64_t r = 0; r < inner; ++r) logit += a2[i * inner + r] * sum[n * inner + r];
      const double g = want_gate[n * C + i] = 1 / (1 + std::exp(-logit));
      const double d = dt[n * C + i] = dg[n * C + i] * g * (1 - g);
      db2[i] += double(K) * d;
      for (int64_t r = 0; r < inner; ++r) {
        dw2[i * inner + r] += d * sum[n * inner + r];
        dh[n * inner + r] += d * a2[i * inner + r];
      }
    }
    for (int64_t k = 0; k < K; ++k) {
      const int64_t row = n * K + k;
      for (int64_t i = 0; !R && i < C; ++i) dp[row * C + i] = dh[n * C + i];
      for (int64_t r = 0; r < R; ++r) {
        const double d = want_hidden[row * R + r] > 0 ? dh[n * R + r] : 0;
        db1[r] += d;
        for (int64_t i = 0; i < C; ++i) {
          dp[row * C + i] += d * a1[r * C + i];
          dw1[r * C + i] += d * p[row * C + i];
        }
      }
    }
  }
  const double of_numbers = type == attnkernels::DataType::kDouble ? 1e-13 : 2e-5;
  compare(name + "gate", gate.doubles(), want_gate, of_numbers);
  compare(name + "hidden", hidden.doubles(), want_hidden, of_numbers);

  const std::vector<int> every_need = {0b11111, 1, 2, 4, 8, 16, 0b01001};
  for (const int needs : kWatchesOrder ? std::vector<int>{0b11111} : every_need) {
    const auto wanted = [&](int i, int64_t count) { return needs >> i & 1 ? count : 0; };
    Buffer<acc_t> got_p(wanted(0, N * K * C), c.offset), scratch(cs::layers_scratch(shape), c.offset);
    Buffer<T> got_w1(wanted(1, R * C), c.offset), got_b1(wanted(2, R), c.offset);
    Buffer<T> got_w2(wanted(3, C * inner), c.offset), got_b2(wanted(4, C), c.offset);
    check_launches(name + "backward", cs::layers_backward(type, shape,
                                                          {grad.data(), pooled.data(), gate.data(), hidden.data(),
                                                           w1.data(), w2.data(), got_p.data(), got_w1.data(),
                                                           got_b1.data(), got_w2.data(), got_b2.data(), scratch.data()},
                                                          nullptr));
    const std::string with = name + "needs " + std::to_string(needs) + " ";
    if (needs & 1) compare(with + "grad_pooled", got_p.doubles(), dp, of_numbers);
    if (needs & 2) compare(with + "grad_reduce_weight", got_w1.doubles(), dw1, tolerance);
    if (needs & 4) compare(with + "grad_reduce_bias", got_b1.doubles(), db1, tolerance);
    if (needs & 8) compare(with + "grad_expand_weight", got_w2.doubles(), dw2, tolerance);
    if (needs & 16) compare(with + "grad_expand_bias", got_b2.doubles(), db2, tolerance);
  }
}

inline void check_layers(unsigned seed) {
  using attnkernels::DataType;
  std::vector<LayersCase> cases = {
      {2, 2, 20, 3},            // ends of vectors
      {3, 1, 16, 8},            // whole ones
      {5, 3, 33, 1, false},     // an odd width
      {2, 2, 16, 8, true, 1},   // operands off the boundary
      {3, 2, 24, 0},            // a single layer
      {2, 1, 9, 0, false, 1},   //
      {1, 1, 1, 1},             //
      {0, 2, 8, 4},             // zeros for the weights
  };
  if (!kWatchesOrder) {
    cases.push_back({70, 2, 136, 72});  // samples that share weights, several blocks and tiles of weights
    cases.push_back({2, 1, 2056, 4});   // rows longer than a group of warps takes at once
  } else {
    cases.push_back({1, 2, 72, 136});   // several blocks of each layer
  }
  for (const LayersCase& c : cases) {
    check_layers<float>(c, DataType::kFloat, 2e-5, seed);
    if (!kWatchesOrder) {
      check_layers<__nv_bfloat16>(c, DataType::kBFloat16, 6e-3, seed);
      check_layers<__half>(c, DataType::kHalf, 8e-4, seed);
      check_layers<double>(c, DataType::kDouble, 1e-13, seed);
    }
    if (failures) return;
  }
}

}  // namespace standalone
