"""The squeeze_excite launchers, called directly: options, both ways to the gates, limits, planted bugs."""

from __future__ import annotations

import pytest
import torch
from triton_backend import needs_gpu, needs_ttsem, reported, with_bug, without_plans

from attnkernels import reference, testing
from attnkernels.ops import _triton_gate
from attnkernels.ops.squeeze_excite import triton_impl
from attnkernels.ops.squeeze_excite.checks import ACTIVATIONS, GATES
from attnkernels.ops.squeeze_excite.schema import NEEDS_RESIDUAL, NEEDS_WEIGHTS, NEEDS_X, SQUEEZE_EXCITE

EVERYTHING = NEEDS_X | NEEDS_RESIDUAL | NEEDS_WEIGHTS
NAMES = ("grad_x", "grad_residual", "grad_reduce_weight", "grad_reduce_bias", "grad_expand_weight", "grad_expand_bias")
DTYPES = pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
LAYOUTS = pytest.mark.parametrize("layout", testing.LAYOUTS)


@pytest.fixture(autouse=True)
def _no_plans():
    yield
    without_plans(triton_impl._plan_forward, triton_impl._plan_backward)


def make(dtype=torch.float32, layout="contiguous", shape=(3, 20, 23, 31), hidden=6):
    """x, the four parameters, residual and grad_y; odd sizes, so that every dimension has a part of a block."""
    maker = testing.Maker(dtype, "cuda", layout)
    channels = shape[1]
    width = hidden or channels
    reduce = (maker.normal(hidden, channels, scale=0.3), maker.normal(hidden)) if hidden else (None, None)
    expand = (maker.normal(channels, width, scale=0.3), maker.normal(channels))
    return maker.feature_map(*shape), (*reduce, *expand), maker.feature_map(*shape), maker.feature_map(*shape)


def run(x, parameters, residual, grad_y, needs=EVERYTHING, activation="silu", gate="sigmoid", output_activation="relu"):
    """y, saved and the gradients, by the launchers."""
    kinds = SQUEEZE_EXCITE.integers((activation, gate, output_activation))
    y, saved = triton_impl.squeeze_excite(x, *parameters, residual, *kinds)
    kept = y if output_activation else None
    grads = triton_impl.squeeze_excite_backward(grad_y, x, kept, *parameters, saved, *kinds, needs)
    return y, saved, dict(zip(NAMES, grads, strict=True))


def check(x, parameters, residual, grad_y, result, **options):
    """Hold all results to the reference in float64; the ReLU's branch is the one that y itself took."""
    y, saved, grads = result
    leaves = [None if t is None else t.detach().cpu().double().requires_grad_() for t in (x, residual, *parameters)]
    x64, residual64, *parameters64 = leaves
    output_activation = options.pop("output_activation", "relu")
    z = reference.squeeze_excite(x64, *parameters64, residual=residual64, **{"activation": "silu", **options})
    if output_activation:
        open_gates = y.detach().cpu() > 0
        z = torch.where(open_gates, z, z * 0)
    z.backward(grad_y.cpu().double())
    testing.assert_close_to_float64(y, z, "y")
    mean = x64.detach().mean((2, 3))
    testing.assert_close_to_float64(saved[:, : x.shape[1]], mean, "means")
    for name, leaf in zip(NAMES, leaves, strict=True):
        if leaf is None:
            assert grads[name].shape == (0,)
        else:
            testing.assert_close_to_float64(grads[name], leaf.grad, name)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [6, None])
def test_activations(hidden, activation, gate):
    x, parameters, _, grad_y = make(shape=(2, 9, 5, 5), hidden=hidden)
    options = {"activation": activation, "gate": gate, "output_activation": None}
    result = run(x, parameters, None, grad_y, needs=NEEDS_X | NEEDS_WEIGHTS, **options)
    check(x, parameters, None, grad_y, result, **options)


@LAYOUTS
@DTYPES
def test_gates_by_their_own_launch(dtype, layout, monkeypatch):
    """Where the scale kernel would read more weights than values, the gates are computed once for all its programs."""
    monkeypatch.setattr(triton_impl, "_BYTES_PER_LAUNCH", 0)
    arguments = make(dtype, layout, shape=(5, 40, 2, 3), hidden=12)
    launched = []
    monkeypatch.setattr(triton_impl, "_layer", lambda *a, keep=triton_impl._layer: launched.append(a) or keep(*a))
    result = run(*arguments)
    assert len(launched) == 2
    check(*arguments, result)


@LAYOUTS
def test_offsets_of_64_bits(layout, monkeypatch):
    arguments = make(layout=layout)
    y, saved, grads = run(*arguments)
    monkeypatch.setattr(_triton_gate, "wide", lambda channels, pixels: True)
    without_plans(triton_impl._plan_forward, triton_impl._plan_backward)
    wide_y, wide_saved, wide_grads = run(*arguments)
    assert torch.equal(y, wide_y)
    assert torch.equal(saved, wide_saved)
    assert all(torch.equal(grads[name], wide_grads[name]) for name in NAMES)


