"""The criss-cross functions: the reference against the definition, options, memory, bad input, the CPU's levels.

(Numbers of every backend, layouts, strides, numerical gradients, opcheck and compile: tests/test_ops.py.)
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import attnkernels
from attnkernels import criss_cross_affinity, criss_cross_aggregate, criss_cross_attention, testing
from attnkernels._load import is_loaded
from attnkernels.ops.criss_cross.schema import ATTENTION

needs_cpu_library = pytest.mark.skipif(not is_loaded("cpu"), reason="the CPU library was not built")
SHAPES = [(3, 4), (1, 4), (4, 1), (1, 1), (5, 2), (2, 3, 4), (3, 1, 2), (1, 3, 2), (1, 1, 1)]


def maps(*space, n=2, reduced=3, channels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, c, *space, dtype=torch.float64, generator=generator).to(dtype)
        for c in (reduced, reduced, channels)
    ]


def neighbours(pixel, space):
    """The pixels that one attends to, in the order of the affinity: its row, then the other axes without itself."""
    *rest, column = pixel
    row = [(*rest, j) for j in range(space[-1])]
    others = []
    for axis in reversed(range(len(space) - 1)):
        others += [(*pixel[:axis], i, *pixel[axis + 1 :]) for i in range(space[axis]) if i != pixel[axis]]
    return row + others


def by_definition(query, key, value):
    """Affinity and attention by a loop over the set of each pixel."""
    n, _, *space = value.shape
    out, affinity = torch.zeros_like(value), torch.zeros(n, sum(space) - len(space) + 1, *space, dtype=value.dtype)
    for pixel in torch.cartesian_prod(*map(torch.arange, space)).tolist():
        keys = neighbours(tuple(pixel), space)
        assert len(set(keys)) == len(keys) == affinity.shape[1]
        here = (slice(None), slice(None), *pixel)
        energy = torch.stack([(query[here] * key[(slice(None), slice(None), *k)]).sum(1) for k in keys], 1)
        affinity[here] = energy
        weights = energy.softmax(1)
        out[here] = sum(weights[:, i, None] * value[(slice(None), slice(None), *k)] for i, k in enumerate(keys))
    return affinity, out


@pytest.mark.parametrize("space", SHAPES, ids=str)
def test_reference_is_the_definition(space):
    query, key, value = maps(*space)
    affinity, out = by_definition(query, key, value)
    reference = attnkernels.reference
    torch.testing.assert_close(reference.criss_cross_attention(query, key, value), out, rtol=1e-13, atol=1e-13)
    if len(space) == 2:
        torch.testing.assert_close(reference.criss_cross_affinity(query, key), affinity, rtol=1e-13, atol=1e-13)
        aggregated = reference.criss_cross_aggregate(affinity.softmax(1), value)
        torch.testing.assert_close(aggregated, out, rtol=1e-13, atol=1e-13)


def test_affinity_and_aggregate_make_the_attention():
    query, key, value = (x.requires_grad_() for x in maps(5, 7))
    parts = criss_cross_aggregate(criss_cross_affinity(query, key).softmax(1), value)
    whole = criss_cross_attention(query, key, value)
    torch.testing.assert_close(parts, whole)
    for a, b in zip(
        torch.autograd.grad(parts.square().sum(), (query, key, value)),
        torch.autograd.grad(whole.square().sum(), (query, key, value)), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


ONE = torch.ones(2, 3, 4, 5)
BAD = [
    ("query of rank 3", lambda: criss_cross_attention(ONE[0], ONE, ONE), ValueError, r"query: expected a tensor \[N, C, H, W\] or \[N, C, D, H, W\], got 3 dim"),
    ("query None", lambda: criss_cross_attention(None, ONE, ONE), TypeError, "query: expected a tensor, got None"),
    ("query integer", lambda: criss_cross_attention(ONE.long(), ONE, ONE), TypeError, "query: expected float32"),
    ("key channels", lambda: criss_cross_attention(ONE, ONE[:, :2], ONE), ValueError, r"key: expected shape \[2, 3, 4, 5\], got \[2, 2, 4, 5\]"),
    ("value size", lambda: criss_cross_attention(ONE, ONE, ONE[..., :4]), ValueError, r"value: expected shape \[2, C, 4, 5\], got \[2, 3, 4, 4\]"),
    ("value batch", lambda: criss_cross_attention(ONE, ONE, ONE[:1]), ValueError, "value: expected shape"),
    ("value rank", lambda: criss_cross_attention(ONE, ONE, ONE[0, 0, 0]), ValueError, "value: expected shape"),
    ("value dtype", lambda: criss_cross_attention(ONE, ONE, ONE.half()), TypeError, "value: expected dtype torch.float32 as query"),
    ("value device", lambda: criss_cross_attention(ONE, ONE, ONE.to("meta")), ValueError, "value: expected device cpu as query"),
    ("backend", lambda: criss_cross_attention(ONE, ONE, ONE, backend="gpu"), ValueError, "backend: expected one of"),
    ("backend device", lambda: criss_cross_attention(ONE, ONE, ONE, backend="cuda"), ValueError, "criss_cross_attention: backend: expected one that can run here"),
    ("volume", lambda: criss_cross_affinity(ONE[None], ONE[None]), ValueError, r"query: expected a tensor \[N, C, H, W\], got 5 dim"),
    ("vector", lambda: criss_cross_affinity(ONE[0, 0, 0], ONE), ValueError, r"query: expected a tensor \[N, C, H, W\], got 1 dim"),
    ("affinity key", lambda: criss_cross_affinity(ONE, ONE[..., :4]), ValueError, r"key: expected shape \[2, 3, 4, 5\]"),
    ("no columns", lambda: criss_cross_affinity(ONE[..., :0], ONE[..., :0]), ValueError, "with H and W of at least 1"),
    ("affinity length", lambda: criss_cross_aggregate(torch.ones(2, 9, 4, 5), ONE), ValueError, r"affinity: expected shape \[2, 8, 4, 5\], got \[2, 9, 4, 5\]"),
    ("affinity dtype", lambda: criss_cross_aggregate(torch.ones(2, 8, 4, 5).double(), ONE), TypeError, "affinity: expected dtype"),
    ("aggregate volume", lambda: criss_cross_aggregate(ONE, ONE[None]), ValueError, "value: expected a tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
    assert criss_cross_attention(ONE, ONE, ONE).shape == ONE.shape  # everything is usable afterwards


@needs_cpu_library
def test_operators_check_what_they_read():
    operators = torch.ops.attnkernels
    with pytest.raises(RuntimeError, match="key: expected 3 channels"):
        operators.criss_cross_attention(ONE, ONE[..., :4], ONE)
    with pytest.raises(RuntimeError, match="affinity: expected 8 channels"):
        operators.criss_cross_aggregate(ONE, ONE)
    with pytest.raises(RuntimeError, match="log_sum_exp: expected one number per pixel"):
        operators.criss_cross_attention_backward(ONE, ONE, ONE, ONE, ONE, ONE[:, 0, 1:], 7)
    with pytest.raises(RuntimeError, match="grad_out: expected 3 channels"):
        operators.criss_cross_attention_backward(ONE[:, :2], ONE, ONE, ONE, ONE, ONE[:, 0], 7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_not_finite_is_as_in_the_reference(which, bad, layout):
    values = [x.contiguous(memory_format=layout) for x in maps(5, 6, dtype=torch.float32)]
    values[which][1, 1, 2, 3] = bad
    got, want = criss_cross_attention(*values), attnkernels.reference.criss_cross_attention(*values)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got[0].isfinite().all()
    assert not got[1].isfinite().all()


def test_energies_that_are_all_minus_infinity_on_one_axis():
    """The pixel's column counts for nothing there, its row alone makes the softmax, and the other way round."""
    query, key, value = (x.abs() + 0.1 for x in maps(3, 4, n=1, reduced=1, dtype=torch.float32))
    key[0, 0, 1:, 2] = -torch.inf  # as seen from (0, 2), whose column is (1, 2) and (2, 2)
    got, want = criss_cross_attention(query, key, value), attnkernels.reference.criss_cross_attention(query, key, value)
    assert want[..., 0, 2].isfinite().all()
    torch.testing.assert_close(got, want, equal_nan=True)


