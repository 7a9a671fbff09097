// The convolution of cbam's statistics on heap memory of exact size, compared with plain loops in double.
#pragma once
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "channel_spatial/channel_spatial_convolution_launch.h"
#include "standalone.h"

namespace standalone {

struct ConvolutionCase {
  int64_t samples, height, width, taps;
  bool mean_first = false, gated = false;
  int64_t offset = 0;  // of every operand, in elements past an aligned address
};

template <class T>
void check_convolution(const ConvolutionCase& c, attnkernels::DataType type, double tolerance, unsigned seed) {
  namespace cs = attnkernels::channel_spatial;
  using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using Numbers = std::vector<double>;
  const int64_t N = c.samples, H = c.height, W = c.width, K = c.taps, P = H * W;
  const cs::Convolution shape{N, H, W, K, c.mean_first};
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](auto zero, int64_t count, double scale) {
    Buffer<decltype(zero)> buffer(count, c.offset);
    for (int64_t i = 0; i < count; ++i) assign(buffer[i], scale * normal(generator));
    return buffer;
  };
  auto statistics = fill(acc_t(), 2 * N * P, 1), grad = fill(acc_t(), N * P, 1);
  auto weight = fill(T(), 2 * K * K, 1 / double(K)), bias = fill(T(), 1, 1);
  const Numbers x = statistics.doubles(), dy = grad.doubles(), w = weight.doubles();
  const std::string name = "convolution type " + std::to_string(int(type)) + " N " + std::to_string(N) + " HW " +
                           std::to_string(H) + "x" + std::to_string(W) + " taps " + std::to_string(K) + " offset " +
                           std::to_string(c.offset) + ": ";
  // body(element of the statistics, of the result, of the weight)
  const auto each = [&](auto body) {
    for (int64_t n = 0; n < N; ++n)
      for (int64_t plane = 0; plane < 2; ++plane)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t v = 0; v < W; ++v)
            for (int64_t i = 0; i < K; ++i)
              for (int64_t j = 0; j < K; ++j) {
                const int64_t row = h + i - K / 2, column = v + j - K / 2;
                if (row < 0 || row >= H || column < 0 || column >= W) continue;
                body((n * 2 + plane) * P + row * W + column, n * P + h * W + v,
                     ((c.mean_first ? 1 - plane : plane) * K + i) * K + j);
              }
  };
  Numbers want(N * P, to_double(bias[0])), dt(N * P), dx(2 * N * P), dw(2 * K * K);
  each([&](int64_t of, int64_t to, int64_t tap) { want[to] += w[tap] * x[of]; });
  for (double& value : want) value = c.gated ? 1 / (1 + std::exp(-value)) : value;
  for (int64_t i = 0; i < N * P; ++i) dt[i] = c.gated ? dy[i] * want[i] * (1 - want[i]) : dy[i];
  each([&](int64_t of, int64_t to, int64_t tap) {
    dx[of] += w[tap] * dt[to];
    dw[tap] += x[of] * dt[to];
  });
  const double of_numbers = type == attnkernels::DataType::kDouble ? 1e-13 : 2e-5;
  Buffer<acc_t> got(N * P, c.offset);
  check_launches(name + "forward", cs::convolve(type, shape, statistics.data(), weight.data(), bias.data(), c.gated,
                                                got.data(), nullptr));
  compare(name + "result", got.doubles(), want, of_numbers);
  for (const int needs : {3, 1, 2}) {
    if (kWatchesOrder && needs == 1) continue;
    Buffer<acc_t> got_x(needs & 1 ? 2 * N * P : 0, c.offset);
    Buffer<T> got_w(needs & 2 ? 2 * K * K : 0, c.offset);
    Buffer<acc_t> parts(needs & 2 ? cs::convolution_chunks(shape) * shape.weights() : 0, c.offset);
    check_launches(name + "backward",
                   cs::convolve_backward(type, shape,
                                         {grad.data(), c.gated ? got.data() : nullptr, statistics.data(), weight.data(),
                                          got_x.data(), got_w.data(), parts.data()},
                                         nullptr));
    if (needs & 1) compare(name + "grad_statistics", got_x.doubles(), dx, of_numbers);
    if (needs & 2) compare(name + "grad_weight", got_w.doubles(), dw, tolerance);
  }
}

inline void check_convolution(unsigned seed) {
  using attnkernels::DataType;
  std::vector<ConvolutionCase> cases = {
      {2, 17, 33, 7, true, true},        // several tiles, the last not full
      {1, 3, 5, 7, false, true, 1},      // a map smaller than the taps, off the boundary
      {1, 4, 33, 15, false, false},      // as many taps as there may be
      {2, 5, 3, 1, true, true, 1},       // one
      {1, 18, 7, 5, true},               //
      {1, 6, 34, 3, false, true},        //
  };
  if (!kWatchesOrder) cases.push_back({520, 1, 1, 7, false, true});  // blocks with several tiles each
  for (const ConvolutionCase& c : cases) {
    if (kWatchesOrder && c.taps > 7) continue;  // more threads than ThreadSanitizer has
    check_convolution<float>(c, DataType::kFloat, 2e-5, seed);
    if (!kWatchesOrder) {
      check_convolution<__nv_bfloat16>(c, DataType::kBFloat16, 6e-3, seed);
      check_convolution<__half>(c, DataType::kHalf, 8e-4, seed);
      check_convolution<double>(c, DataType::kDouble, 1e-13, seed);
    }
    if (failures) return;
  }
}

}  // namespace standalone
