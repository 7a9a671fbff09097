"""The operators of cbam and scse by autograd of the plain formulas, in float64, and calls of each on random tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from attnkernels.ops.channel_spatial import reference
from attnkernels.ops.channel_spatial.operators import MERGES, TIES, UNMARKED

POOLS = ("avg", "max")


def gradients(output: Tensor, inputs: list[Tensor | None], grad: Tensor | None) -> list[Tensor | None]:
    wanted = [x for x in inputs if x is not None]
    if grad is None:
        return [None if x is None else torch.zeros_like(x) for x in inputs]
    grads = iter(torch.autograd.grad(output, wanted, grad, allow_unused=True))
    found = [None if x is None else next(grads) for x in inputs]
    return [torch.zeros_like(x) if g is None and x is not None else g for x, g in zip(inputs, found, strict=True)]


def leaf(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double().requires_grad_()


def marks(z: Tensor, dim: int, share: int) -> Tensor:
    maximum = z.max(dim, keepdim=True)
    return ((z == maximum.values).sum(dim) if share else maximum.indices.squeeze(dim)).double()


def pool(x, spatial_weight, spatial_bias, pools):
    x = x.double()
    empty = x.new_empty(0)
    pooled = reference.pooled(x, POOLS, "first")[:, : min(pools, 2)]
    gate = empty
    if spatial_weight is not None:
        gate = reference.projected(x, spatial_weight.double(), _double(spatial_bias)).sigmoid()
    return pooled, marks(x.flatten(2), 2, pools == 3) if pools in (2, 3) else empty, gate


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def statistics(x, channel_gate, ties):
    z = x.double() if channel_gate is None else x.double() * channel_gate.double()[:, :, None, None]
    found = reference.statistics(x.double(), _double(channel_gate), "first")
    return found, z.new_empty(0) if ties == UNMARKED else marks(z, 1, ties)


def scale(x, channel_gate, spatial_gate, merge, skip):
    return reference.scaled(x.double(), _double(channel_gate), _double(spatial_gate), MERGES[merge], bool(skip))


def grad_gates(grad_y, x, channel_gate, spatial_gate, merge, needs):
    gates = [leaf(channel_gate), leaf(spatial_gate)]
    y = reference.scaled(x.double(), *gates, MERGES[merge], False)
    grads = gradients(y, gates, grad_y.double())
    return tuple(grad if needs >> i & 1 else y.new_empty(0) for i, grad in enumerate(grads))


def grad_channel_gate(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, share):
    gate = leaf(channel_gate)
    y = reference.scaled(x.double(), gate, spatial_gate.double(), "product", False)
    found = reference.statistics(x.double(), gate, TIES[share])
    return gradients(y, [gate], grad_y.double())[0] + gradients(found, [gate], grad_statistics.double())[0]


def grad_x(
    grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, grad_pooled, pooled, pool_marks, skip, share
):  # fmt: skip
    x, channel_gate, spatial_gate = leaf(x), _double(channel_gate), _double(spatial_gate)
    none = channel_gate is None and spatial_gate is None
    y = x * (1 + skip) if none else reference.scaled(x, channel_gate, spatial_gate, "product", bool(skip))
    grad = gradients(y, [x], grad_y.double())[0]
    if grad_statistics is not None:
        found = reference.statistics(x, channel_gate, TIES[share])
        grad = grad + gradients(found, [x], grad_statistics.double())[0]
    if grad_pooled is not None:
        found = reference.pooled(x, POOLS[: grad_pooled.shape[1]], TIES[share])
        grad = grad + gradients(found, [x], grad_pooled.double())[0]
    return grad


def grad_concurrent(grad_y, x, channel_gate, spatial_gate, grad_means, grad_spatial_gate, spatial_weight, merge, needs):
    x, weight = leaf(x), leaf(spatial_weight)
    y = reference.scaled(x, _double(channel_gate), spatial_gate.double(), MERGES[merge], False)
    grads = gradients(y, [x], grad_y.double())
    if grad_means is not None:
        grads[0] = grads[0] + gradients(reference.pooled(x, POOLS[:1], "first")[:, 0], [x], grad_means.double())[0]
    opened = spatial_gate.double()
    grad_logits = grad_spatial_gate.double() * opened * (1 - opened)
    through = gradients(reference.projected(x, weight, None), [x, weight], grad_logits)
    both = grads[0] + through[0], through[1]
    return tuple(grad if needs >> i & 1 else weight.new_empty(0) for i, grad in enumerate(both))


@dataclasses.dataclass(frozen=True)
class Call:
    """One way to call an operator: what it is given beside the map, by name, and the options."""

    name: str
    given: tuple[str, ...] = ()
    options: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.name, *(name.replace("channel", "c").replace("spatial", "s") for name in self.given),
                         *map(str, self.options)])  # fmt: skip


_BOTH = ("channel_gate", "spatial_gate")
_STATISTICS = ("grad_statistics", "statistics", "marks")
CALLS = [
    *(Call("pool", (), (pools,)) for pools in (1, 2, 3, 4)),
    *(Call("pool", ("spatial_weight", "spatial_bias"), (pools,)) for pools in (0, 1)),
    Call("pool", ("spatial_weight",), (3,)),
    *(Call("statistics", given, (ties,)) for given in ((), ("channel_gate",)) for ties in (0, 1, 2)),
    *(Call("scale", (gate,), (0, skip)) for gate in _BOTH for skip in (0, 1)),
    *(Call("scale", _BOTH, (merge, skip)) for merge in (0, 1, 2) for skip in (0, 1)),
    *(Call("grad_gates", (gate,), (0, needs)) for gate, needs in zip(_BOTH, (1, 2), strict=True)),
    *(Call("grad_gates", _BOTH, (0, needs)) for needs in (1, 2, 3)),
    *(Call("grad_gates", _BOTH, (merge, needs)) for merge in (1, 2) for needs in (1, 2, 3)),
    *(Call("grad_channel_gate", (*_BOTH, *_STATISTICS), (share,)) for share in (0, 1)),
    *(
        Call("grad_x", (*gates, *statistics, *pools), (skip, share))
        for gates, statistics, pools, skip, share in (
            (_BOTH, _STATISTICS, ("maxima",), 0, 0),
            (_BOTH, _STATISTICS, ("maxima",), 1, 1),
            (_BOTH, _STATISTICS, ("means",), 0, 0),
            (("spatial_gate",), _STATISTICS, (), 1, 0),
            (("spatial_gate",), _STATISTICS, (), 0, 1),
            (("channel_gate",), (), ("maxima",), 0, 1),
            (("channel_gate",), (), ("means",), 1, 0),
            (_BOTH, _STATISTICS, (), 0, 0),
        )
    ),
    *(Call("grad_concurrent", (*_BOTH, "grad_means"), (merge, needs)) for merge in (1, 2) for needs in (1, 2, 3)),
    Call("grad_concurrent", _BOTH, (2, 3)),
    Call("grad_concurrent", ("spatial_gate",), (1, 3)),
]


def arguments(call: Call, shape, dtype, layout, seed=0, ties=False) -> tuple[Any, ...]:
    """The operator's arguments: random numbers or, with `ties`, a map after a ReLU with few different values."""
    samples, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype is torch.float64 else torch.float32

    def normal(*sizes):
        return torch.randn(sizes, dtype=torch.float64, generator=generator)

    x = normal(*shape)
    if ties:
        x = (x * 2).round().relu()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = x.to(dtype).contiguous(memory_format=memory_format)
    grad_y = normal(*shape).to(dtype).contiguous(memory_format=memory_format)
    per_channel, per_pixel = (samples, channels), (samples, height, width)
    channel_gate, spatial_gate = normal(*per_channel).sigmoid().to(wide), normal(*per_pixel).sigmoid().to(wide)
    if ties:
        spatial_gate = torch.where(spatial_gate > 0.5, 0.5, spatial_gate)
        channel_gate = torch.where(channel_gate > 0.5, 0.5, channel_gate)
    share = call.options[-1] if call.name in ("grad_channel_gate", "grad_x") else 0
    found, marked = statistics(x, channel_gate if "channel_gate" in call.given else None, share)
    means = "means" in call.given
    pooled, pool_marks, _ = pool(x, None, None, 1 if means else 2 + share)
    tensors = {
        "channel_gate": channel_gate,
        "spatial_gate": spatial_gate,
        "spatial_weight": normal(channels).to(dtype),
        "spatial_bias": normal(1).to(dtype),
        "grad_statistics": normal(samples, 2, height, width).to(wide),
        "statistics": found.to(wide),
        "marks": marked.to(wide),
        "grad_means": normal(*per_channel).to(wide),
    }

    def optional(*names):
        return [tensors[name] if name in call.given else None for name in names]

    if call.name == "pool":
        return x, *optional("spatial_weight", "spatial_bias"), *call.options
    if call.name == "statistics":
        return x, *optional("channel_gate"), *call.options
    if call.name == "scale":
        return x, *optional(*_BOTH), *call.options
    if call.name == "grad_concurrent":
        logits = normal(*per_pixel).to(wide)
        return grad_y, x, *optional(*_BOTH, "grad_means"), logits, tensors["spatial_weight"], *call.options
    if call.name == "grad_gates":
        return grad_y, x, *optional(*_BOTH), *call.options
    if call.name == "grad_channel_gate":
        return grad_y, x, *optional(*_BOTH, *_STATISTICS), *call.options
    pools = [None, None, None]
    if means or "maxima" in call.given:
        pools = [normal(*pooled.shape).to(wide), pooled.to(wide), None if means else pool_marks.to(wide)]
    return grad_y, x, *optional(*_BOTH, *_STATISTICS), *pools, *call.options


def spread(value: Any) -> Any:
    """A tensor of the same numbers, none of which are adjacent in memory, between NaNs."""
    if not isinstance(value, Tensor) or not value.numel():
        return value
    wide = torch.full((*value.shape, 2), float("nan"), dtype=value.dtype, device=value.device)
    wide[..., 0] = value
    return wide[..., 0]
