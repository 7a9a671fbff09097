"""Copies of feature maps into another layout, against torch's own."""

from __future__ import annotations

import pytest
import torch

import attnkernels
from tools import emulation

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(1, 3, 5), (2, 64, 97), (1, 72, 81), (3, 1, 7), (2, 9, 1), (1, 65, 130), (1, 1, 1), (2, 200, 64)]


@pytest.fixture(scope="module")
def bench():
    return emulation.load()


def transpose(bench, *maps):
    """Maps [N, R, C] as dense [N, C, R], by one call."""
    results = [torch.full_like(x.transpose(1, 2), float("nan"), memory_format=torch.contiguous_format) for x in maps]
    copies = [
        (x.data_ptr(), result.data_ptr(), *x.shape, x.stride(0), x.stride(1))
        for x, result in zip(maps, results, strict=True)
    ]
    bench.module.layout_transpose(maps[0].element_size(), copies)
    return results


def random_map(n, rows, columns, dtype, offset=0):
    """Dense, but starting so many elements into its storage."""
    values = torch.randn(n * rows * columns + offset, generator=torch.Generator().manual_seed(0)).to(dtype)
    return values[offset:].view(n, rows, columns)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copy_is_torchs(bench, shape, dtype):
    for offset in (0, 1, 3):
        x = random_map(*shape, dtype, offset)
        (got,) = transpose(bench, x)
        assert torch.equal(got, x.transpose(1, 2).contiguous())


def test_maps_of_one_call_share_a_launch(bench):
    maps = [random_map(2, channels, 97, torch.bfloat16, channels % 3) for channels in (8, 9, 64, 1)]
    with bench.launches() as launches:
        results = transpose(bench, *maps)
    assert len(launches) == 1
    assert all(torch.equal(got, x.transpose(1, 2).contiguous()) for got, x in zip(results, maps, strict=True))


def test_rows_may_be_part_of_a_larger_map(bench):
    whole = random_map(2, 12, 50, torch.bfloat16)
    for part in (whole[:, 4:8], whole[..., 3:40], whole[:, ::3, 1:], whole[:, :1].expand(-1, 20, -1)):
        (got,) = transpose(bench, part)
        assert torch.equal(got, part.transpose(1, 2).contiguous())


def test_empty_maps_launch_nothing(bench):
    with bench.launches() as launches:
        for shape in ((0, 3, 5), (2, 0, 5), (2, 3, 0)):
            transpose(bench, torch.empty(shape))
    assert not launches


def spatial_copies(launches):
    return [launch.kernel for launch in launches if launch.kernel.startswith("layout_transpose")]


LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("space", [(5, 7), (1, 9), (9, 1), (2, 3, 4), (1, 3, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_criss_cross_copies_contiguous_maps_together(bench, space, dtype):
    generator = torch.Generator().manual_seed(0)
    # What a convolution gives, or a part of its channels.
    query, key = torch.randn(2, 12, *space, generator=generator).to(dtype).chunk(2, dim=1)
    value = torch.randn(2, 10, *space, generator=generator).to(dtype)
    grad = torch.randn(2, 10, *space, generator=generator).to(dtype)
    results = {}
    for memory_format in (torch.contiguous_format, LAYOUTS[value.dim()]):
        maps = [query.detach(), key.detach(), value.detach()]
        if memory_format is not torch.contiguous_format:
            maps = [x.contiguous(memory_format=memory_format) for x in maps]
        maps = [x.requires_grad_() for x in maps]
        with bench.launches() as launches:
            out = attnkernels.criss_cross_attention(*maps, backend="emulated")
        with bench.launches() as backward_launches:
            grads = torch.autograd.grad(out, maps, grad)
        copies = 2 if memory_format is torch.contiguous_format and max(space) > 1 else 0
        assert len(spatial_copies(launches)) == copies
        if copies:
            assert len(spatial_copies(backward_launches)) == copies
        results[memory_format] = [out, *grads]
    for got, want in zip(*results.values(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("channels_last", [False, True])
def test_operands_in_the_other_layout(bench, channels_last):
    ours, other = torch.contiguous_format, torch.channels_last
    if channels_last:
        ours, other = other, ours
    x = torch.randn(2, 16, 5, 7).contiguous(memory_format=ours).requires_grad_()
    residual = torch.randn(2, 16, 5, 7).contiguous(memory_format=other)
    grad = torch.randn(2, 16, 5, 7).contiguous(memory_format=other)
    weights = torch.randn(4, 16), torch.randn(4), torch.randn(16, 4), torch.randn(16)

    def run(backend):
        y = attnkernels.squeeze_excite(x, *weights, residual=residual, backend=backend)
        return y, *torch.autograd.grad(y, [x], grad)

    with bench.launches() as launches:
        got = run("emulated")
    assert len(spatial_copies(launches)) == 2
    torch.testing.assert_close(got, run("reference"))
