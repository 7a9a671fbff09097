"""The launchers of the channel gate's layers, called directly: several programs, single layers, NaN, planted bugs."""

from __future__ import annotations

import pytest
import torch
from triton_backend import needs_ttsem, reported, with_bug, without_plans

from attnkernels import testing
from attnkernels.ops import _triton_layers
from attnkernels.ops.channel_spatial import reference, triton_layers
from attnkernels.testing._cases import Maker

# Samples, pools, channels, hidden channels (0: a single layer). Several programs along each dimension, with parts of
# blocks; a single layer of each; one of all; no samples.
SEVERAL, SINGLE = (5, 2, 37, 11), (5, 2, 37, 0)
SIZES = [SEVERAL, SINGLE, (3, 3, 20, 5), (2, 1, 9, 0), (1, 1, 1, 1), (0, 2, 9, 3), (0, 1, 9, 0)]


def forget():
    without_plans(triton_layers._plan_forward, triton_layers._plan_backward)


@pytest.fixture(autouse=True)
def _no_plans():
    yield
    forget()


@pytest.fixture
def small_blocks(monkeypatch):
    """Fewer products a program, so that a few channels have several programs and several steps."""
    monkeypatch.setattr(_triton_layers, "PRODUCTS", 128)
    monkeypatch.setattr(_triton_layers, "PRODUCT_BLOCK", 16)
    monkeypatch.setattr(triton_layers, "PRODUCT_BLOCK", 16)


def make(samples, pools, channels, hidden, dtype=torch.float32, biases=True):
    """pooled, the layers, as of convolutions where they have no biases, and the gradient of the gates."""
    maker = Maker(dtype, "cuda", "contiguous")
    wide = Maker(torch.float64 if dtype is torch.float64 else torch.float32, "cuda", "contiguous", seed=1)
    after = () if biases else (1, 1)
    layers = [
        maker.normal(hidden, channels, *after, scale=channels**-0.5) if hidden else None,
        maker.normal(hidden) if hidden and biases else None,
        maker.normal(channels, hidden or channels, *after, scale=(hidden or channels) ** -0.5),
        maker.normal(channels) if biases else None,
    ]
    return wide.normal(samples, pools, channels), layers, wide.normal(samples, channels)


def run(pooled, layers, grad, needs):
    with testing.uninitialized_is_nan():
        gate, hidden = triton_layers.channel_spatial_layers(pooled, *layers)
        call = grad, pooled, gate, hidden, layers[0], layers[2]
        grads = triton_layers.channel_spatial_layers_backward(*call, needs)
        alone = [triton_layers.channel_spatial_layers_backward(*call, needs & 1 << i) for i in range(5)]
    for i, results in enumerate(alone):
        assert torch.equal(results[i].nan_to_num(), grads[i].nan_to_num())
        assert not any(result.numel() for j, result in enumerate(results) if j != i)
    return gate, hidden, grads


def check(pooled, layers, grad):
    """Hold all results to autograd of the formula in float64."""
    exact = [None if x is None else x.detach().cpu().double().requires_grad_() for x in (pooled, *layers)]
    present = [i for i, x in enumerate(exact) if x is not None]
    want = reference.channel_gate(*exact)
    want_grads = torch.autograd.grad(want, [exact[i] for i in present], grad.cpu().double())
    gate, hidden, grads = run(pooled, layers, grad, sum(1 << i for i in present))
    testing.assert_close_to_float64(gate, want, "gate")
    if exact[1] is None:
        assert hidden.shape == (0,)
    else:
        testing.assert_close_to_float64(hidden, reference._layer(*exact[:3]).relu(), "hidden")
    for i, want_grad in zip(present, want_grads, strict=True):
        like = (pooled, *layers)[i]
        assert grads[i].dtype is like.dtype
        testing.assert_close_to_float64(grads[i], want_grad, f"gradient {i}")
    assert all(grads[i].shape == (0,) for i in range(5) if i not in present)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_small_blocks(sizes, biases, small_blocks):
    check(*make(*sizes, biases=biases))


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_dtypes(dtype, small_blocks):
    check(*make(*SEVERAL, dtype))
    check(*make(*SINGLE, dtype))


def test_blocks_as_they_are():
    check(*make(3, 2, 300, 20, torch.bfloat16))
    check(*make(2, 1, 70, 0, torch.float16))


def test_strides(small_blocks):
    pooled, layers, grad = make(*SEVERAL)

    def spread(x):
        wide = torch.full((*x.shape, 2), float("nan"), dtype=x.dtype, device=x.device)
        wide[..., 0] = x
        return wide[..., 0]

    check(spread(pooled), [spread(x) for x in layers], spread(grad))


def test_nan_passes_the_relu(small_blocks):
    pooled, layers, grad = make(*SEVERAL)
    pooled[1, 1, 5] = float("nan")
    check(pooled, layers, grad)


REPORTED = {
    "rows past the samples": (
        "mask=in_samples & (i < inputs)[None, :], other=0)", "mask=(i < inputs)[None, :], other=0)", "past the end",
    ),
    "gates past the channels": (
        "tl.store(out_ptr + at, result, mask=in_samples & in_outputs[None, :])",
        "tl.store(out_ptr + at, result, mask=in_samples)", "past the end|both touch",
    ),
    "gradients of gates past the samples": ("BLOCK_TERMS, accumulation, POOLS", "BLOCK_TERMS, accumulation, 1", "past the end"),
    "hidden channels past the row": ("mask = in_samples & (h < hidden)[None, :]", "mask = in_samples", "past the end|both touch"),
}  # fmt: skip


@needs_ttsem
@pytest.mark.parametrize("bug", REPORTED)
def test_planted_bug_is_reported(bug, monkeypatch, tmp_path, small_blocks):
    right, wrong, report = REPORTED[bug]
    monkeypatch.setattr(triton_layers, "kernels", with_bug(triton_layers.kernels, tmp_path, right, wrong))
    with reported(report):
        run(*make(*SEVERAL), 0b11111)


NOTICED = {
    "a bias for one pool": ("result += POOLS * tl.load", "result += tl.load"),
    "one pool": ("value += tl.load", "value = tl.load"),
    "a ReLU that drops NaN": ("else relu(result)", "else tl.where(result > 0, result, 0)"),
    "a gradient through a closed ReLU": ("other=0) <= 0, 0, grad_h)", "other=0) < 0, 0, grad_h)"),
    "a closed ReLU for NaN": (
        "tl.where(tl.load(hidden_ptr + at, mask=mask, other=0) <= 0, 0, grad_h)",
        "tl.where(tl.load(hidden_ptr + at, mask=mask, other=0) > 0, grad_h, 0)",
    ),
    "gradients of gates that nobody wrote": ("mask=mask & (hidden_tile == 0)", "mask=mask & (hidden_tile == 1 << 20)"),
    "tiles of weights that nobody wrote": ("program - expand_tiles, hidden, channels, rows", "(program - expand_tiles) // 2, hidden, channels, rows"),
}  # fmt: skip


@needs_ttsem
@pytest.mark.parametrize("bug", NOTICED)
def test_planted_bug_is_noticed(bug, monkeypatch, tmp_path, small_blocks):
    right, wrong = NOTICED[bug]
    arguments = make(*SEVERAL)
    if "NaN" in bug:
        arguments[0][1, 1, 5] = float("nan")
    monkeypatch.setattr(triton_layers, "kernels", with_bug(triton_layers.kernels, tmp_path, right, wrong))
    with pytest.raises(AssertionError):
        check(*arguments)
