"""squeeze_excite over a batch normalisation, as the CPU computes it, on random calls of every kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from attnkernels import squeeze_excite, testing
from attnkernels.ops.squeeze_excite.schema import INPUT_ACTIVATION, SQUEEZE_EXCITE

from .drawing import NUMBERS, call

INPUT_ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "silu": F.silu,
    "hard_swish": lambda z: z * (z / 6 + 0.5).clamp(0, 1),
}


@pytest.mark.skipif(("cpu", "cpu") not in testing.fused_backends(), reason="the CPU library was not built")
@given(
    NUMBERS,
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.sampled_from(sorted(INPUT_ACTIVATIONS, key=str)),
    st.sampled_from(["affine", "plain", None]),
)
def test_in_place(draw, layout, activation, normalisation):
    case, _ = call("squeeze_excite", draw, "cpu", "cpu")
    (x, *weights), kwargs = case.make()
    x = x.contiguous(memory_format=layout)
    generator = torch.Generator().manual_seed(draw.randint(0, 2**31))
    channel_numbers = torch.randn(4, x.shape[1], dtype=torch.float64, generator=generator)
    mean, variance, scale, shift = (channel_numbers * 0.5 + torch.tensor([0.0, 0, 1, 0])[:, None]).to(x.dtype)
    variance = variance.abs() + 0.5
    norm = {"affine": (mean, variance, scale, shift), "plain": (mean, variance, None, None), None: (None,) * 4}[
        normalisation
    ]
    got = x.clone()
    torch.ops.attnkernels.squeeze_excite_(
        got, *norm, 1e-5, INPUT_ACTIVATION[activation], *weights, kwargs.get("residual"),
        *SQUEEZE_EXCITE.integers((kwargs["activation"], kwargs["gate"], kwargs["output_activation"])),
    )  # fmt: skip
    in_float64 = testing.in_float64
    z = F.batch_norm(in_float64(x), *map(in_float64, norm)) if normalisation and x.numel() else in_float64(x)
    want = squeeze_excite(
        INPUT_ACTIVATIONS[activation](z), *map(in_float64, weights), **in_float64(kwargs), backend="reference"
    )  # fmt: skip
    # The sum of a product and a residual may cancel: errors are of the terms' size.
    largest = max(
        (value.abs().max().item() for value in (z, kwargs.get("residual")) if value is not None and value.numel()),
        default=0.0,
    )
    testing.assert_close_to_float64(got, want, "y", rounded_inside=True, largest=largest)
