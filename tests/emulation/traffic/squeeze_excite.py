"""Traffic of squeeze_excite: both paths and layouts, forward and backward, planes that end on 128-bit boundaries."""

from __future__ import annotations

import torch

import attnkernels
from tools.budgets.traffic import TrafficCase

# Few multiprocessors: blocks of the size that a large batch has on an H100.
PATHS = {
    "two passes": {"major": 8, "minor": 0, "multiprocessors": 4},
    "single pass": {"multiprocessors": 16},
}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# One pass is taken where each block of a cluster has a cache line of every pixel, in channels_last alone.
SHAPES = {"two passes": (2, 64, 16, 16), "single pass": (2, 512, 12, 12)}
HIDDEN = 8


def _case(path: str, layout: str, dtype: torch.dtype) -> TrafficCase:
    def call() -> dict:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        shape = SHAPES[path]
        channels = shape[1]
        x = normal(*shape).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        weights = (normal(HIDDEN, channels), normal(HIDDEN), normal(channels, HIDDEN), normal(channels))
        y = attnkernels.squeeze_excite(x, *weights, backend="emulated")
        grad_y = normal(*shape).contiguous(memory_format=LAYOUTS[layout])
        (grad_x,) = torch.autograd.grad(y, x, grad_y)
        return {"x": x.detach(), "y": y.detach(), "grad_y": grad_y, "grad_x": grad_x}

    name = f"{path}, {layout}"
    return TrafficCase(name, str(dtype).removeprefix("torch."), call, PATHS[path])


CASES = [
    _case(path, layout, dtype)
    for path in PATHS
    for layout in LAYOUTS
    for dtype in (torch.float32, torch.bfloat16)
    if path == "two passes" or layout == "NHWC"
]
