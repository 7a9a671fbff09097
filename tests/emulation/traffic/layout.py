"""Traffic of the copies into another layout, both ways, and where rows start at every alignment.

Everything is stored once, in vectors. Of rows that are misaligned in `from`, each tile reads one vector more, and where
those of the result are, the rows of one vector more: from the L2 cache, since the next tile reads them too. The vectors
that begin or end a row are read and stored element by element there, for which the averages stand below 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tools import emulation
from tools.budgets.traffic import TrafficCase

CHANNELS, PIXELS = 64, {"aligned": 640, "odd": 625}


def _case(name: str, pixels: int, to_channels_last: bool, dtype: torch.dtype) -> TrafficCase:
    shape = (2, CHANNELS, pixels) if to_channels_last else (2, pixels, CHANNELS)

    def prepare() -> Callable[[], dict[str, Tensor]]:
        values = torch.zeros(shape, dtype=dtype)
        result = torch.zeros(shape[0], shape[2], shape[1], dtype=dtype)
        copy = (values.data_ptr(), result.data_ptr(), *shape, shape[1] * shape[2], shape[2])

        def call() -> dict[str, Tensor]:
            emulation.load("traffic").module.layout_transpose(values.element_size(), [copy])
            return {"from": values, "to": result}

        return call

    direction = "NCHW to NHWC" if to_channels_last else "NHWC to NCHW"
    return TrafficCase(f"{direction}, {name} planes", str(dtype).removeprefix("torch."), prepare)


CASES = [
    _case(name, pixels, to_channels_last, dtype)
    for name, pixels in PIXELS.items()
    for to_channels_last in (True, False)
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
]
