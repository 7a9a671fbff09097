"""What is tested and budgeted of every op: the contents of the files in `cases/`, one of each folder of `ops/`.

Everything that needs valid arguments of an op reads them here, so that a new op is a new file there. A file has

    CASES       the calls that the tests make: list[OpCase]
    RANDOM      how the fuzz tests draw others, by public function: dict[str, RandomCases]
    COMPILED    the calls whose Triton kernels have a budget of registers and widths: list[BudgetedCall]
    TRAFFIC     the calls whose CUDA kernels have a budget of bytes moved: list[TrafficCall]
"""

from __future__ import annotations

import importlib
import pkgutil

from ..ops import _checks
from . import cases as _case_files
from ._budgeted import BudgetedCall, TrafficCall
from ._cases import OpCase, RandomCases

CASES: dict[str, list[OpCase]] = {}  # by public function, as RANDOM
RANDOM: dict[str, RandomCases] = {}
COMPILED: dict[str, list[BudgetedCall]] = {}  # by file, as TRAFFIC
TRAFFIC: dict[str, list[TrafficCall]] = {}
for _module in pkgutil.iter_modules(_case_files.__path__):
    _file = importlib.import_module(f"{_case_files.__name__}.{_module.name}")
    for _case in _file.CASES:
        CASES.setdefault(_case.op, []).append(_case)
    RANDOM.update(_file.RANDOM)
    COMPILED[_module.name], TRAFFIC[_module.name] = _file.COMPILED, _file.TRAFFIC


def cases(small: bool = False) -> list[OpCase]:
    """Every op's cases; the small ones only, if asked."""
    small = _checks.flag("cases", "small", small)
    return [case for of_op in CASES.values() for case in of_op if case.small or not small]
