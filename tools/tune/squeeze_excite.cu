// Which plan runs squeeze_excite fastest on the GPU at hand: coordinate descent over the numbers of `Tuning`, every
// point checked against float64 on poisoned outputs. No torch.
//
//   squeeze_excite [forward|backward|both|profile] [plain|epilogue] [seconds] [name of a shape ...]
//
// One line of JSON for each point as it is measured, then a table: the plan there is now, the best, a copy of the
// bytes.
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>

#include "squeeze_excite/squeeze_excite_launch.h"
#include "tune/timing.cuh"

namespace attnkernels::tune {
namespace {

using namespace squeeze_excite;
using squeeze_excite::Plan;
using squeeze_excite::Tuning;
using T = __nv_bfloat16;

struct Problem {
  int64_t samples, channels, height, width, hidden;
  bool channels_last, epilogue;
  std::string name() const {
    return std::to_string(samples) + "x" + std::to_string(channels) + "x" + std::to_string(height) + "x" +
           std::to_string(width) + "x" + std::to_string(hidden) + (channels_last ? " nhwc" : " nchw") +
           (epilogue ? " epilogue" : "");
  }
  Shape shape() const {
    return {{samples, channels, height * width, channels_last},
            hidden,
            Activation::kRelu,
            Gate::kSigmoid,
            epilogue ? OutputActivation::kRelu : OutputActivation::kNone};
  }
};

__device__ int64_t place(const Shape& s, int64_t n, int64_t c, int64_t p) {
  return n * s.channels * s.pixels + (s.channels_last ? p * s.channels + c : c * s.pixels + p);
}

// sums[n, c] = sum_p a b (b null: 1), with a masked where y <= 0; a block for each plane
__global__ void plane_sums(Shape s, const T* a, const T* b, const T* y, double* sums) {
  __shared__ double partial[256];
  const int64_t n = blockIdx.y, c = blockIdx.x;
  double sum = 0;
  for (int64_t p = threadIdx.x; p < s.pixels; p += 256) {
    const int64_t i = place(s, n, c, p);
    if (y && !(double(float(y[i])) > 0)) continue;
    sum += double(float(a[i])) * (b ? double(float(b[i])) : 1.0);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < 256; ++i) sum += partial[i];
  sums[n * s.channels + c] = sum;
}
// The layers for one sample a block: u, h, gates
__global__ void layers(Shape s, const double* sums, const T* w1, const T* b1, const T* w2, const T* b2, double* u,
                       double* gates) {
  const int64_t n = blockIdx.x;
  for (int64_t r = threadIdx.x; r < s.hidden; r += blockDim.x) {
    double v = double(float(b1[r]));
    for (int64_t c = 0; c < s.channels; ++c)
      v += double(float(w1[r * s.channels + c])) * sums[n * s.channels + c] / double(s.pixels);
    u[n * s.hidden + r] = v;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < s.channels; c += blockDim.x) {
    double v = double(float(b2[c]));
    for (int64_t r = 0; r < s.hidden; ++r) v += double(float(w2[c * s.hidden + r])) * fmax(u[n * s.hidden + r], 0.0);
    gates[n * s.channels + c] = 1 / (1 + exp(-v));
  }
}
__global__ void scaled(Shape s, const T* x, const T* residual, const double* gates, double* y) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < s.samples * s.channels * s.pixels;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t n = i / (s.channels * s.pixels), rest = i % (s.channels * s.pixels);
    const int64_t c = s.channels_last ? rest % s.channels : rest / s.pixels;
    double value = double(float(x[i])) * gates[n * s.channels + c];
    if (residual) value += double(float(residual[i]));
    y[i] = residual ? fmax(value, 0.0) : value;
  }
}
__global__ void layer_grads(Shape s, const double* dot, const double* gates, const double* u, const T* w1, const T* w2,
                            double* dv, double* du, double* ds) {
  const int64_t n = blockIdx.x;
  for (int64_t c = threadIdx.x; c < s.channels; c += blockDim.x) {
    const double g = gates[n * s.channels + c];
    dv[n * s.channels + c] = dot[n * s.channels + c] * g * (1 - g);
  }
  __syncthreads();
  for (int64_t r = threadIdx.x; r < s.hidden; r += blockDim.x) {
    double sum = 0;
    for (int64_t c = 0; c < s.channels; ++c) sum += dv[n * s.channels + c] * double(float(w2[c * s.hidden + r]));
    du[n * s.hidden + r] = u[n * s.hidden + r] > 0 ? sum : 0;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < s.channels; c += blockDim.x) {
    double sum = 0;
    for (int64_t r = 0; r < s.hidden; ++r) sum += du[n * s.hidden + r] * double(float(w1[r * s.channels + c]));
    ds[n * s.channels + c] = sum / double(s.pixels);
  }
}
__global__ void grad_maps(Shape s, const T* dy, const T* y, const double* gates, const double* ds, double* dx) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < s.samples * s.channels * s.pixels;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t n = i / (s.channels * s.pixels), rest = i % (s.channels * s.pixels);
    const int64_t c = s.channels_last ? rest % s.channels : rest / s.pixels;
    const double dz = y && !(double(float(y[i])) > 0) ? 0 : double(float(dy[i]));
    dx[i] = dz * gates[n * s.channels + c] + ds[n * s.channels + c];
  }
}
// d w2[c, r] (rows dv, columns relu(u)), d w1[r, c] (rows du, columns means)
__global__ void weight_grads(Shape s, const double* dv, const double* du, const double* u, const double* sums,
                             double* w1, double* w2) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < s.channels * s.hidden;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t c = i / s.hidden, r = i % s.hidden;
    double first = 0, second = 0;
    for (int64_t n = 0; n < s.samples; ++n) {
      second += dv[n * s.channels + c] * fmax(u[n * s.hidden + r], 0.0);
      first += du[n * s.hidden + r] * sums[n * s.channels + c] / double(s.pixels);
    }
    w2[i] = second;
    w1[r * s.channels + c] = first;
  }
}

