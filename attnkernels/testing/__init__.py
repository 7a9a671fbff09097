"""What the suite, the sanitizer runs and the benchmarks share: cases, the accuracy rule, where operands lie."""

from ._accuracy import TOLERANCES, Tolerance, assert_close_to_float64, uninitialized_is_nan
from ._cases import CASES, DTYPES, LAYOUTS, OpCase, cases, gradients, in_float64, map_tensors, run, tensors_of
from ._check import check_against_float64, check_results
from ._fused import fused_backends
from ._placement import OFFSETS, Offsets, Operand, PlacedCase, Placement, placed, places

__all__ = [
    "CASES",
    "DTYPES",
    "LAYOUTS",
    "OFFSETS",
    "TOLERANCES",
    "Offsets",
    "OpCase",
    "Operand",
    "PlacedCase",
    "Placement",
    "Tolerance",
    "assert_close_to_float64",
    "cases",
    "check_against_float64",
    "check_results",
    "fused_backends",
    "gradients",
    "in_float64",
    "map_tensors",
    "placed",
    "places",
    "run",
    "tensors_of",
    "uninitialized_is_nan",
]
