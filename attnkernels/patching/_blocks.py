"""Blocks in which a batch normalisation, its activation and a squeeze-and-excitation follow a convolution.

In inference on a CPU one operator does all three over the convolution's result, which nobody else has: two reads and
two writes of a map, the second ones in the cache, in the place of four and three. Everywhere else the block's own
forward runs, and calls the patched excitation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import backends
from ..layers._excitation import OP, Excitation, settings_of
from ..layers._fusing import is_bare, left_to_pytorch, pointwise_name, qualified_name
from ..layers._look import Look, current, keep
from ..ops.squeeze_excite.contract import NORM_ACTIVATION, OUTPUT_ACTIVATION
from ._adapter import Adapter, fingerprint
from ._excitation import excitation_inside
from ._swap import swap_of

_operator = torch.ops.attnkernels.batch_norm_squeeze_excite_.default

# What these return is new memory at each call.
_CONVOLUTIONS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
_BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
_BATCH_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"  # its activation is a child
_BATCH_NORM_ACT_FORWARDS = frozenset({"0d7e1b90863ee56a"})


class Chain(NamedTuple):
    """The modules of a block around its excitation, in the order in which they are called."""

    before: tuple[nn.Module, ...]  # the last is the convolution
    fused: tuple[nn.Module, ...]  # what the operator stands for: first the normalisation, last the excitation
    after: tuple[nn.Module, ...]
    around: tuple[nn.Module, ...]  # other modules whose calls are passed by
    norm_activation: str | None
    excitation: Excitation


def chain(
    head: Sequence[nn.Module],
    parent: nn.Module,
    name: str,
    after: Iterable[nn.Module] = (),
    around: Iterable[nn.Module] = (),
) -> Chain | str:
    """The chain of a block; a reason where the operator cannot stand for a part of it.

    Args:
        head: what is called before the excitation.
        parent: the module whose child the excitation is.
        name: that child's name.
        after: as in Chain.
        around: as in Chain.
    """
    found = excitation_inside(parent, name)
    if isinstance(found, str):
        return found
    around = tuple(around)
    last = max((i for i, module in enumerate(head) if isinstance(module, nn.Conv2d)), default=-1)
    before, between = head[: last + 1], head[last + 1 :]
    activations = _activations(between)
    if (
        activations is None
        or not before
        or qualified_name(before[-1].__class__) not in _CONVOLUTIONS
        or not all(map(is_bare, (before[-1], *around)))
    ):
        return f"its {name} does not follow a bare convolution, batch normalisation and activation"
    activation = activations[0] if activations else None
    return Chain(tuple(before), (*between, parent._modules[name]), tuple(after), around, activation, found)


def _activations(between: Sequence[nn.Module]) -> list[str] | None:
    """The activation after a batch normalisation, if there is one; None where anything else is found."""
    if not between:
        return None
    norm, *rest = between
    kind = qualified_name(norm.__class__)
    if kind == _BATCH_NORM_ACT and fingerprint(norm.__class__) in _BATCH_NORM_ACT_FORWARDS:
        rest = [*norm._modules.values(), *rest]
    elif kind != _BATCH_NORM:
        return None
    names = [pointwise_name(child.__class__) for child in rest]
    names = [name for name in names if name != "identity"]
    if len(names) > 1 or not {None, *NORM_ACTIVATION}.issuperset(names) or None in names:
        return None
    return names if norm.running_mean is not None and all(map(is_bare, (norm, *rest))) else None


def look_anew(
    block: nn.Module,
    x: Tensor,
    chain_of: Callable[[nn.Module], Chain | str],
    output_activation: str | None = None,
    watched: Iterable[nn.Module] = (),
) -> Look | None:
    """A block's look, with its chain as `extra`, for this call and those to come; None where it may not go by one.

    Args:
        block: the patched block.
        x: its input.
        chain_of: finds the chain.
        output_activation: what the operator does last.
        watched: modules that must not be in training mode, as the normalisation.
    """
    if left_to_pytorch(x) or not backends.takes_cpu_kernels(OP, x, block._attnkernels.backend):
        return None
    found = chain_of(block)
    if isinstance(found, str) or swap_of(found.fused[-1]) is None:
        return None
    norm, excitation = found.fused[0], found.fused[-1]
    modes = (norm, *watched)
    if any(module.training for module in modes):
        return None
    norm_tensors = [
        (norm._buffers, "running_mean"),
        (norm._buffers, "running_var"),
        (norm._parameters, "weight"),
        (norm._parameters, "bias"),
    ]
    passed = [*found.around, found.before[-1], *(child for module in found.fused for child in module.modules())]
    return keep(
        block,
        passed,
        [*norm_tensors, *found.excitation.tensors()],
        [(norm, "eps"), *((module, "training") for module in modes), *settings_of(excitation)],
        (
            norm.eps,
            NORM_ACTIVATION[found.norm_activation],
            *found.excitation.codes(),
            OUTPUT_ACTIVATION[output_activation],
        ),
        found,
    )


def excite_over(look: Look, x: Tensor, residual: Tensor | None = None) -> bool:
    """The operator over x, the convolution's result; False, and x as it was, where it refuses."""
    epsilon, norm_activation, *codes = look.arguments
    try:
        mean, variance, weight, bias, *weights = look.tensors()
        _operator(x, mean, variance, weight, bias, epsilon, norm_activation, *weights, residual, *codes)
    except (RuntimeError, LookupError):
        return False
    return True


def through(block: nn.Module, x: Tensor, chain_of: Callable[[nn.Module], Chain | str]) -> Tensor | None:
    """x through the whole chain of a block; None where its own forward has to run."""
    look = current(block, x) or look_anew(block, x, chain_of)
    if look is None:
        return None
    found = look.extra
    for module in found.before:
        x = module(x)
    if not excite_over(look, x):
        for module in found.fused:
            x = module(x)
    for module in found.after:
        x = module(x)
    return x


def chain_adapter(
    original: str,
    fingerprints: set[str],
    chain_of: Callable[[nn.Module], Chain | str],
    forward: Callable[[nn.Module, Tensor], Tensor],
    within: Callable[[nn.Module], nn.Module | None],
) -> Adapter:
    """The adapter of a block that only differs from its own forward where `through` takes it."""
    return Adapter(
        op=OP,
        originals=(original,),
        fingerprints=frozenset(fingerprints),
        arguments=chain_of,
        forward=forward,
        fuses="normalisation, activation, excitation (inference on a CPU)",
        within=within,
    )
