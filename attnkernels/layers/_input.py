"""A layer's input, checked where a call has failed.

What a call of the children, or of PyTorch, says of a wrong input is about convolutions and matrices that nobody called.
To check beforehand would cost time in every call and could refuse what replaced children take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function

from ..ops import _checks
from ..ops._autocast import autocasts

_SHAPES = {4: ("N", "H", "W"), 5: ("N", "D", "H", "W")}


def called(
    layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, first: Callable[[], tuple[nn.Module | None, int]]
) -> Tensor:
    """forward(x), with an error in terms of the layer where it fails because of x.

    Args:
        layer: whose forward this is.
        forward: what it does.
        x: its input.
        first: returns the first convolution (None where another module has its place), and into how many parts the
            channels of x are split for it.
    """
    if is_dynamo_compiling():  # which cannot break a graph inside of `try`
        return forward(x)
    try:
        return forward(x)
    except Exception:
        _check(type(layer).__name__, x, *first())
        raise


def _check(name: str, x: Any, convolution: nn.Module | None, parts: int) -> None:
    """Raise where x is not what the convolution takes, as far as it can be told."""
    if has_torch_function((x,)):  # a tracer's proxy, a subclass: they answer for themselves
        return
    _checks.tensor(name, "x", x)
    weight = getattr(convolution, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 3:  # of a convolution over the channels, however many there are
        _checks.feature_map(name, "x", x)
    elif not isinstance(weight, Tensor) or weight.dim() not in _SHAPES:
        return  # no convolution any more
    elif x.dim() != weight.dim() or x.shape[1] != parts * weight.shape[1] * getattr(convolution, "groups", 1):
        channels = parts * weight.shape[1] * getattr(convolution, "groups", 1)
        samples, *space = _SHAPES[weight.dim()]
        expected = ", ".join((samples, str(channels), *space))
        _checks.fail(name, "x", f"a tensor [{expected}]", f"{list(x.shape)}")
    if not autocasts(x):
        _checks.alike(name, "x", x, weight, "the weights")
