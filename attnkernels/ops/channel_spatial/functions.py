"""The autograd Functions of cbam and scse: one for each pass over the map, and one for the convolution.

The gradient of the map has a term from each pass over it, and each term but one is known only when layers between the
passes have run backward. Left to autograd, each would be written, read again and added. Here each pass sends what its
term takes to the one before it, as the "gradients" of slots: results of that pass which are never read and exist for
their gradients. The first pass, whose node runs last, writes the whole gradient once. The slots of a pass must reach
exactly one next pass over the same map; `schema.py` sees to that.

Derivatives of derivatives need none of this: each node differentiates its own formula, and the slots stay empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import differentiates_formula, needs_bits, reference_backward
from .._registry import accumulation_dtype
from . import operators, reference
from .operators import MERGES, TIES

Tensors = tuple[Tensor | None, ...]


def _slot(x: Tensor, *shape: int) -> Tensor:
    """A slot for numbers in the accumulation dtype, of the right shape at the least cost: nothing reads its number."""
    return x.new_empty((), dtype=accumulation_dtype(x.dtype)).expand(shape)


def _map_slot(x: Tensor) -> Tensor:
    return x.detach()


class PoolFunction(torch.autograd.Function):
    """cbam's first pass, from x to [N, K, C], and its slots: those of grad_y and the channel gate and, where a spatial
    gate follows, of that and of the statistics.

    A compiled graph has zeros for the gradients of results that nothing uses: there are no others.
    """

    @staticmethod
    def forward(ctx: Any, backend: str, x: Tensor, pools: int, ties: str, skip: bool, spatial: bool) -> Tensors:
        pooled, marks, _ = operators.POOL.on[backend](x, None, None, pools)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.pools, ctx.ties, ctx.skip = backend, pools, ties, skip
        ctx.save_for_backward(x, *((pooled, marks) if pools >= operators.MEANS_AND_MAXIMA else ()))
        samples, channels, height, width = x.shape
        slots = _map_slot(x), _slot(x, samples, channels)
        if not spatial:
            return pooled, *slots
        return (
            pooled,
            *slots,
            _slot(x, samples, height, width),
            _slot(x, samples, 2, height, width),
            _slot(x, samples, 2, height, width),
            _slot(x, samples, height, width),
        )

    @staticmethod
    def backward(
        ctx: Any,
        grad_pooled: Tensor | None,
        grad_y: Tensor | None,
        channel_gate: Tensor | None,
        spatial_gate: Tensor | None = None,
        *found: Tensor | None,
    ) -> Tensors:
        x, *kept = ctx.saved_tensors
        if grad_y is None:
            names = ("avg", "max")[: min(ctx.pools, 2)]
            grad = None
            if grad_pooled is not None:
                (grad,) = reference_backward(lambda x: reference.pooled(x, names, ctx.ties), [x], grad_pooled)
            return None, grad, None, None, None, None
        pooled, marks = kept or (None, None)
        if grad_pooled is not None and pooled is None:
            pooled = grad_pooled  # which only says how many pools there are
        of_pools = (None, None, None) if grad_pooled is None else (grad_pooled, pooled, marks)
        grad = operators.GRAD_X.on[ctx.backend](
            grad_y, x, channel_gate, spatial_gate, *(found or (None, None, None)), *of_pools, int(ctx.skip),
            TIES.index(ctx.ties),
        )  # fmt: skip
        return None, grad, None, None, None, None


class StatisticsFunction(torch.autograd.Function):
    """cbam's second pass, from x and its channel gate to [N, 2, H, W], and its slots: of grad_y and the spatial gate.

    It takes the slots of the first pass, or none where there is no channel gate; then it writes the gradient of x.
    """

    @staticmethod
    def forward(
        ctx: Any, backend: str, x: Tensor, channel_gate: Tensor | None, ties: str, skip: bool, *slots: Tensor
    ) -> Tensors:
        share = TIES.index(ties)
        statistics, marks = operators.STATISTICS.on[backend](x, channel_gate, share)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.ties, ctx.skip, ctx.slots = backend, ties, skip, len(slots)
        ctx.save_for_backward(x, channel_gate, statistics, marks)
        samples, _, height, width = x.shape
        return statistics, _map_slot(x), _slot(x, samples, height, width)

    @staticmethod
    def backward(
        ctx: Any, grad_statistics: Tensor | None, grad_y: Tensor | None, spatial_gate: Tensor | None
    ) -> Tensors:
        x, channel_gate, statistics, marks = ctx.saved_tensors
        no_slots = (None,) * ctx.slots
        if grad_y is None:
            grads: list[Tensor | None] = [None, None]
            if grad_statistics is not None:
                grads = reference_backward(
                    lambda x, gate: reference.statistics(x, gate, ctx.ties), [x, channel_gate], grad_statistics
                )
            return None, *grads, None, None, *no_slots
        if grad_statistics is None:
            grad_statistics = torch.zeros_like(statistics)
        share = TIES.index(ctx.ties)
        found = (grad_statistics, statistics, marks)
        if not ctx.slots:
            grad_x = None
            if ctx.needs_input_grad[1]:
                grad_x = operators.GRAD_X.on[ctx.backend](
                    grad_y, x, None, spatial_gate, *found, None, None, None, int(ctx.skip), share
                )
            return None, grad_x, None, None, None
        grad_gate = None
        if ctx.needs_input_grad[2]:
            grad_gate = operators.GRAD_CHANNEL_GATE.on[ctx.backend](
                grad_y, x, channel_gate, spatial_gate, *found, share
            )
        return None, None, grad_gate, None, None, grad_y, channel_gate, spatial_gate, *found


class ScaleFunction(torch.autograd.Function):
    """The last pass, from x and its gates to y.

    It takes three slots of the pass before it: of grad_y, and of the gates where that pass does not have them itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        x: Tensor,
        channel_gate: Tensor | None,
        spatial_gate: Tensor | None,
        merge: str,
        skip: bool,
        *slots: Tensor | None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.merge, ctx.skip = backend, merge, skip
        ctx.has_slots = [slot is not None for slot in slots]
        ctx.save_for_backward(x, channel_gate, spatial_gate)
        return operators.SCALE.on[backend](x, channel_gate, spatial_gate, MERGES.index(merge), int(skip))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None) -> Tensors:
        if grad_y is None:
            return (None,) * len(ctx.needs_input_grad)
        x, *gates = ctx.saved_tensors
        if differentiates_formula(grad_y):
            grads = reference_backward(
                lambda *tensors: reference.scaled(*tensors, ctx.merge, ctx.skip), [x, *gates], grad_y
            )
            return None, *grads, None, None, None, None, None
        # The pass that has a gate itself gives the gate's whole gradient.
        _, has_channel, has_spatial = ctx.has_slots
        wanted = ctx.needs_input_grad[2] and has_channel, ctx.needs_input_grad[3] and has_spatial
        grads = [None, None]
        if needs := needs_bits(wanted):
            found = operators.GRAD_GATES.on[ctx.backend](grad_y, x, *gates, MERGES.index(ctx.merge), needs)
            grads = [grad if want else None for grad, want in zip(found, wanted, strict=True)]
        sent = (grad_y, *gates)
        return None, None, *grads, None, None, *(s if has else None for s, has in zip(sent, ctx.has_slots, strict=True))


