"""The operators of cbam and scse on every backend, against autograd of the plain formulas in float64."""

from __future__ import annotations

import channel_spatial_operators as formulas
import pytest
import torch

from attnkernels import testing
from attnkernels.ops.channel_spatial import operators

BACKENDS = testing.fused_backends()
# Odd planes and several blocks of either axis in every dtype; whole vectors, one pixel, one channel, no samples.
EVERY_DTYPE = [(2, 12, 5, 7), (1, 80, 23, 31)]
SHAPES = [*EVERY_DTYPE, (1, 32, 4, 8), (3, 70, 1, 1), (2, 1, 9, 4), (0, 8, 4, 4)]


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("call", formulas.CALLS, ids=str)
def test_operator(call, backend, device, layout):
    for shape in SHAPES:
        for dtype in testing.DTYPES if shape in EVERY_DTYPE else [torch.float32]:
            for ties in (False, True):
                check(call, backend, device, formulas.arguments(call, shape, dtype, layout, ties=ties))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("call", formulas.CALLS, ids=str)
def test_any_strides(call, backend, device, layout):
    """x alone decides the layout; no other tensor has to be dense."""
    arguments = formulas.arguments(call, (2, 12, 5, 7), torch.float32, layout)
    x = 1 if call.name.startswith("grad") else 0
    spread = [value if i == x else formulas.spread(value) for i, value in enumerate(arguments)]
    check(call, backend, device, spread)


def check(call, backend, device, arguments):
    """Hold the results to the formulas, and their shapes and layouts to those that are promised."""
    operator = getattr(operators, call.name.upper())
    wanted = getattr(formulas, call.name)(*arguments)
    given = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
    with testing.uninitialized_is_nan():
        got = operator.on[backend](*given)
    shaped = operator.on[backend](*[x.to("meta") if isinstance(x, torch.Tensor) else x for x in given])
    results = [[x] for x in (got, wanted, shaped)] if isinstance(wanted, torch.Tensor) else (got, wanted, shaped)
    for one, want, fake in zip(*results, strict=True):
        testing.assert_close_to_float64(one, want, f"{call} {list(arguments[0].shape)}")
        assert (one.shape, one.dtype, one.stride()) == (fake.shape, fake.dtype, fake.stride())
