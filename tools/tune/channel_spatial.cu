// What the passes of cbam and scse take on the GPU at hand, with tiles as by default and in other ways; one line of JSON
// for each. The results of other tiles are compared with those by default, which the tests compare with float64, and
// computed three times. No torch.
#include <array>
#include <cstring>
#include <string>

#include "channel_spatial/channel_spatial_launch.h"
#include "tune/timing.cuh"

namespace attnkernels::tune {
namespace {

namespace cs = channel_spatial;
using cs::Operator;
using T = __nv_bfloat16;

struct Pass {
  const char* name;
  Operator op;
  int maps;  // that it reads and stores
};

void problem(Timer& timer, const gate::Limits& limits, const cs::Shape& shape, const std::string& name) {
  const int64_t size = shape.samples * shape.channels * shape.pixels;
  const int64_t channels = shape.samples * shape.channels, pixels = shape.samples * shape.pixels;
  Buffer<T> x(size), grad_y(size), weight(shape.channels), map(size);
  Buffer<float> channel_gate(channels), spatial_gate(pixels), grad_statistics(2 * pixels), statistics(2 * pixels),
      marks(pixels), grad_pooled(2 * channels), pooled(2 * channels), pool_marks(channels), by_channel(2 * channels),
      by_pixel(2 * pixels), found_marks(std::max(channels, pixels));
  fill(x, 1, 1);
  fill(grad_y, 2, 1);
  fill(weight, 3, 1);
  unsigned seed = 4;
  for (const auto* numbers : {&channel_gate, &spatial_gate, &grad_statistics, &statistics, &grad_pooled, &pooled})
    fill(*numbers, seed++, 1);
  for (const auto* places : {&marks, &pool_marks}) TUNE_CHECK(cudaMemset(places->data(), 0, places->count() * 4));

  for (const Pass& pass : {Pass{"pool", Operator::kPool, 1},
                           {"project", Operator::kProject, 1},
                           {"statistics", Operator::kStatistics, 1},
                           {"scale", Operator::kScale, 2},
                           {"grad_gates", Operator::kGradGates, 2},
                           {"grad_channel_gate", Operator::kGradChannelGate, 2},
                           {"grad_x", Operator::kGradX, 3},
                           {"grad_concurrent", Operator::kGradConcurrent, 3}}) {
    const bool stores = pass.op == Operator::kScale || pass.op >= Operator::kGradX;
    const bool adds_channels = pass.op != Operator::kStatistics && pass.op != Operator::kScale &&
                               pass.op != Operator::kGradX && pass.op != Operator::kGradGates;
    const bool adds_pixels =
        pass.op == Operator::kProject || pass.op == Operator::kStatistics || pass.op == Operator::kGradGates;
    cs::Call call{.op = pass.op, .maxima = pass.op == Operator::kPool || pass.op == Operator::kGradX};
    cs::Tensors& t = call.tensors;
    t.x = x.data();
    if (pass.op >= Operator::kGradGates) t.grad_y = grad_y.data();
    t.spatial_weight = weight.data();
    t.channel_gate = channel_gate.data();
    t.spatial_gate = spatial_gate.data();
    t.grad_statistics = grad_statistics.data();
    t.statistics = statistics.data();
    t.marks = marks.data();
    t.grad_pooled = t.grad_means = grad_pooled.data();
    t.pooled = pooled.data();
    t.pool_marks = pool_marks.data();
    t.grad_spatial_gate = grad_statistics.data();
    if (pass.op == Operator::kGradConcurrent) call.merge = cs::Merge::kAdd;
    if (stores) t.map = map.data();
    if (adds_channels) t.by_channel = by_channel.data();
    if (adds_pixels) t.by_pixel = by_pixel.data();
    t.found_marks = found_marks.data();

    std::vector<T> want_map;
    std::vector<float> want_channels, want_pixels;
    const matrix::Tuning usual;
    struct Point {
      int64_t sums, maps;
      int bits, batches;  // threads side by side, of rows that are alone added up; 0: as chosen
    };
    for (const auto& [sums, maps, bits, batches] : {Point{0, 0, 0, 0},
                                                    {3, 4, 0, 0},
                                                    {4, 12, 0, 0},
                                                    {6, 16, 0, 0},
                                                    {0, 0, 3, 1},
                                                    {0, 0, 4, 1},
                                                    {0, 0, 5, 1},
                                                    {0, 0, 6, 1},
                                                    {0, 0, 7, 1},
                                                    {0, 0, 8, 1}}) {
      matrix::Tuning tuning = usual;
      if (sums) tuning.sum_blocks = sums, tuning.map_blocks = maps;
      matrix::Plan plan = cs::choose(DataType::kBFloat16, shape, call, limits, tuning);
      if (bits) {
        if (!plan.along_rows() || plan.along_columns() || plan.pass.over_samples) continue;
        const int64_t batch = (matrix::kThreads >> bits) * matrix::rows_at_once(plan.pass.maps, plan.width * 2);
        plan.across_bits = bits;
        plan.tile_rows = batch * batches;
        if (plan.tile_rows * plan.warps_across() > matrix::kMostRowCells || plan.tile_rows >= 2 * plan.rows()) continue;
        plan.row_tiles = matrix::ceil_div(plan.rows(), plan.tile_rows);
        plan.tile_columns = plan.columns();
        plan.column_tiles = 1;
      }
      Buffer<float> scratch(plan.scratch());
      const Chain chain = [&](cudaStream_t stream) {
        check(cs::run(DataType::kBFloat16, call, plan, scratch.data(), stream));
      };
      double error = 0;
      for (int i = 0; i < 3; ++i) {
        map.poison();
        by_channel.poison();
        by_pixel.poison();
        scratch.poison();
        chain(nullptr);
        TUNE_CHECK(cudaDeviceSynchronize());
        const auto compare = [&](auto& want, const auto& found) {
          auto now = found.host();
          if (want.empty()) want = now;
          for (size_t k = 0; k < now.size(); ++k) {
            const float a = float(now[k]), b = float(want[k]);
            if ((a != a) != (b != b)) error = 1e9;
            if (a == a) error = std::max(error, double(std::fabs(a - b)) / (1 + std::fabs(b)));
          }
        };
        if (stores) compare(want_map, map);
        if (adds_channels) compare(want_channels, by_channel);
        if (adds_pixels) compare(want_pixels, by_pixel);
      }
      const double warm = timer.warm(chain, 3, 10, 3), cold = timer.cold(chain, 3);
      std::printf(
          "{\"what\": \"%s\", \"shape\": \"%s\", \"sums\": %d, \"maps\": %d, \"bits\": %d, \"batches\": %d, "
          "\"warm_us\": %.2f, "
          "\"cold_us\": %.2f, \"tb_s\": %.2f, \"error\": %.1e, \"tile\": [%d, %d, %d], \"tiles\": [%d, %d], "
          "\"blocks\": %d}\n",
          pass.name, name.c_str(), int(tuning.sum_blocks), int(tuning.map_blocks), bits, batches, warm, cold,
          pass.maps * size * 2 / cold * 1e-6, error, int(plan.tile_rows), int(plan.tile_columns), plan.across(),
          int(plan.row_tiles), int(plan.column_tiles), int(plan.blocks()));
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace attnkernels::tune

int main() {
  using namespace attnkernels;
  gate::Limits limits;
  tune::check(channel_spatial::limits(limits));
  tune::Timer timer;
  for (const auto& [samples, channels, side] :
       {std::array{32, 256, 56}, {8, 256, 56}, {32, 512, 28}, {32, 1024, 14}, {32, 2048, 7}, {1, 256, 56}})
    for (const bool channels_last : {false, true}) {
      channel_spatial::Shape shape{{samples, channels, int64_t(side) * side, channels_last}, side, side};
      tune::problem(timer, limits, shape,
                    std::string(channels_last ? "nhwc " : "nchw ") + std::to_string(samples) + "x" +
                        std::to_string(channels) + "x" + std::to_string(side));
    }
}
