"""What the autograd Functions share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .._context import PLAIN, transforms_active
from ._autocast import without_autocast

# Names of this module: each call of a function looks them up.
_grad_enabled = torch.is_grad_enabled
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record a call on these tensors."""
    if not _grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110  (any() with a generator costs twice as much, on every call)
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def needs_bits(wanted: Iterable[bool]) -> int:
    """`needs` as the backward operators take it: bit i says whether the gradient of input i is wanted."""
    bits = 0
    for i, want in enumerate(wanted):  # a loop, not sum() of a generator: this runs in every backward
        if want:
            bits |= 1 << i
    return bits


def distinct(*tensors: Tensor | None) -> Sequence[Tensor | None]:
    """The tensors as torch.compile wants a Function's inputs: a view in the place of one that came before."""
    if not is_dynamo_compiling():
        return tensors
    result: list[Tensor | None] = []
    for tensor in tensors:
        repeated = tensor is not None and any(tensor is other for other in result)
        result.append(tensor.view_as(tensor) if repeated else tensor)
    return result


def differentiates_formula(grad: Tensor) -> bool:
    """Whether a backward has to go by the reference formula: its result is differentiated again, or batched (vmap)."""
    if _grad_enabled() or is_dynamo_compiling():
        return _grad_enabled()
    # autograd.grad(is_grads_batched=True) has batched tensors of its own, which look like any other.
    return transforms_active() or forward_ad._current_level >= 0 or grad.__class__ not in PLAIN or _is_batched(grad)


def reference_backward(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """Gradients by the reference formula, themselves differentiable where grad mode is on.

    Args:
        reference: the op as a function of `inputs` alone.
        inputs: the saved inputs, in order; None where an optional one was not given.
        grad_output: gradient of the op's result.
    """
    with without_autocast(grad_output):
        with torch.enable_grad():
            # Inputs may be one tensor, or computed from each other. A view of each cuts the paths between them, which
            # autograd follows itself and which would count twice here; second derivatives go through the views.
            views = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
            output = reference(*views)
        wanted = [i for i, view in enumerate(views) if view is not None and view.requires_grad]
        grads = torch.autograd.grad(
            output, [views[i] for i in wanted], grad_output, create_graph=torch.is_grad_enabled(), allow_unused=True
        )
    result: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, grads, strict=True):
        result[i] = grad
    return result


class Unsaved:
    """Inputs whose values only a second derivative reads.

    They are not saved as the others are: the first derivative does not mind what became of them. They must be inputs
    that a model holds anyway, or small.
    """

    __slots__ = ("tensors", "versions")

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = tensors
        self.versions: tuple[int | None, ...]
        if is_dynamo_compiling():  # compiled graphs have no versions, and no second derivatives
            self.versions = (None,) * len(tensors)
            return
        try:
            self.versions = tuple([None if x is None else x._version for x in tensors])
        except RuntimeError:  # those of inference mode have none
            self.versions = tuple([None if x is None or x.is_inference() else x._version for x in tensors])

    def unchanged(self, op: str, *names: str) -> tuple[Tensor | None, ...]:
        """The tensors, for a second derivative.

        Raises:
            RuntimeError: one has been modified in place since.
        """
        for tensor, version, name in zip(self.tensors, self.versions, names, strict=True):
            if version is not None and tensor._version != version:
                raise RuntimeError(
                    f"{op}: {name}: one of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: it is at version {tensor._version}; expected version {version} instead"
                )
        return self.tensors
