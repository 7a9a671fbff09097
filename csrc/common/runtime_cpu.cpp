// Which instruction-set level the CPU kernels run at: attnkernels::simd_level() and attnkernels::set_simd_level(level).
#include <atomic>
#include <cstdlib>
#include <string>

#include "common/binding.h"
#include "common/simd.h"

namespace attnkernels::simd {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Level best_of_this_cpu() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Level::kAvx512;
  if (avx2) return Level::kAvx2;
#endif
  return Level::kBaseline;
}

Level parse(const std::string& name, const char* where) {
  const Level best = best_of_this_cpu();
  if (name.empty() || name == "auto") return best;
  for (int i = 0; i < 3; ++i) {
    if (name != kNames[i]) continue;
    STD_TORCH_CHECK(i <= int(best), where, ": this CPU has instructions up to level ", kNames[int(best)], ", got ",
                    name);
    return Level(i);
  }
  STD_TORCH_CHECK(false, where, ": expected auto, baseline, avx2 or avx512, got ", name);
}

std::atomic<int> in_force{-1};  // -1: not decided yet

std::string simd_level() { return kNames[int(level())]; }

void set_simd_level(std::string name) { in_force = int(parse(name, "set_simd_level")); }

}  // namespace

Level level() {
  int current = in_force.load(std::memory_order_relaxed);
  if (current < 0) {
    const char* wanted = std::getenv("ATTNKERNELS_SIMD");
    current = int(parse(wanted ? wanted : "", "ATTNKERNELS_SIMD"));
    in_force = current;
  }
  return Level(current);
}

STABLE_TORCH_LIBRARY_FRAGMENT(attnkernels, m) {
  m.def("simd_level() -> str");
  m.def("set_simd_level(str level) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level));
  m.impl("set_simd_level", TORCH_BOX(&set_simd_level));
}

}  // namespace attnkernels::simd
