"""The operators of cbam and scse: passes over a map x [N, C, H, W] with numbers per channel and per pixel.

All maps have x's shape, dtype and device, and results of that shape its layout. Every other tensor is contiguous and in
the accumulation dtype: gates and what belongs to them are channel_... [N, C] and spatial_... [N, H, W]; but weights and
biases, and their gradients, are in x's dtype. N may be 0, other sizes not.

The symbols are those of reference.py. A maximum's gradient goes to the first of equal elements or, with `share`, to all
of them in equal parts; `marks` say which: the place of the first, in order of pixels or channels, or how many there
are. An element is one of those if it is equal to the maximum, in the accumulation dtype. Where there will be no
gradient marks need not be found.
"""

from __future__ import annotations

from math import prod

from .._layout import empty
from .._registry import Operator, Shape, accumulation_dtype

# `pools` of channel_spatial_pool; csrc/channel_spatial/channel_spatial.h has the same values, as of those below.
NO_POOLS, MEANS, MEANS_AND_MAXIMA, MEANS_AND_SHARED_MAXIMA, MEANS_AND_UNMARKED_MAXIMA = range(5)
MERGES = ("product", "add", "max")  # in the order of their integers
TIES = ("first", "share")
UNMARKED = len(TIES)  # in the place of a tie rule: no marks
NEEDS_CHANNEL, NEEDS_SPATIAL = 0b01, 0b10
NEEDS_X, NEEDS_WEIGHT = 0b01, 0b10


def _numbers(x, *shape, wanted=True):
    return x.new_empty(shape if wanted else 0, dtype=accumulation_dtype(x.dtype))


def _pool_fake(x, spatial_weight, spatial_bias, pools):
    samples, channels, height, width = x.shape
    return (
        _numbers(x, samples, min(pools, 2), channels),
        _numbers(x, samples, channels, wanted=pools in (MEANS_AND_MAXIMA, MEANS_AND_SHARED_MAXIMA)),
        _numbers(x, samples, height, width, wanted=spatial_weight is not None),
    )


def _statistics_fake(x, channel_gate, ties):
    samples, _, height, width = x.shape
    return _numbers(x, samples, 2, height, width), _numbers(x, samples, height, width, wanted=ties != UNMARKED)


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


def _grad_concurrent_fake(
    grad_y, x, channel_gate, spatial_gate, grad_means, grad_spatial_gate, spatial_weight, merge, needs
):
    grad_weight = x.new_empty(x.shape[1] if needs & NEEDS_WEIGHT else 0)
    return empty(x.shape, x, x, needs & NEEDS_X), grad_weight


def _projection_flops(x: Shape, spatial_weight: Shape | None, *rest, **out) -> int:
    samples, channels, height, width = x
    return 0 if spatial_weight is None else 2 * samples * channels * height * width


def _grad_concurrent_flops(grad_y: Shape, x: Shape, *rest, **out) -> int:
    return rest[-1].bit_count() * _projection_flops(x, x)


# pooled [N, K, C]: nothing, a, or a and A. marks [N, C] of A, [0] without them. spatial_gate: sigmoid(t), by
# spatial_weight [C] and spatial_bias [1]; [0] without the weight.
POOL = Operator(
    "channel_spatial_pool(Tensor x, Tensor? spatial_weight, Tensor? spatial_bias, int pools)"
    " -> (Tensor pooled, Tensor marks, Tensor spatial_gate)",
    _pool_fake,
    _projection_flops,
)

