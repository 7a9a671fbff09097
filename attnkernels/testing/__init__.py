"""What the test-suite, the sanitizer runs and the benchmarks share: the ops' cases and the accuracy rule."""

from ._accuracy import TOLERANCES, Tolerance, assert_close_to_float64, uninitialized_is_nan
from ._cases import CASES, DTYPES, LAYOUTS, OpCase, cases, gradients, in_float64, map_tensors, run, tensors_of
from ._check import check_against_float64
from ._walls import walls

__all__ = [
    "CASES",
    "DTYPES",
    "LAYOUTS",
    "TOLERANCES",
    "OpCase",
    "Tolerance",
    "assert_close_to_float64",
    "cases",
    "check_against_float64",
    "gradients",
    "in_float64",
    "map_tensors",
    "run",
    "tensors_of",
    "uninitialized_is_nan",
    "walls",
]
