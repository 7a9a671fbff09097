"""Operator schemas, shape functions and the autograd Functions of the criss-cross operators.

Layouts. The affinity operators work in the layout of `query`, the aggregate and attention operators in that of `value`
(channels_last or channels_last_3d where it is dense in that order and not contiguous, contiguous otherwise). Every
result has that layout; `log_sum_exp` is contiguous. Inputs may have any strides: a backend copies those it cannot read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._autograd import differentiates_formula, distinct, needs_grad, reference_backward
from .._registry import accumulation_dtype, define, overload
from . import reference

# Bits of `needs` in the backward operators; a result that is not asked for is empty, [0].
# csrc/criss_cross/criss_cross.h has the same.
NEEDS_QUERY, NEEDS_KEY, NEEDS_VALUE = 1, 2, 4  # affinity_backward: query, key; attention_backward: all three
NEEDS_AFFINITY = 1  # aggregate_backward: affinity, value

_TRITON = "attnkernels.ops.criss_cross.triton_impl"


def _memory_format(like: Tensor) -> torch.memory_format:
    channels_last = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
    if not like.is_contiguous() and like.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format


def _empty(shape, like: Tensor, layout: Tensor, wanted: int = 1) -> Tensor:
    """An empty tensor with `like`'s dtype and device in the memory format of `layout`; [0] where it is not wanted."""
    if not wanted:
        return like.new_empty(0)
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=_memory_format(layout))


def _affinity_fake(query, key):
    samples, _, height, width = query.shape
    return _empty((samples, height + width - 1, height, width), query, query)


def _affinity_backward_fake(grad_affinity, query, key, needs):
    return (
        _empty(query.shape, query, query, needs & NEEDS_QUERY),
        _empty(key.shape, query, query, needs & NEEDS_KEY),
    )


def _aggregate_fake(affinity, value):
    return _empty(value.shape, value, value)


def _aggregate_backward_fake(grad_out, affinity, value, needs):
    return (
        _empty(affinity.shape, value, value, needs & NEEDS_AFFINITY),
        _empty(value.shape, value, value, needs & NEEDS_VALUE),
    )


def _attention_fake(query, key, value):
    pixels = (value.shape[0], *value.shape[2:])
    return _empty(value.shape, value, value), value.new_empty(pixels, dtype=accumulation_dtype(value.dtype))


def _attention_backward_fake(grad_out, query, key, value, out, log_sum_exp, needs):
    return (
        _empty(query.shape, value, value, needs & NEEDS_QUERY),
        _empty(key.shape, value, value, needs & NEEDS_KEY),
        _empty(value.shape, value, value, needs & NEEDS_VALUE),
    )


def _define(name: str, schema: str, fake) -> None:
    define(name, schema, fake, f"{_TRITON}:{name}")


# query, key [N, Cq, H, W] -> [N, H + W - 1, H, W]
_define("criss_cross_affinity", "(Tensor query, Tensor key) -> Tensor", _affinity_fake)
_define(
    "criss_cross_affinity_backward",
    "(Tensor grad_affinity, Tensor query, Tensor key, int needs) -> (Tensor grad_query, Tensor grad_key)",
    _affinity_backward_fake,
)

# affinity [N, H + W - 1, H, W], value [N, C, H, W] -> [N, C, H, W]
_define("criss_cross_aggregate", "(Tensor affinity, Tensor value) -> Tensor", _aggregate_fake)
_define(
    "criss_cross_aggregate_backward",
    "(Tensor grad_out, Tensor affinity, Tensor value, int needs) -> (Tensor grad_affinity, Tensor grad_value)",
    _aggregate_backward_fake,
)

# query, key [N, Cq, H, W], value [N, C, H, W], or all three [N, ., D, H, W];
# log_sum_exp [N, H, W] or [N, D, H, W] of the energies, in the accumulation dtype
_define(
    "criss_cross_attention",
    "(Tensor query, Tensor key, Tensor value) -> (Tensor out, Tensor log_sum_exp)",
    _attention_fake,
)
_define(
    "criss_cross_attention_backward",
    "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sum_exp, int needs)"
    " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    _attention_backward_fake,
)


def _needs(wanted) -> int:
    """`needs` from the leading entries of `ctx.needs_input_grad`: bit i for input i."""
    return sum(1 << i for i, want in enumerate(wanted) if want)


def _wanted(grads, needs: int) -> list[Tensor | None]:
    return [grad if needs >> i & 1 else None for i, grad in enumerate(grads)]


class AffinityFunction(torch.autograd.Function):
    """Saves query and key."""

    @staticmethod
    def forward(ctx, query, key, backend):
        ctx.backend = backend
        ctx.save_for_backward(query, key)
        return overload(backend, "criss_cross_affinity")(query, key)

    @staticmethod
    def backward(ctx, grad_affinity):
        if differentiates_formula(grad_affinity):
            return *reference_backward(reference.affinities, ctx.saved_tensors, grad_affinity), None
        needs = _needs(ctx.needs_input_grad[:2])
        grads = overload(ctx.backend, "criss_cross_affinity_backward")(grad_affinity, *ctx.saved_tensors, needs)
        return *_wanted(grads, needs), None


class AggregateFunction(torch.autograd.Function):
    """Saves affinity and value."""

    @staticmethod
    def forward(ctx, affinity, value, backend):
        ctx.backend = backend
        ctx.save_for_backward(affinity, value)
        return overload(backend, "criss_cross_aggregate")(affinity, value)

    @staticmethod
    def backward(ctx, grad_out):
        if differentiates_formula(grad_out):
            return *reference_backward(reference.aggregated, ctx.saved_tensors, grad_out), None
        wants_affinity, wants_value = ctx.needs_input_grad[:2]
        needs = NEEDS_AFFINITY * wants_affinity | NEEDS_VALUE * wants_value
        grad_affinity, grad_value = overload(ctx.backend, "criss_cross_aggregate_backward")(
            grad_out, *ctx.saved_tensors, needs
        )
        return grad_affinity if wants_affinity else None, grad_value if wants_value else None, None


class AttentionFunction(torch.autograd.Function):
    """Saves query, key, value, out and the log-sum-exp of each pixel's energies; the backward recomputes the rest."""

    @staticmethod
    def forward(ctx, query, key, value, backend):
        out, log_sum_exp = overload(backend, "criss_cross_attention")(query, key, value)
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        if grad_out is None:
            return (None,) * 4
        query, key, value, out, log_sum_exp = ctx.saved_tensors
        if differentiates_formula(grad_out):
            return *reference_backward(reference.attended, (query, key, value), grad_out), None
        needs = _needs(ctx.needs_input_grad[:3])
        grads = overload(ctx.backend, "criss_cross_attention_backward")(
            grad_out, query, key, value, out, log_sum_exp, needs
        )
        return *_wanted(grads, needs), None


def run_affinity(backend: str, query: Tensor, key: Tensor) -> Tensor:
    """criss_cross_affinity on a backend of kernels, recorded where autograd wants it; so the two below."""
    if needs_grad(query, key):
        return AffinityFunction.apply(*distinct(query, key), backend)
    return overload(backend, "criss_cross_affinity")(query, key)


def run_aggregate(backend: str, affinity: Tensor, value: Tensor) -> Tensor:
    if needs_grad(affinity, value):
        return AggregateFunction.apply(*distinct(affinity, value), backend)
    return overload(backend, "criss_cross_aggregate")(affinity, value)


def run_attention(backend: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if needs_grad(query, key, value):
        return AttentionFunction.apply(*distinct(query, key, value), backend)
    return overload(backend, "criss_cross_attention")(query, key, value)[0]
