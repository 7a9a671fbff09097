// Compiles the passes of simd_gate.h once for all ops.
#include "common/cpu_gate.h"

#define SIMD_FILE "common/simd_gate.h"
#include "common/simd_foreach.h"

namespace attnkernels {
namespace simd {
namespace {

template <class T>
const GatePasses<T>& chosen() {
  return *SIMD_CHOOSE(kGatePasses<T>);
}

}  // namespace
}  // namespace simd

namespace cpu {

template <class T>
const GatePasses<T>& gate_passes() {
  return simd::chosen<T>();
}
template const GatePasses<float>& gate_passes();
template const GatePasses<double>& gate_passes();
template const GatePasses<Half>& gate_passes();
template const GatePasses<BFloat16>& gate_passes();

}  // namespace cpu
}  // namespace attnkernels
