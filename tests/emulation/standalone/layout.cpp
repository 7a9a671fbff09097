// layout: runs the copies into another layout on heap memory of exact size, at every alignment, and compares with plain
// loops. Exits with 1 and a line per wrong result; sanitizers end it by themselves.
#include <string>
#include <vector>

#include "common/language.cuh"
#include "layout/layout_launch.h"
#include "standalone.h"

namespace {

using namespace standalone;
using attnkernels::layout::Transpose;

struct Case {
  int64_t samples, rows, columns;
  int64_t from_offset = 0, to_offset = 0;         // in elements past an aligned address
  int64_t between_rows = 0, between_samples = 0;  // elements of other maps

  int64_t row_stride() const { return columns + between_rows; }
  int64_t sample_stride() const { return rows * row_stride() + between_samples; }
  int64_t extent() const {
    return samples && rows && columns ? (samples - 1) * sample_stride() + (rows - 1) * row_stride() + columns : 0;
  }
};

// Every element of `from` is told from its neighbours, whatever the type's precision.
template <class T>
void check(const std::vector<Case>& cases) {
  std::vector<Buffer<T>> from, to;
  std::vector<Transpose> copies;
  for (const Case& c : cases) {
    from.emplace_back(c.extent(), c.from_offset);
    to.emplace_back(c.samples * c.rows * c.columns, c.to_offset);
    for (int64_t i = 0; i < from.back().count; ++i) assign(from.back()[i], double(i * 7 % 2039));
    copies.push_back(
        {from.back().data(), to.back().data(), c.samples, c.rows, c.columns, c.sample_stride(), c.row_stride()});
  }
  check_launches("layout", attnkernels::layout::transpose(sizeof(T), copies.data(), int(copies.size()), nullptr));
  if (failures) return;
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    int64_t wrong = 0;
    for (int64_t n = 0; n < c.samples; ++n)
      for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t k = 0; k < c.columns; ++k) {
          const double want = to_double(from[i][n * c.sample_stride() + r * c.row_stride() + k]);
          wrong += to_double(to[i][(n * c.columns + k) * c.rows + r]) != want;
        }
    if (!wrong) continue;
    std::printf("%d bytes, %ld x %ld x %ld, from %ld to %ld, between %ld %ld: %ld wrong\n", int(sizeof(T)),
                long(c.samples), long(c.rows), long(c.columns), long(c.from_offset), long(c.to_offset),
                long(c.between_rows), long(c.between_samples), long(wrong));
    ++failures;
  }
}

template <class T>
void check_all() {
  constexpr int64_t kVector = 16 / sizeof(T), kRows = 8 * kVector;
  check<T>({{1, 3, 5}});
  check<T>({{2, 1, 9}, {2, 9, 1}, {1, 1, 1}, {3, 2, 2}});
  check<T>({{1, kRows, 128}, {1, kRows + 1, 129}, {2, kRows - 1, 127}});
  check<T>({{0, 3, 5}, {2, 0, 5}, {2, 3, 0}, {1, 3, 4}, {0, 0, 0}});
  check<T>({{2, 2 * kRows, 9}, {2, 9, 2 * kRows}, {1, 21, 150}});
  check<T>({{2, 5, 7, 0, 0, 3, 2}, {2, kRows, 64, 0, 0, 8, 16}, {1, 9, 17, 1, 2, 1}, {3, 1, 130, 0, 0, 0, 5}});
  check<T>(std::vector<Case>(19, Case{1, 3, 2, 1}));  // more than one launch takes
  for (int64_t from_offset = 0; from_offset < (kWatchesOrder ? 2 : kVector); ++from_offset)
    for (int64_t to_offset = 0; to_offset < (kWatchesOrder ? 2 : kVector); ++to_offset)
      for (const Case& c : {Case{2, 13, 11}, Case{1, 16, 24}, Case{1, kRows + 2, 9}})
        check<T>({{c.samples, c.rows, c.columns, from_offset, to_offset}});
}

}  // namespace

int main() {
  check_all<__half>();
  check_all<float>();
  check_all<double>();
  return finish();
}