class ProjectFunction(torch.autograd.Function):
    """scse's first pass, from x to the spatial gate [N, H, W], and its slots: those of grad_y and that gate. Where
    there is a channel gate, to the means [N, 1, C] as well, and its slot."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, x: Tensor, weight: Tensor, bias: Tensor | None, pools: int, merge: str
    ) -> Tensors:
        pooled, _, gate = operators.POOL.on[backend](x, weight, bias, pools)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.merge = backend, merge
        ctx.save_for_backward(x, weight, bias)
        samples, channels, height, width = x.shape
        slots = _map_slot(x), _slot(x, samples, height, width)
        if pools == operators.NO_POOLS:
            return gate, *slots
        if not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(pooled)  # which depends on x alone
        return gate, *slots, pooled, _slot(x, samples, channels)

    @staticmethod
    def backward(
        ctx: Any,
        grad_gate: Tensor | None,
        grad_y: Tensor | None,
        gate: Tensor | None,
        grad_pooled: Tensor | None = None,
        channel_gate: Tensor | None = None,
    ) -> Tensors:
        x, weight, bias = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[1:4]
        if grad_y is None:
            return None, *_projection_by_formula(x, weight, bias, grad_pooled, grad_gate), None, None
        if grad_gate is None:
            grad_gate = torch.zeros_like(gate)
        grad_bias = _through_sigmoid(grad_gate, gate).sum().to(bias.dtype).view(1) if wants_bias else None
        grads = [None, None]
        if needs := needs_bits((wants_x, wants_weight)):
            grads = operators.GRAD_CONCURRENT.on[ctx.backend](
                grad_y, x, channel_gate, gate, None if grad_pooled is None else grad_pooled[:, 0], grad_gate, weight,
                MERGES.index(ctx.merge), needs,
            )  # fmt: skip
        return None, grads[0] if wants_x else None, grads[1] if wants_weight else None, grad_bias, None, None


def _projection_by_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_pooled: Tensor | None, grad_gate: Tensor | None
) -> list[Tensor | None]:
    grads: list[Tensor | None] = [None, None, None]
    if grad_gate is not None:
        grads = reference_backward(
            lambda x, weight, bias: reference.projected(x, weight, bias).sigmoid(), [x, weight, bias], grad_gate
        )
    if grad_pooled is not None:
        (grad,) = reference_backward(lambda x: reference.pooled(x, ("avg",), "first"), [x], grad_pooled)
        grads[0] = grad if grads[0] is None else grads[0] if grad is None else grads[0] + grad
    return grads


class LayersFunction(torch.autograd.Function):
    """The fully connected layers of the channel gate, `reference.channel_gate`."""

    @staticmethod
    def forward(ctx: Any, backend: str, pooled: Tensor, *layers: Tensor | None) -> Tensor:
        gate, hidden = operators.LAYERS.on[backend](pooled, *layers)
        ctx.backend = backend
        ctx.save_for_backward(pooled, gate, hidden, *layers)
        return gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensors:
        pooled, gate, hidden, *layers = ctx.saved_tensors
        if differentiates_formula(grad):
            return None, *reference_backward(reference.channel_gate, [pooled, *layers], grad)
        wanted = ctx.needs_input_grad[1:]
        reduce_weight, _, expand_weight, _ = layers
        grads = operators.LAYERS_BACKWARD.on[ctx.backend](
            grad, pooled, gate, hidden, reduce_weight, expand_weight, needs_bits(wanted)
        )
        return None, *(one if want else None for one, want in zip(grads, wanted, strict=True))


class ConvolutionFunction(torch.autograd.Function):
    """The convolution of the statistics, `reference.convolved`, or with `gated` the gate by it."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, statistics: Tensor, weight: Tensor, bias: Tensor | None, mean_first: bool, gated: bool
    ) -> Tensor:
        result = operators.CONVOLUTION.on[backend](statistics, weight, bias, int(mean_first), int(gated))
        ctx.backend, ctx.mean_first, ctx.gated = backend, mean_first, gated
        ctx.save_for_backward(statistics, weight, bias, result if gated else None)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensors:
        statistics, weight, bias, gate = ctx.saved_tensors
        wants_statistics, wants_weight, wants_bias = ctx.needs_input_grad[1:4]
        if differentiates_formula(grad):

            def formula(statistics: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                logits = reference.convolved(statistics, weight, bias, ctx.mean_first)
                return logits.sigmoid() if ctx.gated else logits

            return None, *reference_backward(formula, [statistics, weight, bias], grad), None, None
        grads = [None, None]
        if needs := needs_bits((wants_statistics, wants_weight)):
            grads = operators.CONVOLUTION_BACKWARD.on[ctx.backend](
                grad, statistics, weight, gate, int(ctx.mean_first), needs
            )
        grad_bias = None
        if wants_bias:
            grad_bias = _through_sigmoid(grad, gate).sum().to(bias.dtype).view(1)
        return None, grads[0] if wants_statistics else None, grads[1] if wants_weight else None, grad_bias, None, None


def _through_sigmoid(grad: Tensor, gate: Tensor | None) -> Tensor:
    """The gradient of logits, from that of their sigmoid `gate`, or of themselves."""
    return grad if gate is None else torch.ops.aten.sigmoid_backward(grad, gate)