struct Data {
  explicit Data(const Problem& problem)
      : shape(problem.shape()),
        count(shape.samples * shape.channels * shape.pixels),
        x(count),
        y(count),
        residual(problem.epilogue ? count : 0),
        dy(count),
        dx(count),
        dresidual(problem.epilogue ? count : 0),
        w1(shape.hidden * shape.channels),
        b1(shape.hidden),
        w2(shape.hidden * shape.channels),
        b2(shape.channels),
        dw1(w1.count()),
        db1(b1.count()),
        dw2(w2.count()),
        db2(b2.count()),
        saved(shape.samples * shape.saved_columns()),
        scratch(shape.samples * (40 * shape.channels + 2 * shape.hidden)),
        want_y(count),
        want_dx(count),
        want_w1(w1.count()),
        want_w2(w2.count()) {
    fill(x, 1, 1.f, shape.pixels);
    fill(dy, 2, 1.f);
    if (residual.count()) fill(residual, 3, 1.f);
    fill(w1, 4, 1.f / std::sqrt(float(shape.channels)));
    fill(b1, 5, 1.f);
    fill(w2, 6, 1.f / std::sqrt(float(shape.hidden)));
    fill(b2, 7, 1.f);
    const int64_t planes = shape.samples * shape.channels, rows = shape.samples * shape.hidden;
    Buffer<double> sums(planes), gates(planes), u(rows), dot(planes), dv(planes), du(rows), ds(planes);
    const dim3 grid(unsigned(shape.channels), unsigned(shape.samples));
    const unsigned samples = unsigned(shape.samples);
    plane_sums<<<grid, 256>>>(shape, x.data(), nullptr, nullptr, sums.data());
    layers<<<samples, 1024>>>(shape, sums.data(), w1.data(), b1.data(), w2.data(), b2.data(), u.data(), gates.data());
    scaled<<<1056, 256>>>(shape, x.data(), problem.epilogue ? residual.data() : nullptr, gates.data(), want_y.data());
    TUNE_CHECK(cudaGetLastError());
    // The backward takes what the forward gave.
    const Limits found = device_limits();
    Tuning tuning;
    tuning.dependent = false;
    forward(choose_forward(DataType::kBFloat16, shape, found, tuning), nullptr);
    const T* const clipped = problem.epilogue ? y.data() : nullptr;
    plane_sums<<<grid, 256>>>(shape, dy.data(), x.data(), clipped, dot.data());
    layer_grads<<<samples, 1024>>>(shape, dot.data(), gates.data(), u.data(), w1.data(), w2.data(), dv.data(),
                                   du.data(), ds.data());
    grad_maps<<<1056, 256>>>(shape, dy.data(), clipped, gates.data(), ds.data(), want_dx.data());
    tune::weight_grads<<<264, 256>>>(shape, dv.data(), du.data(), u.data(), sums.data(), want_w1.data(),
                                     want_w2.data());
    TUNE_CHECK(cudaGetLastError());
    TUNE_CHECK(cudaDeviceSynchronize());
  }

