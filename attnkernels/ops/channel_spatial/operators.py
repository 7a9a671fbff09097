"""The operators of cbam and scse: passes over a map x [N, C, H, W] with numbers per channel and per pixel.

All maps have x's shape, dtype and device, and results of that shape its layout. Every other tensor is contiguous and in
the accumulation dtype: gates and what belongs to them are channel_... [N, C] and spatial_... [N, H, W]; but
`spatial_weight` [C] and `spatial_bias` [1], and the weight's gradient, are in x's dtype. N may be 0, C, H and W not.

The symbols are those of reference.py. A maximum's gradient goes to the first of equal elements or, with `share`, to all
of them in equal parts; `marks` say which: the place of the first, in order of pixels or channels, or how many there
are. An element is one of those if it is equal to the maximum, in the accumulation dtype.
"""

from __future__ import annotations

from math import prod

from .._layout import empty
from .._registry import Operator, Shape, accumulation_dtype

# `pools` of channel_spatial_pool; csrc/channel_spatial/channel_spatial.h has the same values, as of those below.
NO_POOLS, MEANS, MEANS_AND_MAXIMA, MEANS_AND_SHARED_MAXIMA = range(4)
MERGES = ("product", "add", "max")  # in the order of their integers
TIES = ("first", "share")
NEEDS_CHANNEL, NEEDS_SPATIAL = 0b01, 0b10
NEEDS_X, NEEDS_WEIGHT = 0b01, 0b10


def _numbers(x, *shape, wanted=True):
    return x.new_empty(shape if wanted else 0, dtype=accumulation_dtype(x.dtype))


def _pool_fake(x, spatial_weight, spatial_bias, pools):
    samples, channels, height, width = x.shape
    return (
        _numbers(x, samples, min(pools, 2), channels),
        _numbers(x, samples, channels, wanted=pools >= MEANS_AND_MAXIMA),
        _numbers(x, samples, height, width, wanted=spatial_weight is not None),
    )


def _statistics_fake(x, channel_gate, share):
    samples, _, height, width = x.shape
    return _numbers(x, samples, 2, height, width), _numbers(x, samples, height, width)


def _scale_fake(x, channel_gate, spatial_gate, merge, skip):
    return empty(x.shape, x, x)


def _grad_gates_fake(grad_y, x, channel_gate, spatial_gate, merge, needs):
    samples, channels, height, width = x.shape
    return (
        _numbers(x, samples, channels, wanted=needs & NEEDS_CHANNEL),
        _numbers(x, samples, height, width, wanted=needs & NEEDS_SPATIAL),
    )


def _grad_channel_gate_fake(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, share):
    return _numbers(x, *x.shape[:2])


def _grad_x_fake(grad_y, x, *rest):
    return empty(x.shape, x, x)


def _grad_concurrent_fake(grad_y, x, channel_gate, spatial_gate, grad_means, grad_logits, spatial_weight, merge, needs):
    grad_weight = x.new_empty(x.shape[1] if needs & NEEDS_WEIGHT else 0)
    return empty(x.shape, x, x, needs & NEEDS_X), grad_weight


def _projection_flops(x: Shape, spatial_weight: Shape | None, *rest, **out) -> int:
    samples, channels, height, width = x
    return 0 if spatial_weight is None else 2 * samples * channels * height * width


def _grad_concurrent_flops(grad_y: Shape, x: Shape, *rest, **out) -> int:
    return rest[-1].bit_count() * _projection_flops(x, x)


# pooled [N, K, C]: nothing, a, or a and A. marks [N, C] of A, [0] without it. logits: t, [0] without spatial_weight.
POOL = Operator(
    "channel_spatial_pool(Tensor x, Tensor? spatial_weight, Tensor? spatial_bias, int pools)"
    " -> (Tensor pooled, Tensor marks, Tensor logits)",
    _pool_fake,
    _projection_flops,
)

# statistics [N, 2, H, W]: M and m, of z = x gc or, without a channel gate, of x. marks [N, H, W] of M.
STATISTICS = Operator(
    "channel_spatial_statistics(Tensor x, Tensor? channel_gate, int share) -> (Tensor statistics, Tensor marks)",
    _statistics_fake,
)

