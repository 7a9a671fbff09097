"""The criss-cross functions on random shapes, strides and dtypes, on every backend, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkernels import testing

from .strategies import DTYPES, check, feature_maps


@st.composite
def sizes(draw, largest):
    """Samples, height and width, channels of query and key, and of value."""
    n, h, w = draw(st.integers(0, 3)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    return n, h, w, draw(st.integers(1, largest)), draw(st.integers(1, 2 * largest))


@st.composite
def attentions(draw, largest):
    # In 16 bits the gradients contain the rounding of the stored output times as much as there are channels, which no
    # bound of a few roundings holds for all draws: fixed cases check those.
    dtype, (n, h, w, reduced, channels) = draw(st.sampled_from([torch.float32, torch.float64])), draw(sizes(largest))
    # Equal keys have gradients that cancel to 0.
    query, key = (draw(feature_maps(n, reduced, h, w, dtype, distinct=True)) for _ in range(2))
    # Energies of about 1, as of a trained network: a softmax of larger ones picks single pixels.
    return (query / reduced**0.5, key, draw(feature_maps(n, channels, h, w, dtype, distinct=True))), {}


@st.composite
def affinities(draw, largest):
    dtype, (n, h, w, reduced, _) = draw(DTYPES), draw(sizes(largest))
    return (draw(feature_maps(n, reduced, h, w, dtype)), draw(feature_maps(n, reduced, h, w, dtype))), {}


@st.composite
def aggregations(draw, largest):
    dtype, (n, h, w, _, channels) = draw(DTYPES), draw(sizes(largest))
    weights = draw(feature_maps(n, h + w - 1, h, w, dtype)) / (h + w) ** 0.5
    return (weights, draw(feature_maps(n, channels, h, w, dtype))), {}


OPS = {
    "criss_cross_attention": (attentions, {"through_output": (0, 1), "products": True}),
    "criss_cross_affinity": (affinities, {}),
    "criss_cross_aggregate": (aggregations, {}),
}


@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
@pytest.mark.parametrize("op", OPS)
def test_criss_cross(op, backend, device):
    calls, traits = OPS[op]

    @given(calls(largest=12 if backend == "emulated" else 40))
    def run(call):
        check(op, call, call[0][0].dtype, backend, device, **traits)

    run()
