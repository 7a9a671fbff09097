"""squeeze_excite on random shapes, strides, dtypes and options, on every backend, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from attnkernels import squeeze_excite, testing
from attnkernels.ops.squeeze_excite.schema import ACTIVATION, GATE, INPUT_ACTIVATION, OUTPUT_ACTIVATION

from .strategies import DTYPES, SEEDS, check, feature_maps


@st.composite
def calls(draw, largest):
    dtype = draw(DTYPES)
    n, c = draw(st.integers(0, 4)), draw(st.integers(1, largest))
    h, w = draw(st.integers(1, largest // 2)), draw(st.integers(1, largest // 2))
    # Not few: the gradient of a single hidden channel may cancel to nothing beside its terms.
    rd = draw(st.sampled_from([0, *range(6, 25)]))
    generator = torch.Generator().manual_seed(draw(SEEDS))

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).div(max(shape[-1], 1) ** 0.5).to(dtype)

    biases = draw(st.booleans())
    x = draw(feature_maps(n, c, h, w, dtype))
    weights = (
        normal(rd, c) if rd else None, normal(rd) if rd and biases else None,
        normal(c, rd or c), normal(c) if biases else None,
    )  # fmt: skip
    kwargs = {
        "activation": draw(st.sampled_from(["relu", "silu"])),
        "gate": draw(st.sampled_from(["sigmoid", "hard_sigmoid"])),
        "residual": draw(st.none() | feature_maps(n, c, h, w, dtype)),
        "output_activation": draw(st.sampled_from([None, "relu"])),
    }
    return (x, *weights), kwargs


@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
def test_squeeze_excite(backend, device):
    @given(calls(largest=20 if backend == "emulated" else 70))
    def run(call):
        check("squeeze_excite", call, call[0][0].dtype, backend, device)

    run()


INPUT_ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "silu": F.silu,
    "hard_swish": lambda z: z * (z / 6 + 0.5).clamp(0, 1),
}


@pytest.mark.skipif(("cpu", "cpu") not in testing.fused_backends(), reason="the CPU library was not built")
@given(
    calls(largest=70),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.sampled_from(sorted(INPUT_ACTIVATIONS, key=str)),
    st.sampled_from(["affine", "plain", None]),
    SEEDS,
)
def test_in_place(call, layout, activation, normalisation, seed):
    (x, *weights), kwargs = call
    x = x.contiguous(memory_format=layout)
    generator = torch.Generator().manual_seed(seed)
    channel_numbers = torch.randn(4, x.shape[1], dtype=torch.float64, generator=generator)
    mean, variance, scale, shift = (channel_numbers * 0.5 + torch.tensor([0.0, 0, 1, 0])[:, None]).to(x.dtype)
    variance = variance.abs() + 0.5
    norm = {"affine": (mean, variance, scale, shift), "plain": (mean, variance, None, None), None: (None,) * 4}[
        normalisation
    ]
    got = x.clone()
    torch.ops.attnkernels.squeeze_excite_(
        got, *norm, 1e-5, INPUT_ACTIVATION[activation], *weights, kwargs["residual"],
        ACTIVATION[kwargs["activation"]], GATE[kwargs["gate"]], OUTPUT_ACTIVATION[kwargs["output_activation"]],
    )  # fmt: skip
    in_float64 = testing.in_float64
    z = F.batch_norm(in_float64(x), *map(in_float64, norm)) if normalisation and x.numel() else in_float64(x)
    want = squeeze_excite(
        INPUT_ACTIVATIONS[activation](z), *map(in_float64, weights), **in_float64(kwargs), backend="reference"
    )  # fmt: skip
    # The sum of a product and a residual may cancel: errors are of the terms' size.
    largest = max(
        (value.abs().max().item() for value in (z, kwargs["residual"]) if value is not None and value.numel()),
        default=0.0,
    )
    testing.assert_close_to_float64(got, want, "y", rounded_inside=True, largest=largest)
