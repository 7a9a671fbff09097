"""The operators of cbam and scse on the CPU: every instruction-set level, threads, pieces, NaN, refusals."""

from __future__ import annotations

import channel_spatial_operators as formulas
import pytest
import torch
from ops import test_channel_spatial_convolution as convolution
from ops import test_channel_spatial_layers as layers
from test_simd_levels import LEVELS

from attnkernels import _load, testing
from attnkernels.ops.channel_spatial import operators

pytestmark = pytest.mark.skipif(not _load.is_loaded("cpu"), reason=_load.why_missing("cpu"))

CALLS = formulas.CALLS
REDUCTIONS = [call for call in CALLS if call.name in ("pool", "statistics")]
# Row ends of many lengths in both layouts, and more rows than are summed at a time.
SIZES = [(2, 12, 5, 7), (1, 17, 3, 3), (2, 70, 9, 11), (1, 1, 1, 1), (2, 33, 1, 67), (1, 130, 2, 2), (2, 9, 8, 8)]


@pytest.fixture(params=LEVELS)
def level(request):
    before = torch.ops.attnkernels.simd_level()
    torch.ops.attnkernels.set_simd_level(request.param)
    yield request.param
    torch.ops.attnkernels.set_simd_level(before)


def run(call, arguments, threads=1):
    torch.set_num_threads(threads)  # of the operator alone: the formulas are slower for it where other tests run
    with testing.uninitialized_is_nan():
        got = getattr(operators, call.name.upper()).on["cpu"](*arguments)
    torch.set_num_threads(1)
    return [got] if isinstance(got, torch.Tensor) else list(got)


