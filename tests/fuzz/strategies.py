"""Strategies that the ops' fuzz tests share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from attnkernels import testing

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
SEEDS = st.integers(0, 2**31)


@st.composite
def feature_maps(draw, samples, channels, height, width, dtype, distinct=False):
    """A random [N, C, H, W] tensor: contiguous, channels_last, sliced, transposed, offset or, not distinct, expanded."""
    generator = torch.Generator().manual_seed(draw(SEEDS))

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    kinds = ["contiguous", "channels_last", "sliced", "transposed", "offset"]
    kind = draw(st.sampled_from(kinds if distinct else [*kinds, "expanded"]))
    if kind == "channels_last":
        return normal(samples, channels, height, width).contiguous(memory_format=torch.channels_last)
    if kind == "sliced":
        return normal(samples, channels + 2, height, width + 3)[:, 1:-1, :, 2:-1]
    if kind == "transposed":
        return normal(samples, channels, width, height).transpose(2, 3)
    if kind == "expanded":
        return normal(samples, channels, 1, width).expand(samples, channels, height, width)
    if kind == "offset":  # contiguous, but not aligned to a vector
        flat = normal(samples * channels * height * width + 1)[1:]
        return flat.view(samples, channels, height, width)
    return normal(samples, channels, height, width)


def check(op: str, call, dtype: torch.dtype, backend: str, device: str, **traits) -> None:
    """Hold one random call, forward and gradients, to float64; `traits` of testing.OpCase."""
    args, kwargs = testing.map_tensors(call, lambda x: x.to(device))
    case = testing.OpCase(op, "random", lambda make: (args, kwargs), **traits)
    testing.check_against_float64(case, backend, device, dtype, "contiguous")
