// Binds the choices that launchers make before they launch, for the emulated device: tests/emulation/test_plan.py.
#include <stdexcept>
#include <string>

#include "emulation/python.h"
#include "selective_kernel/selective_kernel_tiles.h"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace py = pybind11;

namespace attnkernels::emulation {
namespace {

py::dict as_dict(const gate::Tiles& tiles) {
  using py::literals::operator""_a;
  return py::dict("threads"_a = tiles.threads, "tiles"_a = tiles.tiles, "splits"_a = tiles.splits,
                  "channels"_a = tiles.channels, "span"_a = tiles.span, "short_planes"_a = tiles.short_planes,
                  "segments"_a = tiles.segments, "lanes"_a = tiles.lanes, "shared_bytes"_a = tiles.shared_bytes,
                  "blocks"_a = tiles.blocks());
}

py::dict squeeze_excite_plan(const std::string& dtype, int64_t samples, int64_t channels, int64_t hidden,
                             int64_t pixels, bool channels_last, bool backward) {
  using py::literals::operator""_a;
  namespace se = squeeze_excite;
  const se::Shape shape{{samples, channels, pixels, channels_last},
                        hidden,
                        se::Activation::kRelu,
                        Gate::kSigmoid,
                        OutputActivation::kNone};
  const DataType type = dtype == "float64"   ? DataType::kDouble
                        : dtype == "float32" ? DataType::kFloat
                        : dtype == "float16" ? DataType::kHalf
                                             : DataType::kBFloat16;
  se::Limits limits;
  if (const Result result = se::limits(limits); result.error) throw std::runtime_error(result.error);
  const se::Plan plan = backward ? se::choose_backward(type, shape, limits) : se::choose_forward(type, shape, limits);
  return py::dict("sums"_a = as_dict(plan.sums), "map"_a = as_dict(plan.map), "layer_in_map"_a = plan.layer_in_map,
                  "dependent"_a = plan.dependent, "stream_output"_a = plan.stream_output);
}

py::dict selective_kernel_tiles(int64_t samples, int64_t channels, int64_t pixels, bool channels_last, int width,
                                bool vectorised, int64_t most_blocks) {
  using py::literals::operator""_a;
  namespace sk = selective_kernel;
  const sk::Shape shape{{samples, channels, pixels, channels_last}, 2};
  const sk::Tiles tiles = sk::choose_tiles(shape, width, vectorised, most_blocks);
  return py::dict("lanes"_a = tiles.lanes, "channels"_a = tiles.channels, "channel_tiles"_a = tiles.channel_tiles,
                  "splits"_a = tiles.splits, "span"_a = tiles.span, "blocks"_a = tiles.blocks(samples));
}

}  // namespace

void bind_plans(py::module_& module) {
  module.def("squeeze_excite_plan", &squeeze_excite_plan, py::kw_only(), py::arg("dtype"), py::arg("samples"),
             py::arg("channels"), py::arg("hidden"), py::arg("pixels"), py::arg("channels_last"), py::arg("backward"));
  module.def("selective_kernel_tiles", &selective_kernel_tiles, py::kw_only(), py::arg("samples"), py::arg("channels"),
             py::arg("pixels"), py::arg("channels_last"), py::arg("width"), py::arg("vectorised"),
             py::arg("most_blocks"));
  module.attr("selective_kernel_most_blocks") =
      py::make_tuple(selective_kernel::Tuning().most_sum_blocks, selective_kernel::Tuning().most_map_blocks);
}

}  // namespace attnkernels::emulation