  static Limits device_limits() {
    Limits found;
    check(limits(found));
    return found;
  }
  void forward(const Plan& plan, cudaStream_t stream) {
    check(
        squeeze_excite::forward(DataType::kBFloat16, shape, plan,
                                {x.data(), w1.data(), b1.data(), w2.data(), b2.data(),
                                 residual.count() ? residual.data() : nullptr, y.data(), saved.data(), scratch.data()},
                                stream));
  }
  void backward(const Plan& plan, cudaStream_t stream) {
    check(squeeze_excite::backward(DataType::kBFloat16, shape, plan,
                                   {dy.data(), x.data(), residual.count() ? y.data() : nullptr, w1.data(), w2.data(),
                                    saved.data(), dx.data(), dresidual.count() ? dresidual.data() : nullptr, dw1.data(),
                                    db1.data(), dw2.data(), db2.data(), scratch.data()},
                                   stream));
  }
  // The largest relative difference of the results of one run into poisoned memory.
  double error(const Plan& plan, bool of_backward) {
    scratch.poison();
    if (of_backward) {
      dx.poison(), dw1.poison(), dw2.poison();
      backward(plan, nullptr);
    } else {
      y.poison(), saved.poison();
      forward(plan, nullptr);
    }
    TUNE_CHECK(cudaDeviceSynchronize());
    if (!of_backward) return difference(y, want_y);
    const double errors[] = {difference(dx, want_dx), difference(dw1, want_w1), difference(dw2, want_w2)};
    double largest = 0;
    for (const double error : errors) largest = error <= largest ? largest : error;  // NaN stays
    return largest;
  }
  double bytes(bool of_backward) const {
    const int maps = residual.count() ? (of_backward ? 5 : 3) : (of_backward ? 3 : 2);
    return double(count) * sizeof(T) * maps;
  }

  Shape shape;
  int64_t count;
  Buffer<T> x, y, residual, dy, dx, dresidual, w1, b1, w2, b2, dw1, db1, dw2, db2;
  Buffer<float> saved, scratch;
  Buffer<double> want_y, want_dx, want_w1, want_w2;
};

struct Knob {
  const char* name;
  std::vector<int64_t> values;
  int64_t Tuning::* number = nullptr;
  bool Tuning::* flag = nullptr;

  void set(Tuning& tuning, int64_t value) const { flag ? void(tuning.*flag = value) : void(tuning.*number = value); }
  int64_t get(const Tuning& tuning) const { return flag ? tuning.*flag : tuning.*number; }
};

std::vector<Knob> knobs(bool of_backward) {
  std::vector<Knob> all;
  all.push_back({"dependent", {0, 1}, nullptr, &Tuning::dependent});
  all.push_back({"layer_in_map", {0, 1}, &Tuning::layer_in_map});
  all.push_back({"map_blocks", {1, 2, 3, 4, 6, 8}, of_backward ? &Tuning::grad_map_blocks : &Tuning::map_blocks});
  all.push_back({"large_map_blocks", {3, 6, 8, 12}, &Tuning::large_map_blocks});
  all.push_back({"sum_blocks", {2, 3, 4, 6, 8}, of_backward ? &Tuning::grad_sum_blocks : &Tuning::sum_blocks});
  all.push_back({"most_splits", {4, 8, 16, 32}, &Tuning::most_splits});
  all.push_back(
      {"segment_bytes", {64, 128, 256, 512}, of_backward ? &Tuning::grad_segment_bytes : &Tuning::segment_bytes});
  all.push_back({"column_sum_blocks", {1, 2, 3, 4, 6}, &Tuning::column_sum_blocks});
  all.push_back({"once_part", {1, 2, 4, 1000}, &Tuning::once_part});
  all.push_back({"streamed_part", {1, 2, 1000}, &Tuning::streamed_part});
  return all;
}

std::string shown(const Tuning& tuning, bool of_backward) {
  std::string text;
  for (const Knob& knob : knobs(of_backward))
    text += std::string(text.empty() ? "" : ", ") + "\"" + knob.name + "\": " + std::to_string(knob.get(tuning));
  return "{" + text + "}";
}

__global__ void __launch_bounds__(256) copy_kernel(const uint4* x, uint4* y, int64_t count) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    __stcs(y + i, x[i]);
}

struct Point {
  double warm = 1e30, cold = 1e30, error = 0;
};

