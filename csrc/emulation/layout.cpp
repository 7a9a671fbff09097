// Binds the copies into another layout, which no operator is: tests/emulation/test_layout.py.
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "emulation/python.h"
#include "emulation/scheduler.h"
#include "layout/layout_launch.h"

namespace attnkernels::emulation {

void bind_layout(pybind11::module_& module) {
  // Each copy: the addresses of both tensors, samples, rows, columns, sample stride, row stride.
  module.def("layout_transpose", [](int64_t element_bytes, const std::vector<std::array<uint64_t, 7>>& given) {
    std::vector<layout::Transpose> copies;
    for (const auto& [from, to, samples, rows, columns, sample_stride, row_stride] : given)
      copies.push_back({.from = reinterpret_cast<const void*>(from),
                        .to = reinterpret_cast<void*>(to),
                        .samples = int64_t(samples),
                        .rows = int64_t(rows),
                        .columns = int64_t(columns),
                        .sample_stride = int64_t(sample_stride),
                        .row_stride = int64_t(row_stride)});
    const Result done = layout::transpose(element_bytes, copies.data(), int(copies.size()), nullptr);
    synchronize();
    if (done.error) throw std::runtime_error(done.error);
  });
}

}  // namespace attnkernels::emulation
