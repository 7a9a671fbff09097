"""What is around the excitation of one block: a convolution, perhaps a batch normalisation, an activation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn import functional as F

from .._modules import NOT_BARE, has_its, is_bare, pointwise_name, qualified_name
from ..layers._gated import Gated
from ..ops._op import Op
from ..ops.squeeze_excite.schema import INPUT_ACTIVATION, SQUEEZE_EXCITE
from . import _fingerprints
from ._adapter import SEQUENTIAL, Adapter, fingerprint, is_original
from ._registry import ADAPTERS

# What these return is new memory at each call.
_CONVOLUTIONS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
_conv2d = F.conv2d
_BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
_BATCH_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"  # its activation is a child
_CONV_NORM_ACT = "timm.layers.conv_bn_act.ConvNormAct"


class Pattern(NamedTuple):
    """The modules of one block around its excitation, in the order in which they are called."""

    before: tuple[nn.Module, ...]
    convolution: nn.Module
    fused: tuple[nn.Module, ...]  # what the operator stands for; the last is the excitation
    after: tuple[nn.Module, ...]
    around: tuple[nn.Module, ...]  # other modules whose calls are passed by
    norm: nn.Module | None
    activation: str | None
    excitation: Gated
    counts: tuple = ()  # what is counted of the convolution's result where it may be written over

    @property
    def op(self) -> Op:
        """The op that serves the block."""
        return self.excitation.op

    def taken(self) -> list[tuple[nn.Module | None, tuple[str, ...]]]:
        """As of a Gated: what the operator takes."""
        return [(self.norm, ("running_mean", "running_var", "weight", "bias")), *self.excitation.taken()]


@functools.cache
def _adapter_inside(cls: type) -> Adapter | None:
    adapter = ADAPTERS.get(qualified_name(cls))
    return adapter if adapter is not None and adapter.is_part_of_blocks else None


def is_excitation(module: nn.Module | None) -> bool:
    return _adapter_inside(module.__class__) is not None


def is_written_over(module: nn.Module | None) -> bool:
    """Whether the op that serves this module has an operator that writes over a convolution's result."""
    adapter = _adapter_inside(module.__class__)
    return adapter is not None and adapter.op == SQUEEZE_EXCITE.name


def excitation_inside(block: nn.Module, name: str) -> Gated | str:
    """What the op takes from a block's child of this name, a bare module; a reason where it is not."""
    module = block._modules.get(name)
    if not is_excitation(module):
        return f"its {name} is no squeeze-and-excitation module, it alone is replaced"
    if not is_bare(module):
        return f"its {name} {NOT_BARE}"
    return _adapter_inside(module.__class__).arguments(module)


def is_sequential(module: nn.Module | None) -> bool:
    return fingerprint(module.__class__) in _fingerprints.known(SEQUENTIAL)


def pattern(
    head: list[nn.Module], parent: nn.Module, name: str, after: Iterable[nn.Module], around: list[nn.Module]
) -> Pattern | str:
    """The pattern of a block; a reason where the operator cannot stand for a part of it.

    Args:
        head: what is called before the excitation.
        parent: the module whose child the excitation is.
        name: that child's name.
        after: as in Pattern.
        around: as in Pattern.
    """
    found = excitation_inside(parent, name)
    if isinstance(found, str):
        return found
    if found.op is not SQUEEZE_EXCITE:
        return f"its {name} is no squeeze-and-excitation module, it alone is replaced"
    if head and is_original(head[-1].__class__, _CONV_NORM_ACT):
        around, children = [*around, head[-1]], map(head[-1]._modules.get, ("conv", "bn", "aa"))
        head = [*head[:-1], *(child for child in children if child is not None)]
    elif head and is_sequential(head[-1]):
        around, head = [*around, head[-1]], [*head[:-1], *head[-1]._modules.values()]
    last = max((i for i, module in enumerate(head) if isinstance(module, nn.Conv2d)), default=None)
    if last is not None:
        between = head[last + 1 :]
        prologue = _prologue(between)
        if prologue is not None and _is_pristine(head[last]) and all(map(is_bare, around)):
            fused = (*between, parent._modules[name])
            return Pattern(tuple(head[:last]), head[last], fused, tuple(after), tuple(around), *prologue, found)
    return f"its {name} does not follow a bare convolution, batch normalisation and activation"


def _is_pristine(convolution: nn.Module) -> bool:
    """Whether what a convolution returns is new memory at each call: no part of its call was replaced."""
    return (
        qualified_name(convolution.__class__) in _CONVOLUTIONS
        and is_bare(convolution)
        and "_conv_forward" not in convolution.__dict__
        and has_its("_conv_forward", convolution.__class__)
        and F.conv2d is _conv2d
    )


def _prologue(between: Sequence[nn.Module]) -> tuple[nn.Module | None, str | None] | None:
    """The normalisation and the activation, each if there is one; None where anything else is found."""
    if between and is_original(between[0].__class__, _BATCH_NORM_ACT):
        between = [between[0], *between[0]._modules.values(), *between[1:]]
    norm = activation = None
    for position, module in enumerate(between):
        kind, name = qualified_name(module.__class__), pointwise_name(module.__class__)
        if not is_bare(module):
            return None
        if position == 0 and (kind == _BATCH_NORM or is_original(module.__class__, _BATCH_NORM_ACT)):
            if module.running_mean is None:
                return None
            norm = module
        elif name != "identity":
            if name is None or name not in INPUT_ACTIVATION or activation is not None:
                return None
            activation = name
    return norm, activation
