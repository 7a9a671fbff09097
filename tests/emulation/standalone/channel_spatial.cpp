// channel_spatial [SEED]: runs the CUDA launchers on heap memory of exact size, small odd shapes, every operator, and
// compares with plain loops in double. Exits with 1 and a line per wrong result; sanitizers end it by themselves.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "channel_spatial/channel_spatial_launch.h"
#include "common/language.cuh"
#include "channel_spatial_convolution.h"
#include "channel_spatial_layers.h"
#include "standalone.h"

namespace cs = attnkernels::channel_spatial;
using attnkernels::DataType;
using attnkernels::gate::Limits;
using attnkernels::matrix::Plan;
using attnkernels::matrix::Tuning;

namespace {

using namespace standalone;
using Numbers = std::vector<double>;

struct Case {
  int64_t samples, channels, height, width;
  bool ties = false;  // a map after a ReLU, with few different values
  int64_t offset_x = 0, offset_grad = 0, offset_map = 0, offset_numbers = 0;  // elements past an aligned address
};

struct Path {
  const char* name;
  Limits limits;
  Tuning tuning;
};

// Few and many multiprocessors: few blocks, and as many as the sizes allow, or as ThreadSanitizer has threads for.
constexpr int kMany = kWatchesOrder ? 4 : 132;
constexpr Path kPaths[] = {
    {"few blocks", {80, 1, 1 << 24, false}, {.sum_blocks = 1, .map_blocks = 1}},
    {"many blocks", {90, kMany, 4 << 10, true}, {}},
};

// Whether several blocks have shared the rows, and the columns, of each operator.
bool rows_split[8][2], columns_split[8][2];

template <class T>
struct Check {
  using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const Case& c;
  const Path& path;
  bool channels_last;
  DataType type;
  double tolerance;
  std::mt19937 generator;
  std::string name;
  int64_t N = c.samples, C = c.channels, P = c.height * c.width;

  int64_t at(int64_t n, int64_t i, int64_t p) const {
    return channels_last ? (n * P + p) * C + i : (n * C + i) * P + p;
  }
  template <class Body>
  void each(Body body) const {  // body(element, [n, c], [n, p], n, c, p)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t i = 0; i < C; ++i)
        for (int64_t p = 0; p < P; ++p) body(at(n, i, p), n * C + i, n * P + p, n, i, p);
  }
  template <class U>
  Buffer<U> normal(int64_t count, int64_t offset, bool ties = false) {
    std::normal_distribution<double> distribution;
    Buffer<U> buffer(count, offset);
    for (int64_t i = 0; i < count; ++i) {
      const double value = distribution(generator);
      assign(buffer[i], ties ? std::max(0., std::round(2 * value)) : value);
    }
    return buffer;
  }
  Buffer<acc_t> numbers(int64_t count) { return normal<acc_t>(count, c.offset_numbers); }
  Buffer<acc_t> gate(int64_t count) {  // 1/2 where there are ties, so that two gates are equal, too
    Buffer<acc_t> result = numbers(count);
    for (int64_t i = 0; i < count; ++i) {
      const double value = 1 / (1 + std::exp(-double(result[i])));
      result[i] = c.ties && value > 0.5 ? acc_t(0.5) : acc_t(value);
    }
    return result;
  }

  void run(const std::string& what, const cs::Call& call) {
    const cs::Shape shape{{N, C, P, channels_last}, c.height, c.width};
    const Plan plan = cs::choose(type, shape, call, path.limits, path.tuning);
    rows_split[int(call.op)][channels_last] |= plan.row_tiles > 1;
    columns_split[int(call.op)][channels_last] |= plan.column_tiles > 1;
    Buffer<acc_t> scratch(plan.scratch());
    check_launches(name + what, cs::run(type, call, plan, scratch.data(), nullptr));
  }
  void same(const std::string& what, Numbers got, const Numbers& want, double terms = 0) {
    compare(name + what, got, want, tolerance, terms);
  }
  // Sums of float, with the size of what is summed.
  void sums(const std::string& what, Numbers got, const Numbers& want, int64_t count) {
    compare(name + what, got, want, (type == DataType::kDouble ? 1e-13 : 2e-6) * std::sqrt(double(count)), 1);
  }

