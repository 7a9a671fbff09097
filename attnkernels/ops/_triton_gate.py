"""The launches that every channel gate makes over its map on Triton; what lies between them is the op's own.

Forward: `sums` (x read once) and `scale` (x read again, mostly from the L2 cache). Backward: `sums` of dz x, and
`input_grads`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _triton_gate_kernels as kernels
from ._layout import empty
from ._registry import accumulation_dtype
from ._triton import Launch, aligned, multiple, tile, wide


class GateCall(NamedTuple):
    """What fixes the launches over the map, which includes all that Triton specialises them on (see `Launch`)."""

    samples: int
    channels: int
    pixels: int
    channels_last: bool
    dtype: torch.dtype
    device: int | None
    given: tuple[bool, ...]  # which of the optional tensors there are
    gate: int
    output_activation: int
    aligned: bool

    @classmethod
    def of(
        cls, x: Tensor, layout: torch.memory_format, gate: int, output_activation: int, *others: Tensor | None
    ) -> GateCall:
        """The call on x, dense in that layout; `others` are all other tensors that its kernels read."""
        samples, channels, height, width = x.shape
        return cls(
            samples, channels, height * width, layout is not torch.contiguous_format, x.dtype, x.device.index,
            tuple(tensor is not None for tensor in others), gate, output_activation, aligned(x, *others),
        )  # fmt: skip


def contiguous(tensor: Tensor | None, layout: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    """An optional tensor in that layout."""
    return None if tensor is None else tensor.contiguous(memory_format=layout)


class Passes:
    """The launches over the map in one direction of a call, kept in the plan of that call.

    Attributes:
        grid: programs of a pass.
        chunks: of the pixels, each with its own partial sum.
        steps: tiles in a chunk.
        block_channels: channels of a program.
    """

    def __init__(self, call: GateCall) -> None:
        tiling = tile(call.samples, call.channels, call.pixels, call.channels_last)
        self.grid = (call.samples * tiling.channel_tiles, tiling.chunks)
        self.chunks, self.steps, self.block_channels = tiling.chunks, tiling.steps, tiling.block_channels
        self._call = call
        self._shape = (call.samples, call.channels, call.pixels)
        self._constants = {
            "CHANNEL_MULTIPLE": multiple(call.channels),
            "PIXEL_MULTIPLE": multiple(call.pixels),
            "CHANNELS_LAST": call.channels_last,
            "WIDE": wide(call.channels, call.pixels),
            "BLOCK_CHANNELS": tiling.block_channels,
            "BLOCK_PIXELS": tiling.block_pixels,
        }
        self._sums = self._launch(kernels.gate_sums)
        self._scale = self.scaling(kernels.gate_scale)
        self._input_grads = self._launch(kernels.gate_input_grads)

    def _launch(self, kernel: Any, **constants: Any) -> Launch:
        return Launch(kernel, self.grid, keep=self._call.aligned, **self._constants, **constants)

    def scaling(self, kernel: Any, **constants: Any) -> Launch:
        """The launch of a kernel that ends in `scale_chunk`, with the constants of its own."""
        return self._launch(kernel, OUTPUT_RELU=bool(self._call.output_activation), **constants)

    def sums(self, x: Tensor, grad_y: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Sums over the pixels of x or, where grad_y is given, of dz x: [chunks, N, C], for `sum_of_chunks`."""
        shape = (self.chunks, self._call.samples, self._call.channels)
        sums = x.new_empty(shape, dtype=accumulation_dtype(x.dtype))
        self._sums(x, grad_y, y, sums, *self._shape, self.steps)
        return sums

    def scale(self, x: Tensor, residual: Tensor | None, y: Tensor, saved: Tensor) -> None:
        """Write y, by the gates that `saved` ends in."""
        self._scale(x, residual, y, saved, *self._shape, saved.shape[1], self.steps)

    def input_grads(
        self, x: Tensor, grad_y: Tensor, y: Tensor | None, saved: Tensor, grads: Tensor | None, needs: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the residual; [0] where `needs` does not ask for them.

        Args:
            x, grad_y, y: the maps; y where there is an output activation.
            saved: ends in the gates.
            grads: begins with the gradients of the means, where that of x is needed.
            needs: whether the gradient of x is needed, and whether that of the residual.
        """
        grad_x, grad_residual = (empty(x.shape, x, x, wanted) for wanted in needs)
        if any(needs):
            self._input_grads(
                grad_y, y, saved, grads, grad_x if needs[0] else None, grad_residual if needs[1] else None,
                *self._shape, saved.shape[1], 0 if grads is None else grads.shape[1], self.steps,
            )  # fmt: skip
        return grad_x, grad_residual
