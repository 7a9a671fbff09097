"""Every op's cases through the public function with `backend="triton"`: numbers of forward and gradients."""

from __future__ import annotations

import pytest
from triton_backend import UNDER_TTSEM

from attnkernels import testing


def _runs():
    """On a GPU every case in every dtype and layout; under ttsem (a second each) the small ones, dtypes in turn."""
    turn = 0
    for case in testing.cases(small=UNDER_TTSEM):
        for layout in testing.LAYOUTS:
            for dtype in (testing.DTYPES[turn % 4],) if UNDER_TTSEM else testing.DTYPES:
                yield pytest.param(case, dtype, layout, id=f"{case}-{dtype}-{layout}")
            turn += 1
        turn += 1  # so that a dtype meets both layouts


@pytest.mark.parametrize(("case", "dtype", "layout"), _runs())
def test_forward_and_gradients(case, dtype, layout):
    testing.check_against_float64(case, "triton", "cuda", dtype, layout)
