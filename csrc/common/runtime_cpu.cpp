// What the CPU kernels run with: attnkernels::simd_level() and attnkernels::set_simd_level(level), the instruction-set
// level; attnkernels::fill_new_memory(wanted), for tests.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/binding.h"
#include "common/cpu_work.h"
#include "common/simd.h"

namespace attnkernels::cpu {
static std::atomic<bool> filling{false};

static void fill_new_memory(bool wanted) { filling = wanted; }

void fill_if_asked(Tensor& x) {
  if (!filling.load(std::memory_order_relaxed) || x.numel() == 0) return;
  memset(x.mutable_data_ptr(), 0xff, x.numel() * x.element_size());  // a NaN in every floating-point format
}

}  // namespace attnkernels::cpu

namespace attnkernels::simd {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

#if defined(__x86_64__)
// __builtin_cpu_supports does not take "f16c" in clang 16 and before.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

Level best_of_this_cpu() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Level::kAvx512Bf16 : Level::kAvx512;
  if (avx2) return Level::kAvx2;
#endif
  return Level::kBaseline;
}

Level parse(const std::string& name, const char* where) {
  const Level best = best_of_this_cpu();
  if (name.empty() || name == "auto") return best;
  for (int i = 0; i < int(std::size(kNames)); ++i) {
    if (name != kNames[i]) continue;
    STD_TORCH_CHECK(i <= int(best), where, ": this CPU has instructions up to level ", kNames[int(best)], ", got ",
                    name);
    return Level(i);
  }
  STD_TORCH_CHECK(false, where, ": expected auto, baseline, avx2, avx512 or avx512_bf16, got ", name);
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
  m.def("fill_new_memory(bool wanted) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level));
  m.impl("set_simd_level", TORCH_BOX(&set_simd_level));
  m.impl("fill_new_memory", TORCH_BOX(&cpu::fill_new_memory));
}

}  // namespace attnkernels::simd
