"""Traffic of squeeze_excite: both layouts, forward and backward, planes that end on 128-bit boundaries."""

from __future__ import annotations

import torch

import attnkernels
from tools.budgets.traffic import TrafficCase

# Few multiprocessors: blocks of the size that a large batch has.
PATHS = {
    "plain launches": {"major": 8, "minor": 0, "multiprocessors": 4},
    "overlapped launches": {"multiprocessors": 4},
}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SHAPE, HIDDEN = (2, 64, 16, 16), 8


def _case(path: str, layout: str, dtype: torch.dtype) -> TrafficCase:
    def call() -> dict:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        channels = SHAPE[1]
        x = normal(*SHAPE).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        weights = (normal(HIDDEN, channels), normal(HIDDEN), normal(channels, HIDDEN), normal(channels))
        y = attnkernels.squeeze_excite(x, *weights, backend="emulated")
        grad_y = normal(*SHAPE).contiguous(memory_format=LAYOUTS[layout])
        (grad_x,) = torch.autograd.grad(y, x, grad_y)
        return {"x": x.detach(), "y": y.detach(), "grad_y": grad_y, "grad_x": grad_x}

    name = f"{path}, {layout}"
    return TrafficCase(name, str(dtype).removeprefix("torch."), call, PATHS[path])


CASES = [
    _case(path, layout, dtype) for path in PATHS for layout in LAYOUTS for dtype in (torch.float32, torch.bfloat16)
]
