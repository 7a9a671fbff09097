"""squeeze_excite on random shapes, strides, dtypes and options, on every wall, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkernels import testing

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


@pytest.mark.parametrize(("wall", "device"), testing.walls())
def test_squeeze_excite(wall, device):
    @given(calls(largest=20 if wall == "emulated" else 70))
    def run(call):
        check("squeeze_excite", call, call[0][0].dtype, wall, device)

    run()
