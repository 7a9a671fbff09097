"""Which modules a fused call may pass by: what a module is, and whether anything hangs on its calls.

A fused op reads the weights of modules and never calls them, so whatever hangs on their calls would be lost: hooks
(spectral_norm, pruning, feature extraction, FLOP counters, FSDP), a child of another class (LoRA, quantised,
parametrised), a forward replaced on the instance (offloading) or on its class (recorders). Any of them may be added
later, so it is asked again at each call, by a guard where there is one.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._context import TENSORS

# By qualified name, so that no library has to be imported. timm's differ from PyTorch's in their signature only.
_POINTWISE = {
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Hardsigmoid": "hard_sigmoid",
    "torch.nn.modules.activation.Hardswish": "hard_swish",
    "torch.nn.modules.linear.Identity": "identity",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.HardSigmoid": "hard_sigmoid",
    "timm.layers.activations.HardSwish": "hard_swish",
}


def qualified_name(cls: type) -> str:
    """The class's module and name, as in "torch.nn.modules.conv.Conv2d"."""
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def pointwise_name(cls: type) -> str | None:
    """The name under which the ops know a pointwise module class ("relu", "hard_sigmoid", ...); None for others."""
    return _POINTWISE.get(qualified_name(cls))


def method_owner(method: str, cls: type) -> type:
    """The class from which `cls` has a method."""
    return next(base for base in cls.__mro__ if method in base.__dict__)


_written: defaultdict[str, dict[type, Any]] = defaultdict(dict)
_known_forward = _written["forward"].get


def has_its(method: str, cls: type) -> bool:
    """Whether a method of a class is the one that was written in it, not one that was put there from elsewhere."""
    function: Callable | None = getattr(cls, method, None)
    known = _written[method]
    if function is not None and known.get(cls) is function:
        return True
    namespace = getattr(function, "__globals__", None)
    if namespace is None:
        return False
    owner = method_owner(method, cls)
    if namespace.get("__name__") != owner.__module__ or function.__qualname__ != f"{owner.__qualname__}.{method}":
        return False
    if lives_as_long_as_the_process(cls):
        known[cls] = function
    return True


def lives_as_long_as_the_process(cls: type) -> bool:
    """Whether a class may be remembered; those that are made on the way, as by parametrisations, must not."""
    return getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls


NOT_BARE = "carries hooks or a forward of its own, which a fused call would pass by"


def is_bare(module: nn.Module) -> bool:
    """Whether calling the module is no more than the forward written in its class: no hooks, no other forward."""
    state = module.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    ):
        return False
    cls = type(module)
    known = _known_forward(cls)
    return True if known is not None and known is cls.forward else has_its("forward", cls)


def affine(layer: nn.Module | None) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a bare Linear or 1x1 Conv2d; None where it is anything else."""
    if layer is None or not is_bare(layer):
        return None
    if layer.__class__ is nn.Conv2d:
        if "_conv_forward" in layer.__dict__:
            return None
        if layer.kernel_size != (1, 1) or layer.stride != (1, 1) or layer.padding != (0, 0) or layer.groups != 1:
            return None
    elif layer.__class__ is not nn.Linear:
        return None
    return parameter(layer, "weight"), parameter(layer, "bias")


def parameter(layer: nn.Module, name: str) -> Tensor | None:
    """A layer's parameter of this name; None where it has none."""
    # nn.Module's own attribute lookup is slow Python; the replicas of DataParallel have no _parameters, but attributes.
    value = layer._parameters.get(name)
    return getattr(layer, name) if value is None else value


def descendant(module: nn.Module, path: str) -> nn.Module | None:
    """The module of this dotted path inside of another one; None where there is none."""
    found: nn.Module | None = module
    for name in path.split("."):
        found = None if found is None else found._modules.get(name)
    return found


def are_ordinary(*tensors: Tensor | None) -> bool:
    """Whether none of the tensors is of a subclass (distributed, quantised) or sparse: the ops take only dense ones."""
    for tensor in tensors:  # a loop, not all(): this runs on every call of a small layer
        if tensor is not None and (tensor.__class__ not in TENSORS or tensor.layout is not torch.strided):
            return False
    return True
