"""Floating-point operations of the operators for torch.utils.flop_counter: as many as the formulas count.

That module imports Triton, so it is not imported here: the counts are registered when somebody imports it.
torch.profiler counts in C++, for PyTorch's own operators alone.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from math import prod
from typing import Any

import torch

from .ops._registry import NAMESPACES
from .ops.criss_cross import schema as criss_cross
from .ops.squeeze_excite import schema as squeeze_excite

_COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def _layers(x: Shape, reduce_weight: Shape | None, expand_weight: Shape) -> tuple[int, int]:
    """Of the two fully connected layers, on one vector per sample."""
    reduce, expand = (0 if weight is None else 2 * x[0] * prod(weight) for weight in (reduce_weight, expand_weight))
    return reduce, expand


def _squeeze_excite(x: Shape, reduce_weight: Shape | None, _: Any, expand_weight: Shape, *rest: Any, **out: Any) -> int:
    return sum(_layers(x, reduce_weight, expand_weight))


def _squeeze_excite_backward(
    grad_y: Shape, x: Shape, y: Any, reduce_weight: Shape | None, _: Any, expand_weight: Shape, *rest: Any, **out: Any
) -> int:
    needs = rest[-1]
    reduce, expand = _layers(x, reduce_weight, expand_weight)
    count = 0
    if needs & squeeze_excite.NEEDS_WEIGHTS:
        count += reduce + expand
        if reduce_weight is not None:
            count += expand  # back to the hidden layer
    if needs & squeeze_excite.NEEDS_X:
        count += reduce + (0 if count and reduce_weight is not None else expand)
    return count


def _line_products(channels: int, x: Shape) -> int:
    """A product over `channels` for each pixel of x with each pixel of its lines, itself on each of them."""
    return 2 * x[0] * channels * prod(x[2:]) * sum(x[2:])


def _affinity(query: Shape, key: Shape, **out: Any) -> int:
    return _line_products(query[1], query)


def _affinity_backward(grad: Shape, query: Shape, key: Shape, needs: int, **out: Any) -> int:
    return needs.bit_count() * _line_products(query[1], query)


def _aggregate(affinity: Shape, value: Shape, **out: Any) -> int:
    return _line_products(value[1], value)


def _aggregate_backward(grad: Shape, affinity: Shape, value: Shape, needs: int, **out: Any) -> int:
    return needs.bit_count() * _line_products(value[1], value)


def _attention(query: Shape, key: Shape, value: Shape, **out: Any) -> int:
    return _line_products(query[1] + value[1], value)


def _attention_backward(
    grad: Shape, query: Shape, key: Shape, value: Shape, result: Shape, log_sum_exp: Shape, needs: int, **out: Any
) -> int:
    of_energies = (needs & (criss_cross.NEEDS_QUERY | criss_cross.NEEDS_KEY)).bit_count()
    of_values = bool(needs & criss_cross.NEEDS_VALUE) + bool(of_energies)  # to the energies by way of the weights
    return of_energies * _line_products(query[1], value) + of_values * _line_products(value[1], value)


def _none(*shapes: Any, **out: Any) -> int:
    """Sums and scalings alone, which are not counted."""
    return 0


FORMULAS = {
    "squeeze_excite": _squeeze_excite,
    "squeeze_excite_backward": _squeeze_excite_backward,
    "criss_cross_affinity": _affinity,
    "criss_cross_affinity_backward": _affinity_backward,
    "criss_cross_aggregate": _aggregate,
    "criss_cross_aggregate_backward": _aggregate_backward,
    "criss_cross_attention": _attention,
    "criss_cross_attention_backward": _attention_backward,
    "pooled_sum": _none,
    "select_branches": _none,
    "select_branches_grad_logits": _none,
    "select_branches_grad_branches": _none,
}


def _register() -> None:
    register = sys.modules[_COUNTER].register_flop_formula
    for name, formula in FORMULAS.items():
        register([getattr(getattr(torch.ops, namespace), name) for namespace in NAMESPACES])(formula)


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
