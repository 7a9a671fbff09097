"""The CPU kernels at every instruction-set level of this machine: numbers, conversions, row ends, threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import attnkernels
from attnkernels import _load, testing

pytestmark = pytest.mark.skipif(not _load.is_loaded("cpu"), reason=_load.why_missing("cpu"))

NAMES = ("baseline", "avx2", "avx512", "avx512_bf16")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# H, W, C: whole vectors, row ends of every length from 1 to 16, one pixel, one channel, several staging blocks
SIZES = [(7, 7, 24), (1, 1, 5), (3, 1, 1), *((1, 16 + i, 16 + i) for i in range(16)), (9, 11, 130), (40, 33, 9)]


def levels() -> list[str]:
    """The levels that this machine has."""
    if not _load.is_loaded("cpu"):
        return []
    before = torch.ops.attnkernels.simd_level()
    torch.ops.attnkernels.set_simd_level("auto")
    best = torch.ops.attnkernels.simd_level()
    torch.ops.attnkernels.set_simd_level(before)
    return list(NAMES[: NAMES.index(best) + 1])


LEVELS = levels()


@pytest.fixture(params=LEVELS)
def level(request):
    before = torch.ops.attnkernels.simd_level()
    torch.ops.attnkernels.set_simd_level(request.param)
    yield request.param
    torch.ops.attnkernels.set_simd_level(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make(samples, channels, hidden, height, width, dtype, layout, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(samples, channels, height, width).contiguous(memory_format=LAYOUTS[layout])
    residual = normal(samples, channels, height, width).contiguous(memory_format=LAYOUTS[layout])
    weights = normal(hidden, channels), normal(hidden), normal(channels, hidden), normal(channels)
    return (x, *weights), residual


def forward_and_gradients(args, residual, backend, grad_output, **options):
    leaves = [value.detach().clone().requires_grad_() for value in (*args, residual)]
    y = attnkernels.squeeze_excite(*leaves[:-1], residual=leaves[-1], backend=backend, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_output)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_row_end(level, dtype, layout):
    for i, (height, width, channels) in enumerate(SIZES):
        options = {"activation": ("relu", "silu")[i % 2], "gate": ("sigmoid", "hard_sigmoid")[i // 2 % 2]}
        args, residual = make(5, channels, 1 + i, height, width, dtype, layout)
        grad_output = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        with testing.uninitialized_is_nan():
            got = forward_and_gradients(args, residual, "cpu", grad_output, **options)
        args64, residual64 = [x.double() for x in args], residual.double()
        want = forward_and_gradients(args64, residual64, "reference", grad_output.double(), **options)
        for what, actual, expected in zip(("y", "x", "w1", "b1", "w2", "b2", "residual"), got, want, strict=True):
            testing.assert_close_to_float64(actual, expected, f"{height}x{width}x{channels} {what}")


def check_with_relu(args, residual):
    """Against the reference, and twice the same bits. The ReLU's mask comes from the output, rounded to its dtype."""
    grad_output = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(1)).to(args[0].dtype)
    got = forward_and_gradients(args, residual, "cpu", grad_output, output_activation="relu")
    again = forward_and_gradients(args, residual, "cpu", grad_output, output_activation="relu")
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    leaves = [value.double().requires_grad_() for value in (*args, residual)]
    y = attnkernels.squeeze_excite(*leaves[:-1], residual=leaves[-1], backend="reference")
    testing.assert_close_to_float64(got[0], y.detach().relu(), "y")
    want = torch.autograd.grad(y, leaves, grad_output.double() * (got[0] > 0))
    for what, actual, expected in zip(("x", "w1", "b1", "w2", "b2", "residual"), got[1:], want, strict=True):
        testing.assert_close_to_float64(actual, expected, what)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_threads(level, threads, layout, samples):
    """Large enough for two threads, which share a sample (1, 3) or take groups of samples (8)."""
    side = {1: 23, 3: 13, 8: 9}[samples]
    check_with_relu(*make(samples, 101, 7, side, side, torch.float32, layout))


