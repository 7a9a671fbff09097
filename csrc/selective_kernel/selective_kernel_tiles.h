// How the CUDA launches of selective_kernel divide feature maps among blocks: host arithmetic, neither CUDA nor torch.
#pragma once
#include <algorithm>

#include "selective_kernel/selective_kernel.h"

namespace attnkernels::selective_kernel {

constexpr int kMostFinishChannels = 32;
constexpr int kThreads = 256;  // of a block: eight fill a multiprocessor's 2048 threads, few enough to wait for

// A block walks `channels` channels of `span` pixels of one sample. Where rows are planes, each group of `lanes`
// threads walks one of them; where they are pixels, the lanes lie side by side across the channels and the groups take
// turns at the pixels.
struct Tiles {
  int lanes;  // a power of two where rows are planes
  int channels;
  int channel_tiles;  // blocks over the channels
  int splits;         // blocks over the pixels
  int64_t span;
  bool vectorised;  // every row of every operand lies equally far past a 128-bit boundary; rows of pixels at one

  int64_t blocks(int64_t samples) const { return samples * channel_tiles * splits; }

  // Of a block that adds the splits' sums: a warp reads 128 adjacent bytes, or 32 where the rows are so many that more
  // threads have to share them. Microseconds of both launches of grad_logits, in channels_last, by 32 and by 8:
  // 32x512x14x14 16.5 : 21.1, 1x128x56x56 8.9 : 6.9.
  constexpr int finish_channels() const { return splits > 32 ? 8 : kMostFinishChannels; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks beyond which a launch is not divided further: two and four for each of an H100's 132 multiprocessors, so that
// all run at once. Microseconds with four times as many and with these: grad_logits of 32x256x28x28 channels_last
// 20.9 : 14.8, of 8x128x56x56 7.7 : 6.2, select of 32x256x28x28 14.4 : 12.4; grad_branches of 32x128x56x56 30.9 : 31.5.
struct Tuning {
  int64_t most_sum_blocks = 264, most_map_blocks = 528;
};

// width: elements of a 128-bit vector
inline Tiles choose_tiles(const Shape& shape, int width, bool vectorised, int64_t most_blocks) {
  constexpr int64_t kFewestVectors = 2;           // of a thread and operand: what is in flight at once
  constexpr int64_t kLongest = int64_t(1) << 30;  // a thread counts in 32 bits
  const int64_t values = shape.samples * shape.channels * shape.pixels;
  const int64_t wanted = std::clamp(values / (width * kThreads * kFewestVectors), int64_t(1), most_blocks);
  Tiles tiles{};
  tiles.vectorised = vectorised;
  int64_t most_splits;
  if (shape.channels_last) {
    const int unit = vectorised ? width : 1;
    const int64_t units = shape.channels / unit;
    // A warp's 512 adjacent bytes of a pixel; down to the 128 of a cache line where there are too few pixels to split.
    int limit = 32;
    while (limit > 8 && shape.samples * ceil_div(units, limit) * ceil_div(shape.pixels * limit, 4 * kThreads) < wanted)
      limit /= 2;
    tiles.lanes = int(ceil_div(units, ceil_div(units, limit)));
    tiles.channels = tiles.lanes * unit;
    most_splits = shape.pixels / (kThreads / tiles.lanes * kFewestVectors);
  } else {
    const int64_t vectors = ceil_div(shape.pixels, width);
    int lanes =
        1;  // up to a warp as soon as a plane has a vector for each lane, then up to the block for want of blocks
    while (lanes < 32 && lanes < vectors) lanes *= 2;
    while (lanes < kThreads && 2 * lanes <= vectors &&
           shape.samples * ceil_div(shape.channels * lanes, kThreads) < wanted)
      lanes *= 2;
    tiles.lanes = lanes;
    tiles.channels = kThreads / lanes;
    most_splits = lanes == kThreads ? vectors / (lanes * kFewestVectors) : 1;
  }
  tiles.channel_tiles = int(ceil_div(shape.channels, tiles.channels));
  const int64_t splits = std::max(std::min(ceil_div(wanted, shape.samples * tiles.channel_tiles), most_splits),
                                  ceil_div(shape.pixels, kLongest));
  // A multiple of the width: every split of a plane then begins as aligned as the plane.
  tiles.span = std::max(ceil_div(ceil_div(shape.pixels, std::max(splits, int64_t(1))), width) * width, int64_t(width));
  tiles.splits = int(std::max(ceil_div(shape.pixels, tiles.span), int64_t(1)));
  return tiles;
}

// Whether 128-bit accesses reach the same elements of all operands; element_size in bytes.
inline bool vectorises(const Shape& shape, int64_t element_size, const Rows<const void>* operands, int count) {
  constexpr int64_t kBytes = 16;
  if (shape.channels_last && shape.channels * element_size % kBytes) return false;
  // Rows of pixels must be aligned, as if beside one that is; rows of planes only alike.
  const Rows<const void> like = shape.channels_last ? Rows<const void>{} : operands[0];
  const auto address = [](const Rows<const void>& x) { return reinterpret_cast<intptr_t>(x.data); };
  for (int i = 0; i < count; ++i) {
    const Rows<const void>& x = operands[i];
    if ((address(x) - address(like)) % kBytes) return false;
    if (shape.samples > 1 && (x.sample_stride - like.sample_stride) * element_size % kBytes) return false;
    if (shape.rows() > 1 && (x.row_stride - like.row_stride) * element_size % kBytes) return false;
  }
  return true;
}

}  // namespace attnkernels::selective_kernel