def check(call, arguments, threads=1):
    got, want = run(call, arguments, threads), getattr(formulas, call.name)(*arguments)
    for one, wanted in zip(got, [want] if isinstance(want, torch.Tensor) else want, strict=True):
        testing.assert_close_to_float64(one, wanted, f"{call} {list(arguments[0].shape)}")
    return got


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_levels(level, dtype, layout):
    for i, call in enumerate(CALLS):
        for shape in (SIZES[i % len(SIZES)], SIZES[(i + 3) % len(SIZES)]):
            check(call, formulas.arguments(call, shape, dtype, layout, seed=i, ties=i % 2))


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_layers_and_convolution(level, dtype):
    for size in layers.SIZES:
        layers.test_layers("cpu", "cpu", size, dtype)
    for size in convolution.SIZES:
        convolution.test_convolution("cpu", "cpu", *size, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_of_layers_and_convolution(dtype):
    """Threads share the outputs of a layer, some of which have none, and the rows of a convolution."""
    torch.set_num_threads(2)
    for size in ((70, 2, 520, 65), (90, 3, 4000, 1), (2, 2, 600, 0)):
        layers.test_layers("cpu", "cpu", size, dtype)
    for size in ((1, 70, 45, 5), (5, 56, 56, 7)):
        convolution.test_convolution("cpu", "cpu", *size, dtype)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_threads(samples, layout):
    """Threads share a sample (1, 3) or take whole ones (8); twice the same bits."""
    side = {1: 21, 3: 13, 8: 7}[samples]
    for i, call in enumerate(CALLS):
        arguments = formulas.arguments(call, (samples, 101, side, side), torch.float32, layout, seed=i, ties=i % 2)
        got = check(call, arguments, threads=2)
        assert all(torch.equal(a, b) for a, b in zip(got, run(call, arguments, threads=2), strict=True))


@pytest.mark.parametrize(("layout", "shape"), [("contiguous", (1, 67, 41, 53)), ("channels_last", (1, 2101, 11, 6))])
@pytest.mark.parametrize("threads", [1, 2])
def test_pieces(layout, shape, threads):
    """Rows of more than one piece, columns of more rows than are summed at a time, equal maxima in several."""
    for call in CALLS:
        if call.name != "scale":
            check(call, formulas.arguments(call, shape, torch.float32, layout, ties=True), threads)


@pytest.mark.parametrize(("layout", "dtype"), [("contiguous", torch.float32), ("channels_last", torch.bfloat16)])
def test_streaming(layout, dtype):
    """Outputs of 9 MB are written past the caches; rows that no cache line starts with."""
    side = 75 if dtype is torch.float32 else 107
    for name in ("scale", "grad_x", "grad_concurrent"):
        call = next(call for call in CALLS if call.name == name and len(call.given) > 1)
        check(call, formulas.arguments(call, (1, 401, side, side), dtype, layout, ties=True))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_extremes(level, layout):
    """The first NaN, the first of equal infinities, and of a row of -inf the first element."""
    shape = (2, 90, 13, 29)
    for seed, call in ((seed, call) for seed in range(3) for call in REDUCTIONS):
        x, *rest = formulas.arguments(call, shape, torch.float32, layout, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        if seed == 0:
            x[torch.rand(shape, generator=generator) < 0.001] = float("nan")
        elif seed == 1:
            x[torch.rand(shape, generator=generator) < 0.01] = float("inf")
        else:
            x[:, 3:80:7] = -float("inf")
            x[:, :, 5:30:6] = -float("inf")
        check(call, (x, *rest))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_sums_of_many(level, layout):
    """Sums over 50176 pixels of numbers of one sign, to 1e-5 of each."""
    for call in (CALLS[0], CALLS[1], formulas.Call("grad_gates", ("channel_gate", "spatial_gate"), (0, 3))):
        arguments = formulas.arguments(call, (1, 6, 224, 224), torch.float32, layout)
        arguments = [x.abs() if isinstance(x, torch.Tensor) else x for x in arguments]
        check(call, arguments)


def test_maps_that_are_not_dense():
    for call in CALLS:
        arguments = formulas.arguments(call, (2, 12, 6, 7), torch.float32, "contiguous")
        want = run(call, arguments)
        strided = [
            torch.stack([x, x], -1)[..., 0] if isinstance(x, torch.Tensor) and x.dim() > 1 else x for x in arguments
        ]
        assert all(torch.equal(a, b) for a, b in zip(run(call, strided), want, strict=True))


X = torch.randn(2, 3, 4, 5)
GATE, SPATIAL = torch.rand(2, 3), torch.rand(2, 4, 5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pool", (X[0], None, None, 1), r"pool: x: expected a tensor \[N, C, H, W\], got 3 dimensions"),
        ("pool", (X[:, :0], None, None, 1), "pool: x: expected at least one channel and one pixel"),
        ("pool", (X.int(), None, None, 1), "pool: expected float32, float64, float16 or bfloat16"),
        ("pool", (X, torch.ones(4), None, 1), r"pool: spatial_weight: expected a tensor \[3\] of x's dtype"),
        ("pool", (X, None, torch.ones(1), 1), "pool: spatial_bias: expected None, as there is no spatial_weight"),
        ("pool", (X, None, None, 5), "pool: pools: expected 0 to 4, got 5"),
        ("pool", (X.new_empty(1).expand(1, 1, 4096, 4096), None, None, 2), "fewer than 16777216 pixels .* 16777216"),
        ("statistics", (X, GATE.double(), 0), r"statistics: channel_gate: expected a tensor \[2, 3\]"),
        ("statistics", (X, GATE, 3), "statistics: ties: expected 0, 1 or 2, got 3"),
        ("scale", (X, None, None, 0, 0), "scale: channel_gate: expected it or spatial_gate, got neither"),
        ("scale", (X, GATE, SPATIAL[:1], 0, 0), r"scale: spatial_gate: expected a tensor \[2, 4, 5\]"),
        ("scale", (X, GATE, SPATIAL, 3, 0), "scale: merge: expected 0, 1 or 2, got 3"),
        ("grad_gates", (X[:1], X, GATE, SPATIAL, 0, 1), "grad_gates: grad_y: expected shape, dtype and device of x"),
        ("grad_gates", (X, X, GATE, None, 0, 2), "grad_gates: needs: expected gates that there are, got 2"),
        ("grad_gates", (X, X, GATE, SPATIAL, 0, 4), "grad_gates: needs: expected 0 to 3, got 4"),
        ("grad_x", (X, X, GATE, SPATIAL, *[None] * 3, GATE[:, None], None, None, 0, 0), "expected it and pooled"),
        ("grad_x", (X, X, GATE, SPATIAL, *[None] * 3, *[GATE[:, None]] * 2, GATE, 0, 0), r"pooled \[N, 2, C\] alone"),
        ("grad_x", (X, X, GATE, SPATIAL, None, None, SPATIAL, *[None] * 3, 0, 0), "expected it, statistics and marks"),
        ("grad_concurrent", (X, X, GATE, SPATIAL, None, SPATIAL, torch.ones(3), 0, 3), "merge: expected 1 or 2"),
    ],
)
def test_refusals(name, arguments, message):
    with pytest.raises(RuntimeError, match=f"channel_spatial_{name}: .*{message.removeprefix(name + ': ')}"):
        getattr(operators, name.upper()).on["cpu"](*arguments)
