"""The launchers of the convolution of cbam's statistics, called directly: small and several programs, planted bugs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from triton_backend import needs_ttsem, reported, with_bug, without_plans

from attnkernels import testing
from attnkernels.ops.channel_spatial import triton_convolution
from attnkernels.testing._cases import Maker

# Maps smaller than the taps; several programs, the last in part; several chunks; no samples.
SIZES = [(2, 7, 7, 7), (1, 2, 1, 5), (3, 19, 21, 3), (2, 30, 40, 1), (0, 4, 4, 3)]


@pytest.fixture(autouse=True)
def _no_plans():
    yield
    without_plans(triton_convolution._plan_forward, triton_convolution._plan_backward)


def make(samples, height, width, taps, dtype=torch.float32):
    maker = Maker(dtype, "cuda", "contiguous")
    statistics, weight, bias = maker.normal(samples, 2, height, width), maker.normal(2, taps, taps), maker.normal(1)
    return statistics, weight, bias, maker.normal(samples, height, width)


def check(statistics, weight, bias, grad):
    """Hold all results to PyTorch's in float64."""
    wide = [x.cpu().double().requires_grad_() for x in (statistics, weight, bias)]
    want = F.conv2d(wide[0], wide[1][None], wide[2], padding=weight.shape[-1] // 2)[:, 0]
    want_grads = torch.autograd.grad(want, wide[:2], grad.cpu().double())
    logits = triton_convolution.channel_spatial_convolution(statistics, weight, bias)
    testing.assert_close_to_float64(logits, want, "logits")
    bare = triton_convolution.channel_spatial_convolution(statistics, weight, None)
    testing.assert_close_to_float64(bare, want - wide[2], "logits without a bias")
    grads = triton_convolution.channel_spatial_convolution_backward(grad, statistics, weight, 3)
    for i, (got, want_grad) in enumerate(zip(grads, want_grads, strict=True)):
        testing.assert_close_to_float64(got, want_grad, "gradient")
        alone = triton_convolution.channel_spatial_convolution_backward(grad, statistics, weight, 1 << i)
        assert torch.equal(alone[i], got)
        assert not alone[1 - i].numel()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_convolution(sizes):
    check(*make(*sizes))


def test_float64():
    check(*make(2, 9, 11, 3, torch.float64))


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
        ("total = sum_of_chunks(parts_ptr + weight, weights, chunks", "total = sum_of_chunks(parts_ptr + weight, weights, 1"),
    ],
)  # fmt: skip
def test_a_wrong_number_shows(right, wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(triton_convolution, "kernels", with_bug(triton_convolution.kernels, tmp_path, right, wrong))
    with pytest.raises(AssertionError):
        check(*make(2, 30, 40, 3))