  // The maxima of z along groups of elements, with their marks.
  struct Maxima {
    Numbers found, marks;
  };
  template <class Group, class Place>
  Maxima maxima(const Numbers& z, int64_t groups, bool share, Group group, Place place) const {
    Maxima result{Numbers(groups, -std::numeric_limits<double>::infinity()), Numbers(groups)};
    each([&](int64_t e, int64_t ic, int64_t ip, int64_t, int64_t i, int64_t p) {
      const int64_t g = group(ic, ip);
      if (z[e] > result.found[g]) {
        result.found[g] = z[e];
        result.marks[g] = share ? 1 : double(place(i, p));
      } else if (share && z[e] == result.found[g]) {
        ++result.marks[g];
      }
    });
    return result;
  }
  Buffer<acc_t> buffer(const Numbers& values) const {
    Buffer<acc_t> result(int64_t(values.size()), c.offset_numbers);
    for (size_t i = 0; i < values.size(); ++i) result[int64_t(i)] = acc_t(values[i]);
    return result;
  }

  void everything() {
    name = std::string(path.name) + (channels_last ? " channels_last" : "") + " type " + std::to_string(int(type)) +
           " N " + std::to_string(N) + " C " + std::to_string(C) + " HW " + std::to_string(P) + " ties " +
           std::to_string(c.ties) + " offsets " + std::to_string(c.offset_x) + std::to_string(c.offset_grad) +
           std::to_string(c.offset_map) + std::to_string(c.offset_numbers) + ": ";
    const int64_t elements = N * C * P;
    auto x_buffer = normal<T>(elements, c.offset_x, c.ties), grad_buffer = normal<T>(elements, c.offset_grad);
    auto gc_buffer = gate(N * C), gs_buffer = gate(N * P);
    auto weight_buffer = normal<T>(C, c.offset_numbers), bias_buffer = normal<T>(1, 0);
    const Numbers x = x_buffer.doubles(), dy = grad_buffer.doubles(), gc = gc_buffer.doubles();
    const Numbers gs = gs_buffer.doubles(), w = weight_buffer.doubles();
    const cs::Tensors maps{.grad_y = grad_buffer.data(), .x = x_buffer.data()};
    const cs::Tensors one_map{.x = x_buffer.data()};
    const auto by_pixel = [](int64_t, int64_t ip) { return ip; };
    const auto by_channel = [](int64_t ic, int64_t) { return ic; };
    Numbers z(elements);  // as the kernels hold it
    each([&](int64_t e, int64_t ic, int64_t, auto...) { z[e] = acc_t(acc_t(x[e]) * acc_t(gc[ic])); });

    for (const bool share : {false, true}) {
      const std::string with = share ? " shared" : "";
      // pool
      const Maxima A = maxima(x, N * C, share, by_channel, [](int64_t, int64_t p) { return p; });
      Numbers means(N * C), pooled(2 * N * C);
      each([&](int64_t e, int64_t ic, auto...) { means[ic] += x[e] / double(P); });
      for (int64_t i = 0; i < N * C; ++i) {
        pooled[i / C * 2 * C + i % C] = means[i];
        pooled[(i / C * 2 + 1) * C + i % C] = A.found[i];
      }
      Buffer<acc_t> got(2 * N * C, c.offset_numbers), got_marks(N * C, c.offset_numbers);
      cs::Call call{.op = cs::Operator::kPool, .tensors = one_map, .maxima = true, .share = share};
      call.tensors.by_channel = got.data();
      call.tensors.found_marks = got_marks.data();
      run("pool" + with, call);
      sums("pooled" + with, got.doubles(), pooled, P);
      compare(name + "pool marks" + with, got_marks.doubles(), A.marks, 0);

      // statistics
      const Maxima M = maxima(z, N * P, share, by_pixel, [](int64_t i, int64_t) { return i; });
      Numbers statistics(2 * N * P);
      each([&](int64_t e, int64_t, int64_t, int64_t n, int64_t, int64_t p) {
        statistics[(n * 2 + 1) * P + p] += z[e] / double(C);
      });
      for (int64_t i = 0; i < N * P; ++i) statistics[i / P * 2 * P + i % P] = M.found[i];
      Buffer<acc_t> found(2 * N * P, c.offset_numbers), found_marks(N * P, c.offset_numbers);
      call = {.op = cs::Operator::kStatistics, .tensors = one_map, .share = share};
      call.tensors.channel_gate = gc_buffer.data();
      call.tensors.by_pixel = found.data();
      call.tensors.found_marks = found_marks.data();
      run("statistics" + with, call);
      sums("statistics" + with, found.doubles(), statistics, C);
      compare(name + "marks" + with, found_marks.doubles(), M.marks, 0);

      // grad_channel_gate and grad_x
      auto ds_buffer = numbers(2 * N * P), dp_buffer = numbers(2 * N * C);
      auto statistics_buffer = buffer(statistics), marks_buffer = buffer(M.marks);
      auto pooled_buffer = buffer(pooled), pool_marks_buffer = buffer(A.marks);
      const Numbers ds = ds_buffer.doubles(), dp = dp_buffer.doubles();
      Numbers grad_gate(N * C), grad_x(elements), grad_x_skip(elements), grad_means_alone(elements);
      each([&](int64_t e, int64_t ic, int64_t ip, int64_t n, int64_t i, int64_t p) {
        const bool in_M = share ? z[e] == M.found[ip] : M.marks[ip] == double(i);
        const bool in_A = share ? x[e] == A.found[ic] : A.marks[ic] == double(p);
        const double dM = in_M ? ds[n * 2 * P + p] / (share ? M.marks[ip] : 1) : 0;
        const double dA = in_A ? dp[(n * 2 + 1) * C + i] / (share ? A.marks[ic] : 1) : 0;
        const double dz = dy[e] * gs[ip] + ds[(n * 2 + 1) * P + p] / double(C) + dM;
        grad_gate[ic] += dz * x[e];
        grad_x[e] = dz * gc[ic] + dp[n * 2 * C + i] / double(P) + dA;
        grad_x_skip[e] = grad_x[e] + dy[e];
        grad_means_alone[e] = dy[e] * gc[ic] + dp[ic] / double(P);
      });
      Buffer<acc_t> got_gate(N * C, c.offset_numbers);
      call = {.op = cs::Operator::kGradChannelGate, .tensors = maps, .share = share};
      call.tensors.channel_gate = gc_buffer.data();
      call.tensors.spatial_gate = gs_buffer.data();
      call.tensors.grad_statistics = ds_buffer.data();
      call.tensors.statistics = statistics_buffer.data();
      call.tensors.marks = marks_buffer.data();
      call.tensors.by_channel = got_gate.data();
      run("grad_channel_gate" + with, call);
      sums("grad_channel_gate" + with, got_gate.doubles(), grad_gate, P);
      Buffer<T> got_x(elements, c.offset_map);
      call.op = cs::Operator::kGradX;
      call.maxima = true;
      call.tensors.by_channel = nullptr;
      call.tensors.map = got_x.data();
      call.tensors.grad_pooled = dp_buffer.data();
      call.tensors.pooled = pooled_buffer.data();
      call.tensors.pool_marks = pool_marks_buffer.data();
      run("grad_x" + with, call);
      same("grad_x" + with, got_x.doubles(), grad_x);
      call.skip = true;
      run("grad_x skip" + with, call);
      same("grad_x skip" + with, got_x.doubles(), grad_x_skip);
      // Without the statistics and the maxima: grad_pooled is [N, 1, C].
      call = {.op = cs::Operator::kGradX, .tensors = maps, .share = share};
      call.tensors.channel_gate = gc_buffer.data();
      call.tensors.map = got_x.data();
      call.tensors.grad_pooled = dp_buffer.data();
      call.tensors.pooled = pooled_buffer.data();
      run("grad_x of means" + with, call);
      same("grad_x of means" + with, got_x.doubles(), grad_means_alone);
    }

    // pool without maxima, project
    Numbers means(N * C), logits(N * P, to_double(bias_buffer[0]));
    each([&](int64_t e, int64_t ic, int64_t ip, int64_t, int64_t i, int64_t) {
      means[ic] += x[e] / double(P);
      logits[ip] += w[i] * x[e];
    });
    Numbers opened(logits);
    for (double& value : opened) value = 1 / (1 + std::exp(-value));
    for (const bool project : {false, true})
      for (const bool pool : {true, false}) {
        if (!project && !pool) continue;
        Buffer<acc_t> got(pool ? N * C : 0, c.offset_numbers), got_gates(project ? N * P : 0, c.offset_numbers);
        cs::Call call{.op = project ? cs::Operator::kProject : cs::Operator::kPool, .tensors = one_map};
        call.tensors.spatial_weight = weight_buffer.data();
        call.tensors.spatial_bias = bias_buffer.data();
        call.tensors.by_channel = got.data();
        call.tensors.by_pixel = got_gates.data();
        run("project", call);
        if (pool) sums("means", got.doubles(), means, P);
        if (project) sums("spatial gate", got_gates.doubles(), opened, C);
      }

    for (const cs::Merge merge : {cs::Merge::kMax, cs::Merge::kAdd, cs::Merge::kProduct}) {
      if (kWatchesOrder && merge != cs::Merge::kMax) continue;
      const std::string with = " merge " + std::to_string(int(merge));
      const bool product = merge == cs::Merge::kProduct, max = merge == cs::Merge::kMax;
      auto of_gate_buffer = numbers(N * P), da_buffer = numbers(N * C);
      const Numbers of_gate = of_gate_buffer.doubles(), da = da_buffer.doubles();
      Numbers y(elements), y_skip(elements), dgc(N * C), dgs(N * P), dx(elements), dw(C);
      each([&](int64_t e, int64_t ic, int64_t ip, int64_t, int64_t i, int64_t) {
        const double a = acc_t(acc_t(x[e]) * acc_t(gc[ic])), b = acc_t(acc_t(x[e]) * acc_t(gs[ip]));
        const double dt = of_gate[ip] * gs[ip] * (1 - gs[ip]);
        const double u = !max || a > b ? 1 : a == b ? 0.5 : 0, v = !max ? 1 : 1 - u;
        y[e] = product ? x[e] * gc[ic] * gs[ip] : max ? std::max(a, b) : a + b;
        y_skip[e] = y[e] + x[e];
        dgc[ic] += dy[e] * x[e] * (product ? gs[ip] : u);
        dgs[ip] += dy[e] * x[e] * (product ? gc[ic] : v);
        dx[e] = dy[e] * (gc[ic] * u + gs[ip] * v) + da[ic] / double(P) + dt * w[i];
        dw[i] += dt * x[e];
      });
      Buffer<T> map(elements, c.offset_map);
      cs::Call call{.op = cs::Operator::kScale, .tensors = one_map, .merge = merge};
      call.tensors.channel_gate = gc_buffer.data();
      call.tensors.spatial_gate = gs_buffer.data();
      call.tensors.map = map.data();
      run("scale" + with, call);
      same("scale" + with, map.doubles(), y);
      call.skip = true;
      run("scale skip" + with, call);
      same("scale skip" + with, map.doubles(), y_skip);
      for (const int needs : {3, 1, 2}) {
        if (kWatchesOrder && needs != 3) continue;
        Buffer<acc_t> got_channel(needs & 1 ? N * C : 0, c.offset_numbers);
        Buffer<acc_t> got_pixel(needs & 2 ? N * P : 0, c.offset_numbers);
        call = {.op = cs::Operator::kGradGates, .tensors = maps, .merge = merge};
        call.tensors.channel_gate = gc_buffer.data();
        call.tensors.spatial_gate = gs_buffer.data();
        call.tensors.by_channel = got_channel.data();
        call.tensors.by_pixel = got_pixel.data();
        run("grad_gates" + with, call);
        if (needs & 1) sums("grad_gates by channel" + with, got_channel.doubles(), dgc, P);
        if (needs & 2) sums("grad_gates by pixel" + with, got_pixel.doubles(), dgs, C);
        if (product) continue;
        Buffer<T> got_x(needs & 1 ? elements : 0, c.offset_map), got_weight(needs & 2 ? C : 0, c.offset_numbers);
        call.op = cs::Operator::kGradConcurrent;
        call.tensors.by_pixel = nullptr;
        call.tensors.map = got_x.data();
        call.tensors.by_channel = got_weight.data();
        call.tensors.spatial_weight = weight_buffer.data();
        call.tensors.grad_means = da_buffer.data();
        call.tensors.grad_spatial_gate = of_gate_buffer.data();
        run("grad_concurrent" + with, call);
        if (needs & 1) same("grad_concurrent" + with, got_x.doubles(), dx);
        if (needs & 2) same("grad_concurrent weight" + with, got_weight.doubles(), dw, std::sqrt(double(N * P)));
      }
    }
  }
};

template <class T>
void check(const Case& c, const Path& path, bool channels_last, DataType type, double tolerance, unsigned seed) {
  Check<T>{c, path, channels_last, type, tolerance, std::mt19937(seed), {}}.everything();
}

}  // namespace

