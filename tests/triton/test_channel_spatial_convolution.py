"""The launchers of the convolution of cbam's statistics, called directly: small and several programs, planted bugs."""

from __future__ import annotations

import pytest
import torch
from triton_backend import needs_ttsem, reported, with_bug, without_plans

from attnkernels import testing
from attnkernels.ops.channel_spatial import reference, triton_convolution
from attnkernels.testing._cases import Maker

# Maps smaller than the taps; several programs, the last in part; several chunks; no samples.
SIZES = [(2, 7, 7, 7), (1, 2, 1, 5), (3, 19, 21, 3), (2, 30, 40, 1), (0, 4, 4, 3)]


@pytest.fixture(autouse=True)
def _no_plans():
    yield
    without_plans(triton_convolution._plan_forward, triton_convolution._plan_backward)


def make(samples, height, width, taps, dtype=torch.float32):
    maker = Maker(dtype, "cuda", "contiguous")
    wide = Maker(torch.float64 if dtype is torch.float64 else torch.float32, "cuda", "contiguous", seed=1)
    statistics, grad = wide.normal(samples, 2, height, width), wide.normal(samples, height, width)
    return statistics, maker.normal(1, 2, taps, taps, scale=1 / taps), maker.normal(1), grad


def check(statistics, weight, bias, grad, mean_first=0, gated=0):
    """Hold all results to PyTorch's in float64."""
    wide = [x.cpu().double().requires_grad_() for x in (statistics, weight, bias)]
    want = reference.convolved(*wide, bool(mean_first))
    bare = want - wide[2]
    if gated:
        want, bare = want.sigmoid(), bare.sigmoid()
    want_grads = torch.autograd.grad(want, wide[:2], grad.cpu().double(), retain_graph=True)
    with testing.uninitialized_is_nan():
        result = triton_convolution.channel_spatial_convolution(statistics, weight, bias, mean_first, gated)
        without = triton_convolution.channel_spatial_convolution(statistics, weight, None, mean_first, gated)
        call = grad, statistics, weight, result if gated else None, mean_first
        grads = triton_convolution.channel_spatial_convolution_backward(*call, 3)
        alone = [triton_convolution.channel_spatial_convolution_backward(*call, 1 << i) for i in range(2)]
    testing.assert_close_to_float64(result, want, "result")
    testing.assert_close_to_float64(without, bare, "result without a bias")
    for i, (like, got, want_grad) in enumerate(zip((statistics, weight), grads, want_grads, strict=True)):
        assert got.dtype is like.dtype
        testing.assert_close_to_float64(got, want_grad, "gradient")
        assert torch.equal(alone[i][i], got)
        assert not alone[i][1 - i].numel()


@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("mean_first", [0, 1])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_convolution(sizes, mean_first, gated):
    check(*make(*sizes), mean_first, gated)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    check(*make(2, 9, 11, 3, dtype), 0, 1)
    check(*make(2, 9, 11, 3, dtype), 1, 0)


def test_strides():
    def spread(x):
        wide = torch.full((*x.shape, 2), float("nan"), dtype=x.dtype, device=x.device)
        wide[..., 0] = x
        return wide[..., 0]

    statistics, weight, bias, grad = make(2, 9, 11, 3)
    check(spread(statistics), spread(weight), bias, spread(grad), 1, 1)


@needs_ttsem
@pytest.mark.parametrize(("right", "wrong"), [("(row >= 0) & (row < height)", "(row >= 0)"), ("(column >= 0) & ", "")])
def test_a_tap_beyond_the_plane(right, wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(triton_convolution, "kernels", with_bug(triton_convolution.kernels, tmp_path, right, wrong))
    with reported(r"reads \d+ element"):
        check(*make(1, 7, 7, 3))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(taps - 1 - i) * taps + taps - 1 - j if REVERSED", "i * taps + j if REVERSED"),
        ("tap // taps - taps // 2, tap % taps", "tap % taps - taps // 2, tap // taps"),
        ("    if MEAN_FIRST:\n        plane = 1 - plane\n", ""),
        ("        if MEAN_FIRST:\n            of_weight = 1 - of_weight\n", ""),
        ("    if GATED:\n        total = sigmoid(total)\n", ""),
        ("value = _grad_logit(value, gate)", "value = value"),
        ("grad = _grad_logit(grad, tl.load(gate_ptr + place, mask=mask, other=0))", "grad = grad"),
        ("total = sum_of_chunks(parts_ptr + weight, weights, chunks", "total = sum_of_chunks(parts_ptr + weight, weights, 1"),
    ],
)  # fmt: skip
def test_a_wrong_number_shows(right, wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(triton_convolution, "kernels", with_bug(triton_convolution.kernels, tmp_path, right, wrong))
    with pytest.raises(AssertionError):
        check(*make(2, 30, 40, 3), 1, 1)