def test_large_energies_do_not_overflow():
    query, key, value = (x.requires_grad_() for x in maps(9, 8, dtype=torch.float32))
    scaled = query * 100
    got, want = (f(scaled, key, value) for f in (criss_cross_attention, attnkernels.reference.criss_cross_attention))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), (query, key, value)))


@pytest.mark.parametrize("formats", [(0, 1, 1), (1, 0, 0), (0, 1, 0)])
def test_maps_in_different_memory_formats(formats):
    chosen = (torch.contiguous_format, torch.channels_last)
    values = [x.contiguous(memory_format=chosen[f]).requires_grad_() for x, f in zip(maps(4, 3), formats, strict=True)]
    got, want = criss_cross_attention(*values), attnkernels.reference.criss_cross_attention(*values)
    assert got.is_contiguous(memory_format=chosen[formats[2]])
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), values), torch.autograd.grad(want.square().sum(), values), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    values = [x.requires_grad_() for x in maps(4, 3, dtype=torch.float32)]
    values[2] = values[2].detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = criss_cross_attention(*values)
        assert criss_cross_affinity(*values[:2]).dtype == dtype
    assert y.dtype == dtype
    grads = torch.autograd.grad(y.float().square().sum(), values)
    assert [g.dtype for g in grads] == [torch.float32, torch.float32, dtype]
    want = criss_cross_attention(*(x.to(dtype).double() for x in values))
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)