@pytest.mark.parametrize(("layout", "dtype"), [("NCHW", torch.float32), ("NHWC", torch.bfloat16)])
def test_streaming(level, layout, dtype):
    """Outputs of 9 MB are written past the caches; rows and planes that no cache line starts with."""
    side = 75 if dtype is torch.float32 else 107
    check_with_relu(*make(1, 401, 7, side, side, dtype, layout))


INPUT_ACTIVATIONS = (lambda z: z, F.relu, F.silu, lambda z: z * (z / 6 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("normalised", [True, False])
def test_in_place_at_every_row_end(level, normalised, dtype, layout):
    for i, (height, width, channels) in enumerate(SIZES):
        (x, *weights), residual = make(5, channels, 1 + i, height, width, dtype, layout)
        mean, scale, shift = (torch.linspace(a, b, channels).to(dtype) for a, b in ((-1, 1), (2, 1), (-1, 2)))
        variance = torch.linspace(0.5, 2, channels).to(dtype)
        if i % 3 == 1:
            scale = shift = None  # affine=False
        if not normalised:
            mean = variance = scale = shift = None
        residual, output_activation = (residual, 1) if i % 2 else (None, 0)
        got = x.clone()
        torch.ops.attnkernels.squeeze_excite_(
            got, mean, variance, scale, shift, 1e-3, i % 4, *weights, residual, 1, 1, output_activation
        )
        x, mean, variance, scale, shift, residual, *weights = (
            None if value is None else value.double() for value in (x, mean, variance, scale, shift, residual, *weights)
        )
        z = INPUT_ACTIVATIONS[i % 4](F.batch_norm(x, mean, variance, scale, shift, eps=1e-3) if normalised else x)
        want = attnkernels.squeeze_excite(
            z, *weights, activation="silu", gate="hard_sigmoid", residual=residual,
            output_activation="relu" if output_activation else None, backend="reference",
        )  # fmt: skip
        testing.assert_close_to_float64(got, want, f"{height}x{width}x{channels}", rounded_inside=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [1, 3, 8])
@pytest.mark.parametrize("normalised", [True, False])
def test_in_place_with_threads(level, threads, layout, samples, normalised):
    side = {1: 23, 3: 13, 8: 9}[samples]
    (x, *weights), residual = make(samples, 101, 7, side, side, torch.float32, layout)
    norm = (torch.linspace(-1, 1, 101), torch.linspace(0.5, 2, 101), None, None) if normalised else (None,) * 4
    results = [x.clone(), x.clone()]
    for result in results:
        torch.ops.attnkernels.squeeze_excite_(result, *norm, 1e-5, 2, *weights, residual, 0, 0, 1)
    assert torch.equal(*results)
    x, residual, *weights = (value.double() for value in (x, residual, *weights))
    z = F.silu(F.batch_norm(x, *(value.double() for value in norm[:2])) if normalised else x)
    want = attnkernels.squeeze_excite(
        z, *weights, residual=residual, output_activation="relu", backend="reference"
    )  # fmt: skip
    testing.assert_close_to_float64(results[0], want, "y")


def pass_through(x, residual):
    """x + residual in float32, rounded once: gates of exactly 1."""
    channels = x.shape[1]
    weight, bias = x.new_zeros(channels, 1), x.new_full((channels,), 100)
    reduce = x.new_zeros(1, channels)
    return attnkernels.squeeze_excite(
        x, reduce, None, weight, bias, gate="hard_sigmoid", residual=residual, backend="cpu"
    )


def assert_same_bits(got, want):
    assert torch.equal(got.isnan(), want.isnan())
    bits = torch.int32 if got.dtype is torch.float32 else torch.int16
    same = got.view(bits) == want.view(bits)
    assert (same | want.isnan()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_values_survive_load_and_store(level, dtype, layout):
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 64, 32, 32)
    values = values.contiguous(memory_format=LAYOUTS[layout])
    got = pass_through(torch.zeros_like(values), values)
    assert_same_bits(got, torch.where(values == 0, 0.0, values))  # -0 + 0 is 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_nearest_even(level, dtype):
    """Sums of every value with half an ulp, a quarter and three quarters of it, and with random others."""
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    values = torch.where(values.isfinite(), values, 0)
    eps = torch.finfo(dtype).eps
    for fraction in (0.25, 0.5, 0.75, 1.5):
        exponent = torch.floor(torch.log2(values.float().abs().clamp_min(torch.finfo(dtype).tiny)))
        delta = (torch.exp2(exponent) * eps * fraction).to(dtype)
        for other in (delta, -delta, values[torch.randperm(65536, generator=torch.Generator().manual_seed(0))]):
            x, residual = values.view(1, -1, 1, 1), other.view(1, -1, 1, 1)  # means that do not overflow
            assert_same_bits(pass_through(x, residual), (x.float() + residual.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential(level, dtype):
    """sigmoid(v) is exp(v) for large negative v; down to the smallest number, up to 1, NaN kept."""
    lowest = -88.0 if dtype is torch.float32 else -708.0
    v = torch.cat([torch.linspace(lowest, 40, 20001, dtype=dtype), torch.tensor([0.0, -0.0], dtype=dtype)])
    extremes = torch.tensor([float("-inf"), -1e30, -800, 800, 1e30, float("inf"), float("nan")], dtype=dtype)
    bias = torch.cat([v, extremes])
    x = torch.ones(1, len(bias), 1, 1, dtype=dtype)
    got = attnkernels.squeeze_excite(
        x, x.new_zeros(1, len(bias)), None, x.new_zeros(len(bias), 1), bias, backend="cpu"
    ).flatten()
    n = len(v)
    if dtype is torch.float32:
        want = torch.sigmoid(v.double())
        assert ((got[:n].double() - want) / want).abs().max() < 3 * torch.finfo(dtype).eps
    else:
        want = torch.sigmoid(v)
        assert ((got[:n] - want) / want).abs().max() < 6 * torch.finfo(dtype).eps  # torch's own sigmoid rounds too
    assert torch.equal(got[n:-1], torch.tensor([0, 0, 0, 1, 1, 1], dtype=dtype))
    assert got[-1].isnan()


def test_levels_agree_up_to_rounding():
    args, residual = make(3, 33, 8, 7, 9, torch.float32, "NCHW")
    results = []
    for name in LEVELS:
        torch.ops.attnkernels.set_simd_level(name)
        assert torch.ops.attnkernels.simd_level() == name
        results.append(attnkernels.squeeze_excite(*args, residual=residual, backend="cpu"))
    torch.ops.attnkernels.set_simd_level("auto")
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["baseline", "sse9"])
def test_forcing_by_environment(name):
    code = "import torch, attnkernels; print(torch.ops.attnkernels.simd_level())"
    environment = {**os.environ, "ATTNKERNELS_SIMD": name}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if name == "baseline":
        assert found.stdout.strip() == name, found.stderr
    else:
        assert found.returncode
        assert "ATTNKERNELS_SIMD: expected auto, baseline, avx2, avx512 or avx512_bf16, got sse9" in found.stderr


def test_levels_beyond_the_cpu_and_unknown_levels_raise():
    before = torch.ops.attnkernels.simd_level()
    with pytest.raises(RuntimeError, match="expected auto, baseline, avx2, avx512 or avx512_bf16, got avx1024"):
        torch.ops.attnkernels.set_simd_level("avx1024")
    for name in NAMES[len(LEVELS) :]:
        with pytest.raises(RuntimeError, match="this CPU has instructions up to level"):
            torch.ops.attnkernels.set_simd_level(name)
    assert torch.ops.attnkernels.simd_level() == before