# statistics [N, 2, H, W]: M and m, of z = x gc or, without a channel gate, of x. marks [N, H, W] of M, [0] unmarked.
STATISTICS = Operator(
    "channel_spatial_statistics(Tensor x, Tensor? channel_gate, int ties) -> (Tensor statistics, Tensor marks)",
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

# dx = dy (gc u + gs v) + da / P + dt w, dw[c] = sum_n,p dt x, where dt = dgs gs (1 - gs); grad_means da [N, C] (None:
# 0). Without a channel gate u = 0, v = 1. merge is "add" or "max".
GRAD_CONCURRENT = Operator(
    "channel_spatial_grad_concurrent(Tensor grad_y, Tensor x, Tensor? channel_gate, Tensor spatial_gate,"
    " Tensor? grad_means, Tensor grad_spatial_gate, Tensor spatial_weight, int merge, int needs)"
    " -> (Tensor grad_x, Tensor grad_spatial_weight)",
    _grad_concurrent_fake,
    _grad_concurrent_flops,
)


def _layers_fake(pooled, reduce_weight, reduce_bias, expand_weight, expand_bias):
    samples, pools, channels = pooled.shape
    hidden = 0 if reduce_weight is None else (samples, pools, reduce_weight.shape[0])
    return pooled.new_empty((samples, channels)), pooled.new_empty(hidden)


def _layers_backward_fake(grad_gate, pooled, gate, hidden, reduce_weight, expand_weight, needs):
    width = 0 if reduce_weight is None else reduce_weight.shape[0]
    of_reduce = 0 if reduce_weight is None else reduce_weight.shape
    shapes = pooled.shape, of_reduce, width, expand_weight.shape, pooled.shape[2]
    found = (shape if needs >> i & 1 else 0 for i, shape in enumerate(shapes))
    return pooled.new_empty(next(found)), *(expand_weight.new_empty(shape) for shape in found)


# Counted as the formula is, which applies both layers to each pool.
def _layers_flops(pooled: Shape, reduce_weight: Shape | None, reduce_bias, expand_weight: Shape, *rest, **out) -> int:
    samples, pools, _ = pooled
    return 2 * samples * pools * ((0 if reduce_weight is None else prod(reduce_weight)) + prod(expand_weight))


def _layers_backward_flops(
    grad_gate: Shape, pooled: Shape, gate: Shape, hidden: Shape, reduce_weight: Shape | None, expand_weight: Shape,
    needs: int, **out,
) -> int:  # fmt: skip
    samples, pools, _ = pooled
    of_reduce = 0 if reduce_weight is None else prod(reduce_weight)
    # The gradient of the last layer's inputs, unless nothing before them has one.
    of_expand = (needs & 0b00111 != 0) + (needs >> 3 & 1)
    return 2 * samples * pools * (of_expand * prod(expand_weight) + ((needs & 1) + (needs >> 1 & 1)) * of_reduce)


# The channel gate gc [N, C] = sigmoid(sum_k mlp(pooled[n, k])), and hidden [N, K, rd], the first layer's results after
# their ReLU; [0] without reduce_weight, a single layer then. pooled [N, K, C]; reduce_weight [rd, C], expand_weight
# [C, rd] ([C, C] of a single layer) or with 1 x 1 after that, reduce_bias [rd], expand_bias [C].
# As the last layer is linear, it is applied to the sum over k once: gc = sigmoid(W (sum_k hidden[n, k]) + K b).
LAYERS = Operator(
    "channel_spatial_layers(Tensor pooled, Tensor? reduce_weight, Tensor? reduce_bias, Tensor expand_weight,"
    " Tensor? expand_bias) -> (Tensor gate, Tensor hidden)",
    _layers_fake,
    _layers_flops,
)
# `needs` has a bit for each result, [0] where it is not set. grad_pooled has pooled's dtype, the others the weights'
# dtype and shapes.
LAYERS_BACKWARD = Operator(
    "channel_spatial_layers_backward(Tensor grad_gate, Tensor pooled, Tensor gate, Tensor hidden,"
    " Tensor? reduce_weight, Tensor expand_weight, int needs)"
    " -> (Tensor grad_pooled, Tensor grad_reduce_weight, Tensor grad_reduce_bias,"
    " Tensor grad_expand_weight, Tensor grad_expand_bias)",
    _layers_backward_fake,
    _layers_backward_flops,
)


def _convolution_fake(statistics, weight, bias, mean_first, gate):
    samples, _, height, width = statistics.shape
    return statistics.new_empty((samples, height, width))


def _convolution_backward_fake(grad, statistics, weight, gate, mean_first, needs):
    return (
        statistics.new_empty(statistics.shape if needs & NEEDS_X else 0),
        weight.new_empty(weight.shape if needs & NEEDS_WEIGHT else 0),
    )


def _convolution_flops(statistics: Shape, weight: Shape, *rest, **out) -> int:
    samples, _, height, width = statistics
    return 2 * samples * height * width * prod(weight)


def _convolution_backward_flops(
    grad: Shape, statistics: Shape, weight: Shape, gate: Shape | None, mean_first: int, needs: int, **out
) -> int:
    return needs.bit_count() * _convolution_flops(statistics, weight)


# The convolution of the statistics [N, 2, H, W], with zeros around them, by weight [1, 2, k, k], k odd: [N, H, W]. The
# weight's planes are those of M and m or, with mean_first, of m and M. bias [1]. With `gate` its sigmoid.
CONVOLUTION = Operator(
    "channel_spatial_convolution(Tensor statistics, Tensor weight, Tensor? bias, int mean_first, int gate)"
    " -> Tensor logits",
    _convolution_fake,
    _convolution_flops,
)
# gate: what the forward gave, if that was the gate, and `grad` is of it: dt = grad gate (1 - gate). None: dt = grad.
CONVOLUTION_BACKWARD = Operator(
    "channel_spatial_convolution_backward(Tensor grad, Tensor statistics, Tensor weight, Tensor? gate, int mean_first,"
    " int needs) -> (Tensor grad_statistics, Tensor grad_weight)",
    _convolution_backward_fake,
    _convolution_backward_flops,
)
