"""Traffic of selective_kernel: both layouts, forward and backward, planes that end on 128-bit boundaries."""

from __future__ import annotations

import torch

import attnkernels
from tools.budgets.traffic import TrafficCase

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SHAPE = (2, 64, 16, 16)


def _attention(pooled: torch.Tensor) -> torch.Tensor:
    return torch.stack([pooled, -pooled], 1)


def _case(layout: str, dtype: torch.dtype) -> TrafficCase:
    def call() -> dict:
        generator = torch.Generator().manual_seed(0)

        def feature_map() -> torch.Tensor:
            return torch.randn(SHAPE, generator=generator).to(dtype).contiguous(memory_format=LAYOUTS[layout])

        branches = [feature_map().requires_grad_() for _ in range(2)]
        y = attnkernels.selective_kernel(branches, _attention, backend="emulated")
        grad_y = feature_map()
        grads = torch.autograd.grad(y, branches, grad_y)
        buffers = {f"branch {m}": branch.detach() for m, branch in enumerate(branches)}
        buffers |= {f"grad {m}": grad for m, grad in enumerate(grads)}
        return {**buffers, "y": y.detach(), "grad_y": grad_y}

    return TrafficCase(layout, str(dtype).removeprefix("torch."), call)


CASES = [_case(layout, dtype) for layout in LAYOUTS for dtype in (torch.float32, torch.bfloat16)]
