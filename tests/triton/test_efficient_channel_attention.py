"""The efficient_channel_attention launchers, called directly: several programs, every need, planted bugs."""

from __future__ import annotations

import pytest
import torch
from triton_backend import needs_ttsem, reported, with_bug, without_plans

from attnkernels import reference, testing
from attnkernels.ops.efficient_channel_attention import triton_impl
from attnkernels.ops.efficient_channel_attention.schema import NEEDS_RESIDUAL, NEEDS_WEIGHT, NEEDS_X
from attnkernels.testing._cases import Maker

EVERYTHING = NEEDS_X | NEEDS_WEIGHT | NEEDS_RESIDUAL
BITS = {"grad_x": NEEDS_X, "grad_weight": NEEDS_WEIGHT, "grad_residual": NEEDS_RESIDUAL}
CIRCULAR = pytest.mark.parametrize("circular", [False, True])
# (N, C, H, W) and taps: several tiles of channels, the last in part; taps from both neighbours of a tile; taps beyond
# what a program reads at a time, and beyond what it multiplies at a time.
SHAPES = [((2, 70, 5, 6), 5), ((2, 40, 3, 3), 39), ((1, 33, 40, 30), 9)]


@pytest.fixture(autouse=True)
def _no_plans():
    yield
    without_plans(triton_impl._plan_forward, triton_impl._plan_backward)


def make(shape=(2, 70, 5, 6), taps=5, dtype=torch.float32, layout="contiguous"):
    """x, weight, residual and grad_y."""
    maker = Maker(dtype, "cuda", layout)
    weight = maker.normal(taps, scale=taps**-0.5)
    return maker.feature_map(*shape, shift=0.5), weight, maker.feature_map(*shape), maker.feature_map(*shape)


def run(x, weight, residual, grad_y, needs=EVERYTHING, circular=False):
    """y, saved and the gradients, by the launchers, with the epilogue."""
    y, saved = triton_impl.efficient_channel_attention(x, weight, residual, circular, 0, 1)
    grads = triton_impl.efficient_channel_attention_backward(grad_y, x, y, weight, saved, circular, 0, 1, needs)
    return y, saved, dict(zip(BITS, grads, strict=True))


def check(x, weight, residual, grad_y, result, circular=False):
    """Hold all results to the reference in float64; the ReLU's branch is the one that y itself took."""
    y, saved, grads = result
    x64, weight64, residual64 = leaves = [t.cpu().double().requires_grad_() for t in (x, weight, residual)]
    z = reference.efficient_channel_attention(x64, weight64, circular=circular, residual=residual64)
    z = torch.where(y.cpu() > 0, z, z * 0)
    z.backward(grad_y.cpu().double())
    testing.assert_close_to_float64(y, z, "y")
    testing.assert_close_to_float64(saved[:, : x.shape[1]], x64.detach().mean((2, 3)), "means")
    for name, leaf in zip(BITS, leaves, strict=True):
        testing.assert_close_to_float64(grads[name], leaf.grad, name)


@CIRCULAR
@pytest.mark.parametrize(("shape", "taps"), SHAPES, ids=str)
def test_many_programs(shape, taps, circular):
    arguments = make(shape, taps)
    check(*arguments, run(*arguments, circular=circular), circular)


@CIRCULAR
@pytest.mark.parametrize("needs", range(1, EVERYTHING))
def test_only_what_is_needed(needs, circular):
    arguments = make((2, 35, 3, 4), 3)
    everything, only = run(*arguments, circular=circular)[2], run(*arguments, needs, circular)[2]
    for name, bit in BITS.items():
        if needs & bit:
            assert torch.equal(only[name], everything[name])
        else:
            assert only[name].shape == (0,)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=["samples", "channels", "pixels"])
def test_empty_dimensions(shape):
    y, saved, grads = run(*make(shape, 3))
    assert y.shape == grads["grad_x"].shape == shape
    if shape[2]:
        assert not grads["grad_weight"].any()  # a sum over nothing: written, and zero
    else:
        assert saved.isnan().all()  # the mean of nothing, as in PyTorch


@CIRCULAR
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_reach_the_gates_of_their_taps_only(value, circular):
    x, weight, residual, grad_y = make((2, 40, 3, 5), 5)
    x[1, 1, 1, 1] = value
    _, saved, _ = run(x, weight, residual, grad_y, circular=circular)
    reached = [0, 1, 2, 3, 39] if circular else [0, 1, 2, 3]
    expected = torch.zeros(2, 40, dtype=torch.bool)
    expected[1, reached] = True
    gates = saved[:, 40:].cpu()
    if value == float("inf"):  # of which a sigmoid has a value
        assert not gates.isnan().any()
        assert torch.equal((gates == 0) | (gates == 1), expected)
    else:
        assert torch.equal(gates.isnan(), expected)


KERNEL_BUGS = {
    "channels of other samples": ("return i, (i >= 0) & (i < channels)", "return i, i == i", "past the end|before the"),
    "programs of one part in one place": (
        "at = tap.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)",
        "at = tap.to(tl.int64) * tl.num_programs(0)",
        "both touch",
    ),
    "parts without a mask": (
        "tl.load(row + i, mask=i < count, other=0)",
        "tl.load(row + i)",
        "past the end|undefined result",
    ),
}


@needs_ttsem
@pytest.mark.parametrize("bug", KERNEL_BUGS)
def test_planted_bug_is_reported(bug, monkeypatch, tmp_path):
    right, wrong, report = KERNEL_BUGS[bug]
    monkeypatch.setattr(triton_impl, "kernels", with_bug(triton_impl.kernels, tmp_path, right, wrong))
    with reported(report):
        run(*make())


@needs_ttsem
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("mask=(i >= first) & (i < end)", "mask=(i > first) & (i < end)"),  # means in saved
        ("gate_of(tl.sum(total, 1), GATE), mask=output < channels", "gate_of(tl.sum(total, 1), GATE), mask=output < 9"),
        ("tl.sum(total, 1), mask=in_channels", "tl.sum(total, 1), mask=output < 9"),  # gradients of the means
        ("part, mask=tap < taps", "part, mask=tap < taps - 1"),
    ],
)
def test_planted_unwritten_accumulator_is_noticed(right, wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(triton_impl, "kernels", with_bug(triton_impl.kernels, tmp_path, right, wrong))
    arguments = make()
    with pytest.raises(AssertionError, match="NaN in other places"):
        check(*arguments, run(*arguments))