def test_the_compiler_keeps_the_operator():
    targets = []

    def look(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    values = maps(4, 3, dtype=torch.float32)
    got = torch.compile(criss_cross_attention, fullgraph=True, backend=look)(*values)
    torch.testing.assert_close(got, criss_cross_attention(*values))
    if is_loaded("cpu"):
        assert any("criss_cross_attention" in target for target in targets)


LEVELS = ["baseline", "avx2", "avx512", "avx512_bf16"]


@needs_cpu_library
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_instruction_set_level(level, layout, dtype):
    before = torch.ops.attnkernels.simd_level()
    try:
        torch.ops.attnkernels.set_simd_level(level)
    except RuntimeError:
        pytest.skip(f"this CPU has no {level}")
    try:
        for op in ("criss_cross_attention", "criss_cross_affinity", "criss_cross_aggregate"):
            for case in testing.CASES[op]:
                if case.small:
                    testing.check_against_float64(case, "cpu", "cpu", dtype, layout)
    finally:
        torch.ops.attnkernels.set_simd_level(before)


@needs_cpu_library
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_number_of_threads_does_not_change_a_bit(layout):
    values = [
        x.contiguous(memory_format=layout) for x in maps(67, 45, n=1, reduced=24, channels=64, dtype=torch.float32)
    ]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        inputs = [x.clone().requires_grad_() for x in values]
        out = criss_cross_attention(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batches_take_turns_in_the_workspace_of_16_bit_maps(dtype):
    """More partial sums than the workspace of 16 MiB holds: 9 samples of 2.2 MiB."""
    values = maps(33, 34, n=9, reduced=8, channels=512, dtype=dtype)
    whole = criss_cross_attention(*values)
    for i in (0, 6, 7, 8):
        assert torch.equal(whole[i], criss_cross_attention(*(x[i : i + 1] for x in values))[0])


_MEMORY = """
import torch, attnkernels
torch.set_num_threads(1)
query, key, value = (torch.randn(1, c, 97, 97).contiguous(memory_format=torch.channels_last).requires_grad_() for c in (64, 64, 512))
def status(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))
small = [x.detach()[:, :, :8, :8].clone().requires_grad_() for x in (query, key, value)]
small_out = attnkernels.criss_cross_attention(*small)
torch.autograd.grad(small_out, small, torch.ones_like(small_out))  # imports 35 MiB of modules the first time
grad_out = torch.ones(1, 512, 97, 97).contiguous(memory_format=torch.channels_last)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
out = attnkernels.criss_cross_attention(query, key, value)
held = status("VmRSS") - before
grads = torch.autograd.grad(out, (query, key, value), grad_out)
print(held, status("VmHWM") - before)
"""


@needs_cpu_library
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's own account of memory")
def test_memory_held_and_at_most():
    """97 x 97, 64 and 512 channels: the result is 18.4 MiB, the gradients 23; energies would be 7 MiB, and more copies."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, env=environment, check=True)
    held, most = map(float, done.stdout.split())
    assert held <= 20
    assert most <= 45


@pytest.mark.parametrize(
    ("dtype", "side", "trains", "first"),
    [
        (torch.bfloat16, 97, False, "cuda"),
        (torch.float16, 128, False, "cuda"),
        (torch.bfloat16, 97, True, "cuda"),
        (torch.bfloat16, 129, False, "triton"),
        (torch.bfloat16, 129, True, "triton"),
        (torch.float32, 97, True, "cuda"),
        (torch.float32, 129, False, "cuda"),
    ],
)
def test_auto_prefers_on_a_gpu_what_was_measured_to_be_faster(dtype, side, trains, first):
    value = torch.empty(1, 8, side, 4, dtype=dtype, device="meta", requires_grad=trains)
    assert ATTENTION.on_gpu(value)[0] == first
