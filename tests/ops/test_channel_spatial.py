"""The operators of cbam and scse on every backend, against autograd of the plain formulas in float64."""

from __future__ import annotations

import channel_spatial_operators as formulas
import pytest
import torch

from attnkernels import testing
from attnkernels.ops.channel_spatial import operators

BACKENDS = testing.fused_backends()
# Odd planes, whole vectors, several blocks of either axis, one pixel, one channel, no samples.
SHAPES = [(2, 12, 5, 7), (1, 32, 4, 8), (2, 80, 23, 31), (3, 70, 1, 1), (2, 1, 9, 4), (0, 8, 4, 4)]


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("call", formulas.CALLS, ids=str)
def test_operator(call, backend, device, layout, shape, ties):
    operator = getattr(operators, call.name.upper())
    for dtype in testing.DTYPES:
        arguments = formulas.arguments(call, shape, dtype, layout, ties=ties)
        wanted = getattr(formulas, call.name)(*arguments)
        given = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
        with testing.uninitialized_is_nan():
            got = operator.on[backend](*given)
        single = isinstance(wanted, torch.Tensor)
        fake = operator.on[backend](*[x.to("meta") if isinstance(x, torch.Tensor) else x for x in given])
        for one, want, shaped in zip(
            *([[x] for x in (got, wanted, fake)] if single else (got, wanted, fake)), strict=True
        ):
            testing.assert_close_to_float64(one, want, f"{call} {list(shape)}")
            assert (one.shape, one.dtype, one.stride()) == (shaped.shape, shaped.dtype, shaped.stride())
