"""The Triton backend of selective_kernel, its launchers called directly, against float64."""

from __future__ import annotations

import pytest
import torch

from attnkernels import reference, testing
from attnkernels.ops._registry import accumulation_dtype
from attnkernels.ops.selective_kernel import triton_impl

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# (branches, N, C, H, W): several programs each; lengths that no vector divides; one pixel; one channel
SHAPES = [(2, 2, 24, 9, 7), (3, 1, 70, 7, 7), (2, 3, 5, 1, 1), (2, 1, 1, 14, 14), (8, 1, 16, 4, 4), (2, 1, 8, 40, 33)]


# Every dtype and layout on the first shape; the other shapes in float32.
CALLS = [(SHAPES[0], dtype, layout) for dtype in DTYPES for layout in ("contiguous", "channels_last", "stacked")]
CALLS += [(shape, torch.float32, layout) for shape in SHAPES[1:] for layout in ("contiguous", "channels_last")]


def arguments(branches, n, c, h, w, dtype, layout):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    maps = [normal(n, c, h, w).to(memory_format=memory_format) for _ in range(branches + 1)]
    if layout == "stacked":
        stack = torch.stack(maps[:-1], 1)
        maps = [*stack.to("cuda").unbind(1), maps[-1].to("cuda")]
    maps = [x.to("cuda") for x in maps]
    return maps[:-1], maps[-1], normal(n, branches, c).to("cuda"), normal(n, c).to("cuda")


def double(x):
    return x.cpu().double()


@pytest.mark.parametrize(("shape", "dtype", "layout"), CALLS, ids=str)
def test_numbers(shape, dtype, layout):
    branches, grad_y, logits, grad_pooled = arguments(*shape, dtype, layout)
    maps, dy, z = [double(b) for b in branches], double(grad_y), double(logits).requires_grad_()
    pixels = dy[0, 0].numel()
    testing.assert_close_to_float64(triton_impl.pooled_sum(branches), reference.pooled_sum(maps), "pooled")
    want = reference.select_branches(maps, z)
    y, weights = triton_impl.select_branches(branches, logits)
    assert weights.dtype == accumulation_dtype(dtype)
    testing.assert_close_to_float64(y, want, "y")
    testing.assert_close_to_float64(weights, z.softmax(1), "weights")
    (want_grad,) = torch.autograd.grad(want, z, dy)
    got = triton_impl.select_branches_grad_logits(grad_y, branches, weights)
    testing.assert_close_to_float64(got, want_grad, "grad_logits")
    a, term = z.detach().softmax(1)[..., None, None], double(grad_pooled)[..., None, None] / pixels
    nhwc = layout == "channels_last"
    for pooled in (grad_pooled, None):
        wants = [a[:, m] * dy + (term if pooled is not None else 0) for m in range(len(branches))]
        grads = triton_impl.select_branches_grad_branches(grad_y, weights, pooled, False, nhwc, 0b01)
        testing.assert_close_to_float64(grads[0], wants[0], "grad of the first branch")
        assert all(grad.shape == (0,) for grad in grads[1:])
        (grad,) = triton_impl.select_branches_grad_branches(grad_y, weights, pooled, True, nhwc, 0)
        testing.assert_close_to_float64(grad, torch.stack(wants, 1), "grad of the stacked branches")


def test_branches_of_other_strides_and_layouts():
    branches, _, logits, _ = arguments(2, 2, 12, 6, 5, torch.float32, "contiguous")
    mixed = [branches[0], branches[1].contiguous(memory_format=torch.channels_last)]
    sliced = [torch.cat([b, b], 1)[:, :12] for b in branches]
    y, _ = triton_impl.select_branches(branches, logits)
    for others in (mixed, sliced):
        assert torch.equal(triton_impl.select_branches(others, logits)[0], y)
