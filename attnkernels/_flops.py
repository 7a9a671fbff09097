"""Floating-point operations of the operators for torch.utils.flop_counter: as many as the formulas count.

That module imports Triton, so it is not imported here: the counts are registered when somebody imports it.
torch.profiler counts in C++, for PyTorch's own operators alone.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

import torch

from .ops._registry import NAMESPACES, OPERATORS

_COUNTER = "torch.utils.flop_counter"


def _register() -> None:
    register = sys.modules[_COUNTER].register_flop_formula
    for name, operator in OPERATORS.items():
        register([getattr(getattr(torch.ops, namespace), name) for namespace in NAMESPACES])(operator.flops)


class _WhenImported(MetaPathFinder):
    """Registers the counts after the counter's module has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Have the counts registered, now or when the counter is imported."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenImported())