class Search {
 public:
  explicit Search(double seconds) : seconds_(seconds) {}
  bool over() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count() > seconds_;
  }

  void run(const Problem& problem, bool of_backward) {
    Data data(problem);
    const Limits found = Data::device_limits();
    const auto measure = [&](const Tuning& tuning, const char* what, bool with_cold) {
      const Plan plan = of_backward ? choose_backward(DataType::kBFloat16, data.shape, found, tuning)
                                    : choose_forward(DataType::kBFloat16, data.shape, found, tuning);
      Point point;
      point.error = data.error(plan, of_backward);
      if (point.error < 1e-2) {
        const Chain chain = [&](cudaStream_t stream) {
          if (of_backward) {
            data.backward(plan, stream);
          } else {
            data.forward(plan, stream);
          }
        };
        point.warm = timer_.warm(chain, with_cold ? 9 : 3);
        if (with_cold) point.cold = timer_.cold(chain, 7);
      }
      std::printf(
          "{\"problem\": \"%s\", \"direction\": \"%s\", \"what\": \"%s\", \"warm_us\": %.2f, \"cold_us\": %.2f, "
          "\"error\": %.2e, \"layer_in_map\": %d, \"sum_blocks\": %ld, "
          "\"map_blocks\": %ld, \"tuning\": %s}\n",
          problem.name().c_str(), of_backward ? "backward" : "forward", what, point.warm, with_cold ? point.cold : 0.0,
          point.error, int(plan.layer_in_map), long(plan.sums.blocks()), long(plan.map.blocks()),
          shown(tuning, of_backward).c_str());
      std::fflush(stdout);
      return point;
    };
    const Tuning start;
    Tuning best = start;
    double fastest = measure(best, "start", false).warm;
    for (int round = 0; round < 2 && !over(); ++round) {
      bool moved = false;
      for (const Knob& knob : knobs(of_backward))
        for (const int64_t value : knob.values) {
          if (value == knob.get(best) || over()) continue;
          Tuning tried = best;
          knob.set(tried, value);
          const double us = measure(tried, knob.name, false).warm;
          if (us < fastest * 0.995) fastest = us, best = tried, moved = true;
        }
      if (!moved) break;
    }
    const Point now = measure(start, "now", true), found_best = measure(best, "best", true);
    const int64_t vectors = int64_t(data.bytes(of_backward) / 2 / 16);
    Buffer<uint4> from(vectors), to(vectors);
    const Chain copy = [&](cudaStream_t stream) {
      copy_kernel<<<1056, 256, 0, stream>>>(from.data(), to.data(), vectors);
    };
    char line[400];
    std::snprintf(line, sizeof(line),
                  "%-34s %-9s now %7.2f /%7.2f  best %7.2f /%7.2f  copy %7.2f /%7.2f  floor %6.1f  %s",
                  problem.name().c_str(), of_backward ? "backward" : "forward", now.warm, now.cold, found_best.warm,
                  found_best.cold, timer_.warm(copy), timer_.cold(copy), data.bytes(of_backward) / 3.0e6,
                  shown(best, of_backward).c_str());
    table_.push_back(line);
  }
  // For a profiler: each direction three times, two passes.
  void profile(const Problem& problem) {
    Data data(problem);
    const Limits found = Data::device_limits();
    Tuning tuning;
    for (int i = 0; i < 3; ++i) {
      data.forward(choose_forward(DataType::kBFloat16, data.shape, found, tuning), nullptr);
      data.backward(choose_backward(DataType::kBFloat16, data.shape, found, tuning), nullptr);
    }
    TUNE_CHECK(cudaDeviceSynchronize());
  }
  void print() const {
    std::printf("# warm / cold us\n");
    for (const std::string& line : table_) std::printf("# %s\n", line.c_str());
  }

 private:
  double seconds_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  Timer timer_;
  std::vector<std::string> table_;
};

}  // namespace
}  // namespace attnkernels::tune

int main(int count, char** arguments) {
  using namespace attnkernels::tune;
  const std::string direction = count > 1 ? arguments[1] : "both", variant = count > 2 ? arguments[2] : "plain";
  Search search(count > 3 ? std::atof(arguments[3]) : 200);
  const int64_t sizes[][5] = {{8, 256, 56, 56, 16}, {32, 256, 56, 56, 16},  {32, 2048, 7, 7, 128},
                              {8, 512, 28, 28, 32}, {32, 1024, 14, 14, 64}, {1, 256, 56, 56, 16},
                              {1, 72, 28, 28, 24},  {1, 960, 7, 7, 240},    {32, 480, 14, 14, 120}};
  for (const auto& s : sizes)
    for (const bool last : {false, true}) {
      const Problem problem{s[0], s[1], s[2], s[3], s[4], last, variant == "epilogue"};
      bool wanted = count <= 4;
      for (int i = 4; i < count; ++i) wanted |= problem.name() == arguments[i];
      if (wanted && direction == "profile") search.profile(problem);
      for (const bool of_backward : {false, true})
        if (direction != "profile" && wanted && !search.over() && direction != (of_backward ? "forward" : "backward"))
          search.run(problem, of_backward);
    }
  search.print();
  return 0;
}
