"""The records of cbam and scse: the order of their passes, and what else the library knows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._autocast import parameters_as_map, without_autocast
from .._autograd import distinct, needs_grad
from .._op import Op
from . import operators, reference
from .checks import check_cbam, check_scse
from .functions import (
    ConvolutionFunction,
    LayersFunction,
    PoolFunction,
    ProjectFunction,
    ScaleFunction,
    StatisticsFunction,
)
from .operators import MERGES

# Beyond it float32, in which the kernels number pixels and channels, does not hold all numbers.
_MOST_NUMBERED = 1 << 24


class _NeedsFormulaError(Exception):
    """A call that kernels do not take."""


class _GateOp(Op):
    """An op that checks its arguments before it runs: an error after that may be of a callable, which was called."""

    def only_formula(self, inputs: tuple, options: tuple) -> str:
        _, channels, height, width = inputs[0].shape
        if not channels * height * width:
            return "where x has no channels or pixels"
        if max(channels, height * width) > _MOST_NUMBERED:
            return f"where x has more than {_MOST_NUMBERED} channels or pixels"
        if inputs[1] is not None and not inputs[1].numel():
            return "where reduce_weight is empty"
        return super().only_formula(inputs, options)

    def run(self, backend: str, inputs: tuple, options: tuple) -> Tensor:
        self.check(*inputs, *options)  # layers of the wrong shape may multiply too
        if self.only_formula(inputs, options):
            raise _NeedsFormulaError
        return self.passes(backend, inputs, options)

    def passes(self, backend: str, inputs: tuple, options: tuple) -> Tensor:
        raise NotImplementedError


def _pools(pool_types: Sequence[str], ties: str, recorded: bool) -> int:
    if "max" not in pool_types:
        return operators.MEANS
    if not recorded:
        return operators.MEANS_AND_UNMARKED_MAXIMA
    return operators.MEANS_AND_SHARED_MAXIMA if ties == "share" else operators.MEANS_AND_MAXIMA


def _all_pools(x: Tensor, pooled: Tensor, pool_types: Sequence[str]) -> Tensor:
    """[N, K, C], from what the kernels have pooled: the means and perhaps the maxima."""
    if "avg" not in pool_types:
        pooled = pooled[:, 1:]
    others = [name for name in pool_types if name not in ("avg", "max")]
    if not others:
        return pooled
    with without_autocast(x):
        return torch.cat([pooled, reference.pooled(x, others, "first")], 1)


class _Cbam(_GateOp):
    def passes(self, backend: str, inputs: tuple, options: tuple) -> Tensor:
        x, *layers, spatial_weight, spatial_bias = inputs
        pool_types, spatial_order, spatial_norm, ties, skip = options
        recorded = torch.is_grad_enabled() and (spatial_norm is not None or needs_grad(*inputs))
        pools = _pools(pool_types, ties, recorded)
        by_channel = by_pixel = None
        slots: tuple[Tensor | None, ...] = ()
        if recorded:
            (x,) = distinct(x)
        if layers[2] is not None:
            if recorded:
                pooled, *slots = PoolFunction.apply(backend, x, pools, ties, skip, spatial_weight is not None)
            else:
                pooled, _, _ = operators.POOL.on[backend](x, None, None, pools)
            by_channel = _channel_gate(backend, _all_pools(x, pooled, pool_types), layers)
        if spatial_weight is not None:
            if recorded:
                found, grad_y, grad_gate = StatisticsFunction.apply(backend, x, by_channel, ties, skip, *slots)
                slots = (grad_y, None, grad_gate)
            else:
                found, _ = operators.STATISTICS.on[backend](x, by_channel, operators.UNMARKED)

            by_pixel = _spatial_gate(backend, found, spatial_weight, spatial_bias, spatial_order, spatial_norm, x.dtype)
        elif recorded:
            slots = (*slots[:2], None)
        return _scaled(backend, x, by_channel, by_pixel, "product", skip, slots)


def _channel_gate(backend: str, pooled: Tensor, layers: Sequence[Tensor | None]) -> Tensor:
    if needs_grad(pooled, *layers):
        return LayersFunction.apply(backend, pooled, *layers)
    return operators.LAYERS.on[backend](pooled, *layers)[0]


def _spatial_gate(
    backend: str,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Sequence[str],
    norm: Callable[[Tensor], Tensor] | None,
    dtype: torch.dtype,
) -> Tensor:
    mean_first, gated = order[0] == "mean", norm is None
    if needs_grad(statistics, weight, bias):
        found = ConvolutionFunction.apply(backend, statistics, weight, bias, mean_first, gated)
    else:
        found = operators.CONVOLUTION.on[backend](statistics, weight, bias, int(mean_first), int(gated))
    return found if gated else reference.normalised(found, norm, dtype).sigmoid()


def _scaled(
    backend: str,
    x: Tensor,
    channel_gate: Tensor | None,
    spatial_gate: Tensor | None,
    merge: str,
    skip: bool,
    slots: tuple[Tensor | None, ...],
) -> Tensor:
    if slots:
        return ScaleFunction.apply(backend, x, channel_gate, spatial_gate, merge, skip, *slots)
    return operators.SCALE.on[backend](x, channel_gate, spatial_gate, MERGES.index(merge), int(skip))


class _Scse(_GateOp):
    def passes(self, backend: str, inputs: tuple, options: tuple) -> Tensor:
        x, *layers, weight, bias = inputs
        (merge,) = options
        weight = weight.flatten()
        pools = operators.NO_POOLS if layers[2] is None else operators.MEANS
        slots: tuple[Tensor | None, ...] = ()
        by_channel = pooled = None
        if needs_grad(*inputs):
            by_pixel, grad_y, grad_gate, *others = ProjectFunction.apply(
                backend, *distinct(x, weight, bias), pools, merge
            )
            pooled, grad_channel_gate = others or (None, None)
            slots = grad_y, grad_channel_gate, grad_gate
        else:
            pooled, _, by_pixel = operators.POOL.on[backend](x, weight, bias, pools)
        if layers[2] is not None:
            by_channel = _channel_gate(backend, pooled, layers)
        return _scaled(backend, x, by_channel, by_pixel, merge, False, slots)


def _layers(device: str, channels: int) -> tuple[Any, ...]:
    return torch.zeros(2, channels, device=device), None, torch.zeros(channels, 2, device=device), None


def _example_cbam(device: str) -> tuple[tuple, dict]:
    return (torch.zeros(1, 8, 4, 4, device=device), *_layers(device, 8), torch.zeros(1, 2, 3, 3, device=device)), {}


def _example_scse(device: str) -> tuple[tuple, dict]:
    return (torch.zeros(1, 8, 4, 4, device=device), *_layers(device, 8), torch.zeros(8, device=device), None), {}


_LAYERS = ("reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "spatial_weight", "spatial_bias")
_WHEN_COMPILED = "torch.compile fuses the plain formula into its neighbours"

CBAM = _Cbam(
    name="cbam",
    inputs=("x", *_LAYERS),
    options=("pool_types", "spatial_order", "spatial_norm", "ties", "skip"),
    formula=reference.attended,
    check=check_cbam,
    autocast=parameters_as_map(slice(1, 7)),
    when_compiled=_WHEN_COMPILED,
    refusals=(_NeedsFormulaError,),
    example=_example_cbam,
)
SCSE = _Scse(
    name="scse",
    inputs=("x", *_LAYERS),
    options=("merge",),
    formula=reference.excited,
    check=check_scse,
    autocast=parameters_as_map(slice(1, 7)),
    when_compiled=_WHEN_COMPILED,
    refusals=(_NeedsFormulaError,),
    example=_example_scse,
)
