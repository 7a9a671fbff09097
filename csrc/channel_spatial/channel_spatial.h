// The options of the channel_spatial kernels; shared by every C++ backend, no torch.
#pragma once
#include "common/gate.h"

namespace attnkernels::channel_spatial {

// attnkernels/ops/channel_spatial/operators.py has the same values.
enum class Pools : int { kNoPools, kMeans, kMeansAndMaxima, kMeansAndSharedMaxima, kMeansAndUnmarkedMaxima };
enum class Ties : int { kFirst = 0, kShare = 1, kUnmarked = 2 };
enum class Merge : int { kProduct = 0, kAdd = 1, kMax = 2 };
enum NeedsOfGates : int { kNeedsChannel = 0b01, kNeedsSpatial = 0b10 };
enum NeedsOfMap : int { kNeedsX = 0b01, kNeedsWeight = 0b10 };

// Numbers per pixel are dense [N, H, W] whatever the layout of the maps.
struct Shape : MapShape {
  int64_t height, width;
};

// Places are held as numbers of the accumulation type: float holds every integer up to here.
inline constexpr int64_t kMostPlacesInFloat = int64_t(1) << 24;

}  // namespace attnkernels::channel_spatial
