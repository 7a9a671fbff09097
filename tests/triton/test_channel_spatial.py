"""The launchers of the channel_spatial operators, called directly: several programs and steps, small maps, NaN and
infinity among maxima, layouts that differ, planted bugs."""

from __future__ import annotations

import channel_spatial_operators as formulas
import pytest
import torch
from channel_spatial_operators import Call
from triton_backend import needs_ttsem, reported, with_bug, without_plans

from attnkernels import testing
from attnkernels.ops import _triton
from attnkernels.ops._triton import ceil_div
from attnkernels.ops.channel_spatial import triton_impl

# Several programs along both axes, several steps, parts of blocks; one pixel, one channel, no samples.
SEVERAL = (2, 10, 5, 7)
SHAPES = [SEVERAL, (2, 9, 1, 1), (2, 1, 3, 4), (0, 8, 4, 4)]
# Whole vectors.
WHOLE = (2, 16, 4, 8)
POOL, STATISTICS = Call("pool", (), (2,)), Call("statistics", ("channel_gate",), (0,))
PROJECTED = Call("pool", ("spatial_weight", "spatial_bias"), (2,))


def forget():
    without_plans(triton_impl._pass, triton_impl._finishing)


@pytest.fixture(autouse=True)
def _no_plans():
    yield
    forget()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that a small map has several of all, which ttsem runs in no time; and the same whatever the
    shape, so that shapes share what is compiled."""

    def tile(samples, channels, pixels, channels_last, values):
        return _triton.Tiling(4, 8, ceil_div(channels, 4), ceil_div(pixels, 16), 2)

    def tile_along_channels(samples, channels, pixels, channels_last, values, reduced):
        return _triton.Tiling(4, 8, ceil_div(channels, 8), ceil_div(pixels, 8), 2)

    monkeypatch.setattr(triton_impl, "tile", tile)
    monkeypatch.setattr(triton_impl, "tile_along_channels", tile_along_channels)
    monkeypatch.setattr(triton_impl, "multiple", lambda value: 1)
    monkeypatch.setattr(triton_impl, "power_of_2", lambda value, most: most)
    monkeypatch.setattr(triton_impl, "_FINISH_VALUES", 16)
    monkeypatch.setattr(triton_impl, "_FINISH_PARTS", 2)


def run(call, arguments):
    launcher = getattr(triton_impl, f"channel_spatial_{call.name}")
    with testing.uninitialized_is_nan():
        return launcher(*[x.to("cuda") if isinstance(x, torch.Tensor) else x for x in arguments])


def check(call, arguments):
    """Hold the results to the formulas in float64."""
    got, wanted = run(call, arguments), getattr(formulas, call.name)(*arguments)
    for one, want in [(got, wanted)] if isinstance(got, torch.Tensor) else zip(got, wanted, strict=True):
        testing.assert_close_to_float64(one, want, str(call))
    return got


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("call", formulas.CALLS, ids=str)
def test_small_blocks(call, layout, small_blocks):
    for shape in SHAPES:
        check(call, formulas.arguments(call, shape, torch.float32, layout, ties=shape == SEVERAL))


@pytest.mark.parametrize("turn", range(len(formulas.CALLS)), ids=lambda turn: str(formulas.CALLS[turn]))
def test_dtypes_and_strides(turn):
    call, layout, dtype = formulas.CALLS[turn], testing.LAYOUTS[turn // 3 % 2], testing.DTYPES[turn % 4]
    arguments = formulas.arguments(call, WHOLE, dtype, layout, ties=turn % 2)
    x = 1 if call.name.startswith("grad") else 0  # decides the layout; no other tensor has to be dense
    check(call, [value if i == x else formulas.spread(value) for i, value in enumerate(arguments)])


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_blocks_as_they_are(layout):
    """Several programs along both axes of a map that the small blocks of the other tests do not cover."""
    for call in (PROJECTED, STATISTICS, Call("grad_concurrent", formulas._BOTH, (2, 3))):
        check(call, formulas.arguments(call, (1, 70, 23, 31), torch.bfloat16, layout))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("ties", [0, 1, 2])
@pytest.mark.parametrize("call", [POOL, PROJECTED, STATISTICS], ids=str)
def test_nan_and_infinity_among_maxima(call, ties, layout, small_blocks):
    """The first NaN is the maximum; a row of -inf has a maximum, too."""
    call = Call(call.name, call.given, (call.options[0] + ties,))
    x, *others = formulas.arguments(call, SEVERAL, torch.float32, layout)
    x[0, 3] = x[1, :, 2, 2] = -float("inf")
    if "spatial_weight" not in call.given:  # of whose products no more would be left
        x[0, 5, 1:4, 2] = x[1, 6:9, 3, 3] = float("nan")
        x[1, 2, 3] = x[1, 4:9, 1, 1] = float("inf")
    if call is STATISTICS:  # the gates of -inf are not 0
        others[0] = others[0].clamp(0.1)
    got, wanted = run(call, (x, *others)), getattr(formulas, call.name)(x, *others)
    rows, kept = (1, wanted[0][:, 1]) if call.name == "pool" else (0, wanted[0][:, 0])
    testing.assert_close_to_float64(got[0][:, rows], kept, "maxima")
    assert torch.equal(got[1].cpu().double(), wanted[1]), "marks"


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("sliced", [False, True])
def test_maps_that_are_laid_out_otherwise(layout, sliced):
    for call in (
        Call("grad_gates", formulas._BOTH, (2, 3)),
        Call("grad_concurrent", (*formulas._BOTH, "grad_means"), (2, 3)),
        Call("grad_x", (*formulas._BOTH, *formulas._STATISTICS, "maxima"), (1, 1)),
    ):
        grad_y, x, *others = formulas.arguments(call, (2, 6, 3, 4), torch.float32, layout)
        if sliced:
            x = torch.cat([x, x], 1)[:, :6]
        else:
            grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        got = check(call, (grad_y, x, *others))
        testing.assert_close_to_float64(run(call, (grad_y.contiguous(), x, *others))[0], got[0], "of grad_y as it was")


SHARED = Call("grad_channel_gate", (*formulas._BOTH, *formulas._STATISTICS), (1,))
CONCURRENT = Call("grad_concurrent", (*formulas._BOTH, "grad_means"), (2, 3))
REPORTED = {
    "numbers past a row": (
        SHARED, "tl.load(ptr + row * length + i, mask=i < length, other=OTHER)", "tl.load(ptr + row * length + i)",
        "past the end|undefined result",
    ),
    "results past a row": (
        STATISTICS, "tl.store(ptr + row * length + i, value, mask=i < length)",
        "tl.store(ptr + row * length + i, value)", "past the end|both touch",
    ),
    "parts of one place": (
        STATISTICS, "row = i * samples + sample", "row = sample", "both touch",
    ),
    "values past the map": (
        POOL, "x = tl.load(x_ptr + sample * channels * pixels + at, mask=mask, other=0)",
        "x = tl.load(x_ptr + sample * channels * pixels + at)", "past the end",
    ),
    "parts that nobody wrote": (
        POOL, "value = tl.load(here + MAXIMA * length, mask=mask, other=",
        "value = tl.load(here + MAXIMA * length, mask=in_count[None, :], other=", "past the end",
    ),
}  # fmt: skip


@needs_ttsem
@pytest.mark.parametrize("bug", REPORTED)
def test_planted_bug_is_reported(bug, monkeypatch, tmp_path, small_blocks):
    call, right, wrong, report = REPORTED[bug]
    monkeypatch.setattr(triton_impl, "kernels", with_bug(triton_impl.kernels, tmp_path, right, wrong))
    with reported(report):
        run(call, formulas.arguments(call, SEVERAL, torch.float32, "contiguous"))


NOTICED = {
    "masked values among maxima": (POOL, "below = tl.where(mask, x, -float", "below = tl.where(mask | True, x, -float"),
    "masked channels among maxima": (STATISTICS, "tl.where(mask, z, -float", "tl.where(mask | True, z, -float"),
    "no part as a maximum of 0": (POOL, 'mask=mask, other=-float("inf")', "mask=mask, other=0"),
    "the last of equal ones": (POOL, "(value > best) |", "(value >= best) |"),
    "the last of equal lanes": (POOL, "found = tl.min(", "found = tl.max("),
    "parts in the other order": (
        POOL, "_larger(value, mark, best, best_mark, SHARE)\n    result", "_larger(best, best_mark, value, mark, SHARE)\n    result",
    ),
    "a share of nothing": (SHARED, "mark = _load_row(marks_ptr, sample, i, length, 1", "mark = _load_row(marks_ptr, sample, i, length, 0"),
    "a bias for each part": (PROJECTED, "tl.where(i == 0, tl.load(bias_ptr).to(accumulation), 0)", "tl.load(bias_ptr).to(accumulation)"),
    "parts of a logit that are no gate": (PROJECTED, "    if GATED:\n        result = sigmoid(result)\n", ""),
    "a gate of each part": (PROJECTED, "    if parts == 1:\n        logit", "    if parts > 0:\n        logit"),
    "a gate's gradient as a logit's": (CONCURRENT, "0, accumulation) * gate * (1 - gate)", "0, accumulation)"),
    "equal sides as one": (CONCURRENT, "tl.where(a == b, grad * 0.5, grad)", "grad"),
    "part of the weight's gradient": (CONCURRENT, "total += tl.load(here + SUMS * length, mask=mask, other=0)", "total = tl.load(here + SUMS * length, mask=mask, other=0)"),
}  # fmt: skip


@needs_ttsem
@pytest.mark.parametrize("bug", NOTICED)
def test_planted_bug_is_noticed(bug, monkeypatch, tmp_path, small_blocks):
    call, right, wrong = NOTICED[bug]
    arguments = formulas.arguments(call, SEVERAL, torch.float32, "channels_last", ties=True)
    if call in (POOL, STATISTICS):  # ties of negative numbers: 0 is larger than all
        arguments = (-1 - arguments[0], *arguments[1:])
    check(call, arguments)
    forget()
    monkeypatch.setattr(triton_impl, "kernels", with_bug(triton_impl.kernels, tmp_path, right, wrong))
    with pytest.raises(AssertionError):
        check(call, arguments)