int main(int count, char** arguments) {
  const unsigned seed = count > 1 ? unsigned(std::atoi(arguments[1])) : 1;
  const std::vector<Case> cases = {
      {2, 12, 7, 7, true},               // rows that are no multiple of vectors
      {2, 24, 2, 14},                    // half vectors
      {1, 72, 8, 36},                    // several tiles of both axes, the last not full
      {1, 136, 8, 32},                   // the same where sums go along both
      {1, 520, 6, 10, true},             // the same where they go along columns
      {1, 4104, 1, 6, true},             // or along long rows, few of them, channels_last
      {1, 6, 24, 171},                   // and not
      {3, 5, 1, 1},                      // one pixel
      {2, 1, 9, 4, true},                // one channel
      {1, 16, 4, 8, true, 1, 1, 1, 1},   // maps that begin alike, off the boundary
      {1, 16, 4, 8, false, 4, 4, 4, 2},  // half vectors for the sake of where they begin
      {1, 16, 4, 8, false, 0, 3, 0, 1},  // operands each at an alignment of its own
      {1, 16, 4, 8, false, 0, 0, 2, 3},
  };
  for (const Path& path : kPaths)
    for (const bool channels_last : {false, true})
      for (const Case& c : cases) {
        if (kWatchesOrder && std::max(c.channels, c.height * c.width) > 500) continue;
        check<float>(c, path, channels_last, DataType::kFloat, 2e-5, seed);
        if (!kWatchesOrder) check<__nv_bfloat16>(c, path, channels_last, DataType::kBFloat16, 6e-3, seed);
        if (!kWatchesOrder && &path == &kPaths[1]) {
          check<__half>(c, path, channels_last, DataType::kHalf, 8e-4, seed);
          check<double>(c, path, channels_last, DataType::kDouble, 1e-13, seed);
        }
        if (failures) return finish();
      }
  check_layers(seed);
  check_convolution(seed);
  for (int op = 0; op < 8; ++op)
    for (const bool channels_last : {false, true}) {
      if (kWatchesOrder || (rows_split[op][channels_last] && columns_split[op][channels_last])) continue;
      std::printf("operator %d, channels_last %d: no case has several tiles of rows and of columns\n", op,
                  channels_last);
      ++failures;
    }
  return finish();
}
