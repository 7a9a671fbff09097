"""Random calls of the ops: sizes and options as the op's file of cases draws them, feature maps of any strides."""

from __future__ import annotations

import random

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from attnkernels import testing

# What hypothesis draws from, in place of the generator of Python: so it finds the smallest call that fails.
NUMBERS = st.randoms(use_true_random=False)


class DrawnMaker(testing.Maker):
    """Feature maps that are contiguous, channels_last, sliced, transposed, offset or, not `distinct`, expanded."""

    def __init__(self, draw: random.Random, dtype: torch.dtype, device: str, distinct: bool):
        super().__init__(dtype, device, "contiguous", draw.randint(0, 2**31))
        self._draw = draw
        self._kinds = ["contiguous", "channels_last", "sliced", "transposed", "offset"]
        if not distinct:
            self._kinds.append("expanded")

    def feature_map(self, *shape: int, **distribution: float) -> Tensor:
        samples, channels, height, width = shape
        kind = self._draw.choice(self._kinds)
        if kind == "channels_last":
            return self.normal(*shape, **distribution).contiguous(memory_format=torch.channels_last)
        if kind == "sliced":
            return self.normal(samples, channels + 2, height, width + 3, **distribution)[:, 1:-1, :, 2:-1]
        if kind == "transposed":
            return self.normal(samples, channels, width, height, **distribution).transpose(2, 3)
        if kind == "expanded":
            return self.normal(samples, channels, 1, width, **distribution).expand(shape)
        if kind == "offset":  # contiguous, but not aligned to a vector
            return self.normal(samples * channels * height * width + 1, **distribution)[1:].view(shape)
        return self.normal(*shape, **distribution)


def call(op: str, draw: random.Random, backend: str, device: str) -> tuple[testing.OpCase, torch.dtype]:
    """A case that makes the call that was drawn, whatever it is asked for; and the call's dtype."""
    of_op = testing.RANDOM[op]
    dtype = draw.choice(of_op.dtypes)
    case = of_op.draw(draw, of_op.largest // 3 if backend == "emulated" else of_op.largest)
    arguments = case.arguments(DrawnMaker(draw, dtype, device, of_op.distinct))
    shown = testing.map_tensors(arguments, lambda x: f"{x.dtype} {list(x.shape)} strides {list(x.stride())}")
    hypothesis.note(f"{op}: {shown}")
    return testing.OpCase(op, case.name, lambda _: arguments, case.small, case.through_output, case.products), dtype
