"""What the autograd Functions share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class _Bound:
    """The part of inspect.BoundArguments that torch reads."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple) -> None:
        self.args, self.kwargs = args, {}

    def apply_defaults(self) -> None:
        pass


class _Positional(inspect.Signature):
    """What is given, as it is given: nothing to match with names, no defaults to fill in."""

    def bind(self, *args) -> _Bound:
        return _Bound(args)


class Function(torch.autograd.Function):
    """An autograd.Function whose `forward` has positional parameters alone, none with a default.

    For one with `setup_context`, torch calls inspect.signature(forward).bind(...) on every `apply`, to fill in
    defaults: 30-50 us, half of what a small layer's forward takes.
    """

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        cls.forward.__signature__ = _Positional()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record a call on these tensors."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110  (any() with a generator costs twice as much, on every call)
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def reference_backward(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """Gradients by the reference formula, themselves differentiable: the double backward of a fused op.

    Args:
        reference: the op as a function of `inputs` alone.
        inputs: the saved inputs, in order; None where an optional one was not given.
        grad_output: gradient of the op's result.
    """
    wanted = [i for i, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad():
        output = reference(*inputs)
    grads = torch.autograd.grad(output, [inputs[i] for i in wanted], grad_output, create_graph=True, allow_unused=True)
    result: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, grads, strict=True):
        result[i] = grad
    return result
