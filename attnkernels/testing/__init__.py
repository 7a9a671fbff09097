"""What the suite, the sanitizer runs and the benchmarks share: cases, the accuracy rule, where operands lie."""

from ._accuracy import TOLERANCES, Tolerance, assert_close_to_float64, uninitialized_is_nan
from ._budgeted import BudgetedCall, TrafficCall
from ._cases import DTYPES, LAYOUTS, Maker, OpCase, RandomCases, gradients, in_float64, map_tensors, run, tensors_of
from ._check import check_against_float64, check_gradients_alone, check_results
from ._fused import fused_backends
from ._placement import OFFSETS, Offsets, Operand, PlacedCase, Placement, placed, places
from ._registry import CASES, COMPILED, RANDOM, TRAFFIC, cases

__all__ = [
    "CASES",
    "COMPILED",
    "DTYPES",
    "LAYOUTS",
    "OFFSETS",
    "RANDOM",
    "TOLERANCES",
    "TRAFFIC",
    "BudgetedCall",
    "Maker",
    "Offsets",
    "OpCase",
    "Operand",
    "PlacedCase",
    "Placement",
    "RandomCases",
    "Tolerance",
    "TrafficCall",
    "assert_close_to_float64",
    "cases",
    "check_against_float64",
    "check_gradients_alone",
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