# y = x gc gs, x gc + x gs or max(x gc, x gs), and + x with `skip`; of one gate alone, x gc or x gs.
SCALE = Operator(
    "channel_spatial_scale(Tensor x, Tensor? channel_gate, Tensor? spatial_gate, int merge, int skip) -> Tensor y",
    _scale_fake,
)

# The gradients of the gates through SCALE alone, for the same merge.
# product: dgc = sum_p dy x gs, dgs = sum_c dy x gc; others: dgc = sum_p dy x u, dgs = sum_c dy x v
GRAD_GATES = Operator(
    "channel_spatial_grad_gates(Tensor grad_y, Tensor x, Tensor? channel_gate, Tensor? spatial_gate, int merge,"
    " int needs) -> (Tensor grad_channel_gate, Tensor grad_spatial_gate)",
    _grad_gates_fake,
)

# dgc = sum_p x (dy gs + dm / C + dM [c in M]); grad_statistics: dM and dm
GRAD_CHANNEL_GATE = Operator(
    "channel_spatial_grad_channel_gate(Tensor grad_y, Tensor x, Tensor channel_gate, Tensor spatial_gate,"
    " Tensor grad_statistics, Tensor statistics, Tensor marks, int share) -> Tensor grad_channel_gate",
    _grad_channel_gate_fake,
)

# dx = (dy gs + dm / C + dM [c in M]) gc + da / P + dA [p in A], and + dy with `skip`. A gate that is not there is 1;
# what belongs to the statistics, or to the pools, is there together or not at all; grad_pooled and pooled [N, K, C] as
# of POOL, with pool_marks where K = 2.
GRAD_X = Operator(
    "channel_spatial_grad_x(Tensor grad_y, Tensor x, Tensor? channel_gate, Tensor? spatial_gate,"
    " Tensor? grad_statistics, Tensor? statistics, Tensor? marks,"
    " Tensor? grad_pooled, Tensor? pooled, Tensor? pool_marks, int skip, int share) -> Tensor grad_x",
    _grad_x_fake,
)

# dx = dy (gc u + gs v) + da / P + dt w, dw[c] = sum_n,p dt x; grad_means da [N, C] (None: 0), grad_logits dt. Without a
# channel gate u = 0, v = 1. merge is "add" or "max".
GRAD_CONCURRENT = Operator(
    "channel_spatial_grad_concurrent(Tensor grad_y, Tensor x, Tensor? channel_gate, Tensor spatial_gate,"
    " Tensor? grad_means, Tensor grad_logits, Tensor spatial_weight, int merge, int needs)"
    " -> (Tensor grad_x, Tensor grad_spatial_weight)",
    _grad_concurrent_fake,
    _grad_concurrent_flops,
)


def _convolution_fake(statistics, weight, bias):
    samples, _, height, width = statistics.shape
    return statistics.new_empty((samples, height, width))


def _convolution_backward_fake(grad, statistics, weight, needs):
    return (
        statistics.new_empty(statistics.shape if needs & NEEDS_X else 0),
        statistics.new_empty(weight.shape if needs & NEEDS_WEIGHT else 0),
    )


def _convolution_flops(statistics: Shape, weight: Shape, *rest, **out) -> int:
    samples, _, height, width = statistics
    return 2 * samples * height * width * prod(weight)


def _convolution_backward_flops(grad: Shape, statistics: Shape, weight: Shape, needs: int, **out) -> int:
    return needs.bit_count() * _convolution_flops(statistics, weight)


# The convolution of the statistics [N, 2, H, W], with zeros around them, by weight [2, k, k], k odd: [N, H, W]. All,
# the bias [1] too, is in the accumulation dtype.
CONVOLUTION = Operator(
    "channel_spatial_convolution(Tensor statistics, Tensor weight, Tensor? bias) -> Tensor logits",
    _convolution_fake,
    _convolution_flops,
)
CONVOLUTION_BACKWARD = Operator(
    "channel_spatial_convolution_backward(Tensor grad_logits, Tensor statistics, Tensor weight, int needs)"
    " -> (Tensor grad_statistics, Tensor grad_weight)",
    _convolution_backward_fake,
    _convolution_backward_flops,
)
