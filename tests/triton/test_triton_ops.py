"""Every op's cases through the public function with `backend="triton"`: numbers, layouts, gradients one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton_backend import UNDER_TTSEM

from attnkernels import testing
from attnkernels.ops import _triton

OPS = list(testing.CASES)


def of_op(op: str, tensors: int = 6) -> testing.OpCase:
    """The small case with the most tensors, up to so many."""
    counts = {case: len(list(testing.tensors_of(case.make()))) for case in testing.CASES[op] if case.small}
    return max((case for case, count in counts.items() if count <= tensors and "no_" not in case.name), key=counts.get)


def _runs():
    """On a GPU every case in every dtype and layout; under ttsem (a second each) the small ones, dtypes in turn, but
    every dtype where there are several programs."""
    turn = 0
    for case in testing.cases(small=UNDER_TTSEM):
        for layout in testing.LAYOUTS:
            every = not UNDER_TTSEM or case.name == "several_programs"
            for dtype in testing.DTYPES if every else (testing.DTYPES[turn % 4],):
                yield pytest.param(case, dtype, layout, id=f"{case}-{dtype}-{layout}")
            turn += 1
        turn += 1  # so that a dtype meets both layouts


@pytest.mark.parametrize(("case", "dtype", "layout"), _runs())
def test_forward_and_gradients(case, dtype, layout):
    testing.check_against_float64(case, "triton", "cuda", dtype, layout)


class _Promises(TorchDispatchMode):
    """Compares what the operators return with what their shape functions say of it."""

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace == "attnkernels_triton":
            self.met += 1
            promised = func(*testing.map_tensors(tuple(args), _without_data))
            for got, want in zip(testing.tensors_of(results), testing.tensors_of(promised), strict=True):
                assert (got.dtype, got.shape) == (want.dtype, want.shape), func
                assert not got.numel() or got.stride() == want.stride(), func
        return results


def _without_data(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_only_where_they_are_needed(op, layout):
    with _Promises() as promises:  # that the others are empty
        testing.check_gradients_alone(of_op(op), "triton", "cuda", layout)
    assert promises.met


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_results_are_as_the_shape_functions_say(op, layout):
    with _Promises() as promises, _triton.recorded_launches() as launches:
        for case in (case for case in testing.CASES[op] if case.small and "no_" not in case.name):
            testing.gradients(op, *case.make(torch.bfloat16, "cuda", layout), "triton")
    assert promises.met
    assert launches


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_programs_share_the_samples_of_a_case(op, layout):
    (case,) = (case for case in testing.CASES[op] if case.name == "several_programs")
    args, kwargs = case.make(torch.float32, "cuda", layout)
    with _triton.recorded_launches() as launches:
        testing.gradients(op, args, kwargs, "triton")
    samples = next(testing.tensors_of(args)).shape[0]
    assert max(math.prod(launch.grid) for launch, _ in launches) > samples
