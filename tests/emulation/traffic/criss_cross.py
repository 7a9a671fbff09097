"""Traffic of criss_cross: the fused attention and the official two operators, forward and backward.

The kernels see channels_last maps only; contiguous ones are copied before and after (csrc/layout), which is not counted
here.

A block owns a tile of 64 pixels of a line (rows) and walks over the tiles of the same line (columns), so that a line of
t tiles is read t times; the two axes make one pass each. `tests/test_budgets.py` has the factors that follow: with
S = the tiles of a row + those of a column, and V = the tiles of value channels that a block each has (of 64 in float32,
128 in bfloat16), whose blocks repeat the products of query and key, the attention reads query and key V S times and
value S times. A row of 72 pixels has two tiles, a column of two pixels one: S = 3 here, as on any map of up to 128 x 64.
On a GPU the repeats come from the L2 cache, which holds the maps of a sample.

The attention in 16 bits takes a block to a whole line of up to 128 pixels instead. The forward reads it once for every
128 or 256 value channels: twice here, in the column pass and the row pass. The backward reads values and grad_out once a
pass, queries and keys twice, for the energies and for their gradients.

Maps are read 16 bytes at a time. Results leave the registers of a matrix product as these lie there: 4 bytes at a time,
of a pixel a sector in float32, half of one in 16 bits. Rows of an affinity have H + W - 1 entries and are not aligned:
single entries, in parts of sectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import attnkernels
from tools.budgets.traffic import TrafficCase

SAMPLES, HEIGHT, WIDTH = 1, 2, 72
# 64 channels are one step of a product in bfloat16 and two in float32: every lane of a warp loads, or none. Where some
# skip a load, the emulation takes their next one for part of it, which may be of another map.
QUERY_CHANNELS, VALUE_CHANNELS = 64, 128

# Name: the op's inputs and their channels; the result.
OPS = {
    "attention": ({"query": QUERY_CHANNELS, "key": QUERY_CHANNELS, "value": VALUE_CHANNELS}, "out"),
    "affinity": ({"query": QUERY_CHANNELS, "key": QUERY_CHANNELS}, "affinity"),
    "aggregate": ({"affinity": HEIGHT + WIDTH - 1, "value": VALUE_CHANNELS}, "out"),
}


def _cases(name: str, dtype: torch.dtype) -> list[TrafficCase]:
    channels, result = OPS[name]
    op: Callable[..., Tensor] = getattr(attnkernels, f"criss_cross_{name}")
    generator = torch.Generator().manual_seed(0)

    def feature_map(count: int) -> Tensor:
        values = torch.randn(SAMPLES, count, HEIGHT, WIDTH, generator=generator).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def inputs() -> tuple[dict[str, Tensor]]:
        return ({name: feature_map(count).requires_grad_() for name, count in channels.items()},)

    def forward(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**inputs, result: op(*inputs.values(), backend="emulated")}

    def forward_and_gradient() -> tuple[dict[str, Tensor], Tensor, Tensor]:
        (values,) = inputs()
        output = forward(values)[result]
        return values, output, feature_map(output.shape[1])

    def backward(inputs: dict[str, Tensor], output: Tensor, grad: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(output, list(inputs.values()), grad)
        named = {f"grad_{name}": value for name, value in zip(inputs, grads, strict=True)}
        return {**inputs, **named, result: output, f"grad_{result}": grad}

    kind = str(dtype).removeprefix("torch.")
    return [
        TrafficCase(f"{name}, forward", kind, forward, prepare=inputs),
        TrafficCase(f"{name}, backward", kind, backward, prepare=forward_and_gradient),
    ]


CASES = [case for name in OPS for dtype in (torch.float32, torch.bfloat16) for case in _cases(name, dtype)]
