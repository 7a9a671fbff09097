"""The Triton backend of criss_cross, its launchers called directly, against float64."""

from __future__ import annotations

import pytest
import torch

from attnkernels import reference, testing
from attnkernels.ops.criss_cross import triton_impl

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# (N, Cq, C, extent): lines of several blocks; rectangles; lines of one pixel; three dimensions
SHAPES = [(1, 5, 20, (7, 9)), (1, 8, 16, (35, 4)), (2, 3, 40, (1, 6)), (1, 4, 8, (6, 1)), (1, 4, 6, (3, 4, 5))]
CALLS = [(SHAPES[0], dtype, layout) for dtype in DTYPES for layout in ("contiguous", "channels_last")]
CALLS += [(shape, torch.float32, "channels_last") for shape in SHAPES[1:]]


def arguments(n, query_channels, channels, extent, dtype, layout):
    generator = torch.Generator().manual_seed(0)
    last = torch.channels_last if len(extent) == 2 else torch.channels_last_3d

    def normal(c):
        x = torch.randn((n, c, *extent), dtype=torch.float64, generator=generator).to(dtype).to("cuda")
        return x.contiguous(memory_format=last if layout == "channels_last" else torch.contiguous_format)

    return normal(query_channels), normal(query_channels), normal(channels), normal(channels)


def double(*tensors):
    return [x.cpu().double().requires_grad_() for x in tensors]


@pytest.mark.parametrize(("shape", "dtype", "layout"), CALLS, ids=str)
def test_attention(shape, dtype, layout):
    query, key, value, grad_out = arguments(*shape, dtype, layout)
    inputs = double(query, key, value)
    want = reference.criss_cross_attention(*inputs)
    out, log_sum_exp = triton_impl.criss_cross_attention(query, key, value)
    testing.assert_close_to_float64(out, want, "out", rounded_inside=dtype.itemsize == 2)
    wants = torch.autograd.grad(want, inputs, grad_out.cpu().double())
    grads = triton_impl.criss_cross_attention_backward(grad_out, query, key, value, out, log_sum_exp, 7)
    largest = max(want_grad.abs().max().item() for want_grad in wants)
    for name, grad, want_grad in zip(("query", "key", "value"), grads, wants, strict=True):
        testing.assert_close_to_float64(grad, want_grad, name, rounded_inside=True, largest=largest)
    assert [g.numel() for g in triton_impl.criss_cross_attention_backward(
        grad_out, query, key, value, out, log_sum_exp, 2)] == [0, key.numel(), 0]  # fmt: skip


@pytest.mark.parametrize(("shape", "dtype", "layout"), [c for c in CALLS if len(c[0][3]) == 2], ids=str)
def test_affinity_and_aggregate(shape, dtype, layout):
    query, key, value, grad_out = arguments(*shape, dtype, layout)
    q, k, v = double(query, key, value)
    want = reference.criss_cross_affinity(q, k)
    affinity = triton_impl.criss_cross_affinity(query, key)
    testing.assert_close_to_float64(affinity, want, "affinity")
    grad_affinity = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    wants = torch.autograd.grad(want, (q, k), grad_affinity.double())
    grads = triton_impl.criss_cross_affinity_backward(grad_affinity.to("cuda"), query, key, 3)
    for grad, want_grad in zip(grads, wants, strict=True):
        testing.assert_close_to_float64(grad, want_grad, "gradient of the affinity")
    (a,) = double(affinity)
    want = reference.criss_cross_aggregate(a, v)
    testing.assert_close_to_float64(triton_impl.criss_cross_aggregate(affinity, value), want, "aggregate")
    wants = torch.autograd.grad(want, (a, v), grad_out.cpu().double())
    grads = triton_impl.criss_cross_aggregate_backward(grad_out, affinity, value, 3)
    for grad, want_grad in zip(grads, wants, strict=True):
        testing.assert_close_to_float64(grad, want_grad, "gradient of the aggregate")