@needs_gpu
@LAYOUTS
def test_more_than_2_31_elements(layout):
    """One sample past 2^31 values, checked where the offsets are largest."""
    shape = (1, 8, 16400, 16400)
    x = torch.ones(shape, dtype=torch.float16, device="cuda")
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    weight = torch.eye(8, dtype=torch.float16, device="cuda")
    y, saved = triton_impl.squeeze_excite(x, None, None, weight, None, None, 0, 0, 0)
    assert torch.allclose(saved[:, :8], torch.ones(1, 8, device="cuda"))
    expected = torch.tensor(1.0).sigmoid().half().item()
    for corner in (y[0, 0, 0, :2], y[0, 7, -1, -2:], y[0, 3, 8000, :2]):
        assert corner.tolist() == [expected] * 2
    assert y.float().sum(dtype=torch.float64).item() == pytest.approx(expected * x.numel(), rel=1e-6)


@pytest.mark.parametrize(
    "shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3), (2, 4, 1, 1)], ids=["samples", "channels", "pixels", "none"]
)
@LAYOUTS
def test_empty_dimensions(shape, layout):
    arguments = make(layout=layout, shape=shape, hidden=3)
    y, saved, grads = run(*arguments)
    assert y.shape == grads["grad_x"].shape == shape
    if shape[0] == 0:
        assert all(not grads[name].any() for name in NAMES)  # sums over no samples: written, and zero
    if shape[1] == 0:
        assert saved.shape == (2, 3)
        assert not grads["grad_reduce_bias"].any()
    if shape[2] == 0:
        assert saved[:, :4].isnan().all()  # the mean of nothing, as in PyTorch


def test_strides_and_offsets():
    """Slices and 8-byte offsets give the same bits as fresh tensors; so do they the other way round."""
    arguments = make(shape=(2, 8, 4, 8), hidden=4)

    def shifted(tensor):
        buffer = torch.zeros(tensor.numel() + 2, device="cuda")
        view = buffer[2:].view(tensor.shape)
        view.copy_(tensor)
        return view

    def sliced(tensor):
        wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] * 2, device="cuda")
        wide[..., ::2] = tensor
        return wide[..., ::2]

    y, saved, grads = run(*arguments)
    for awkward in (shifted, sliced):
        x, parameters, residual, grad_y = testing.map_tensors(arguments, awkward)
        odd_y, odd_saved, odd_grads = run(x, parameters, residual, grad_y)
        torch.testing.assert_close(odd_y, y)
        torch.testing.assert_close(odd_saved, saved)
        for name in NAMES:
            torch.testing.assert_close(odd_grads[name], grads[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_sample(value):
    x, parameters, residual, grad_y = make(shape=(2, 8, 3, 5), hidden=4)
    x[1, 2, 1, 1] = value
    y, _, grads = run(x, parameters, residual, grad_y)
    names = ("reduce_weight", "reduce_bias", "expand_weight", "expand_bias")
    expected = reference.squeeze_excite(
        x.cpu(), **dict(zip(names, (p.cpu() for p in parameters), strict=True)),
        activation="silu", residual=residual.cpu(), output_activation="relu",
    )  # fmt: skip
    assert torch.equal(y.cpu().isnan(), expected.isnan())
    assert not y[0].isnan().any()
    assert not grads["grad_x"][0].isnan().any()


KERNEL_BUGS = {
    "load without a mask": (
        "tl.load(x_ptr + origin + at, mask=mask, other=0).to(gate.dtype) * gate",
        "tl.load(x_ptr + origin + at).to(gate.dtype) * gate",
        "past the end|before the start",
    ),
    "store without a mask": (
        "tl.store(y_ptr + origin + at, y.to(y_ptr.dtype.element_ty), mask=mask)",
        "tl.store(y_ptr + origin + at, y.to(y_ptr.dtype.element_ty))",
        "past the end|both touch|undefined result",
    ),
    "chunks add into one sum": (
        "tl.store(sums_ptr + (chunk * samples + sample) * channels + channel, tl.sum(total, 1), mask=channel < channels)",
        "at = sums_ptr + sample * channels + channel; "
        "tl.store(at, tl.load(at, mask=(channel < channels) & (chunk > 0), other=0) + tl.sum(total, 1), mask=channel < channels)",
        "both touch",
    ),
    "chunks of one sum in one place": (
        "(chunk * samples + sample) * channels",
        "sample * channels",
        "both touch",
    ),
}


@needs_ttsem
@LAYOUTS
@pytest.mark.parametrize("bug", KERNEL_BUGS)
def test_planted_bug_is_reported(bug, layout, monkeypatch, tmp_path):
    """Of the passes that gates share; without a hidden layer all of them are kernels of their own."""
    right, wrong, report = KERNEL_BUGS[bug]
    monkeypatch.setattr(_triton_gate, "kernels", with_bug(_triton_gate.kernels, tmp_path, right, wrong))
    with reported(report):
        run(*make(layout=layout, hidden=None))


@needs_ttsem
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("mask=mask & (hidden_tile == 0)", "mask=mask & (hidden_tile == 1)"),  # dv in grads
        ("mask=mask & (output_tile == 0)", "mask=mask & (output_tile == 1)"),  # means in saved
        ("mask=in_channels & (chunk == 0)", "mask=in_channels & (chunk == 1 << 20)"),  # gates in saved
    ],
)
def test_planted_unwritten_accumulator_is_noticed(right, wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(triton_impl, "kernels", with_bug(triton_impl.kernels, tmp_path, right, wrong))
    arguments = make(shape=(2, 5, 6, 7), hidden=3)
    result = run(*arguments)
    with pytest.raises(AssertionError, match="NaN in other places"):
        check(*arguments, result)
