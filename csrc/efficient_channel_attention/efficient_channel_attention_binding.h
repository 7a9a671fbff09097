// What the torch bindings of every backend of efficient_channel_attention share: the checks, and what has passed them.
#pragma once
#include <optional>

#include "common/gate_binding.h"
#include "efficient_channel_attention/efficient_channel_attention.h"

namespace attnkernels::efficient_channel_attention {

using Optional = std::optional<Tensor>;

using gate::check_map;
using gate::check_saved;

inline constexpr const char* kOp = "efficient_channel_attention";

// The shape of a call that has passed the checks.
inline Shape checked_shape(const Tensor& x, const Tensor& weight, int64_t circular, int64_t gate,
                           int64_t output_activation) {
  const MapShape map = gate::checked_map(kOp, x);
  const int64_t taps = weight.dim() ? weight.size(weight.dim() - 1) : 0;
  STD_TORCH_CHECK(gate::alike(weight, x) && (weight.dim() == 1 || weight.dim() == 3) && weight.numel() == taps &&
                      taps % 2 == 1 && taps <= kMostTaps && (!circular || taps / 2 <= map.channels),
                  kOp, ": weight: expected an odd number of taps of x's dtype on x's device");
  gate::check_choices(kOp, circular, gate, output_activation);
  return {map, int(taps), bool(circular), Gate(gate), OutputActivation(output_activation)};
}

}  // namespace attnkernels::efficient_channel_attention
