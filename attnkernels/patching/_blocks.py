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
from torch.nn import functional as F

from .. import _guard, backends
from .._context import PASSES_MODULES, is_ordinary
from .._guard import Guard
from .._modules import has_its, is_bare, method_owner, pointwise_name, qualified_name
from ..layers._excitation import OP, Excitation
from ..ops.squeeze_excite.schema import INPUT_ACTIVATION, OUTPUT_ACTIVATION
from ._adapter import Adapter, fingerprint
from ._dispatch import FLAG, backend_of, is_served
from ._excitation import excitation_inside, keep_only_if_patched
from ._ownership import counted, counts_of_new, dispatch_modes, function_modes

_operator = torch.ops.attnkernels.squeeze_excite_.default

# What these return is new memory at each call.
_CONVOLUTIONS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
_conv2d = F.conv2d
_BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
_BATCH_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"  # its activation is a child
_BATCH_NORM_ACT_FORWARDS = frozenset({"0d7e1b90863ee56a"})


class Pattern(NamedTuple):
    """The modules of a block around its excitation, in the order in which they are called."""

    before: tuple[nn.Module, ...]
    convolution: nn.Module
    fused: tuple[nn.Module, ...]  # what the operator stands for: first the normalisation, last the excitation
    after: tuple[nn.Module, ...]
    around: tuple[nn.Module, ...]  # other modules whose calls are passed by
    norm_activation: str | None
    excitation: Excitation
    counts: tuple = ()  # what is counted of the convolution's result where it may be written over

    def norm_tensors(self) -> list[tuple[dict, str]]:
        """Where the normalisation's tensors are."""
        norm = self.fused[0]
        return [
            (norm._buffers, "running_mean"),
            (norm._buffers, "running_var"),
            (norm._parameters, "weight"),
            (norm._parameters, "bias"),
        ]


PatternOf = Callable[[nn.Module], Pattern | str]


def pattern(
    head: Sequence[nn.Module],
    parent: nn.Module,
    name: str,
    after: Iterable[nn.Module] = (),
    around: Iterable[nn.Module] = (),
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
    around = tuple(around)
    last = max((i for i, module in enumerate(head) if isinstance(module, nn.Conv2d)), default=None)
    if last is not None:
        before, convolution, between = head[:last], head[last], head[last + 1 :]
        activations = _activations(between)
        if activations is not None and _is_pristine(convolution) and all(map(is_bare, around)):
            activation = activations[0] if activations else None
            fused = (*between, parent._modules[name])
            return Pattern(tuple(before), convolution, fused, tuple(after), around, activation, found)
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
    if len(names) > 1 or not {None, *INPUT_ACTIVATION}.issuperset(names) or None in names:
        return None
    return names if norm.running_mean is not None and all(map(is_bare, (norm, *rest))) else None


def match(
    block: nn.Module,
    x: Tensor,
    pattern_of: PatternOf,
    output_activation: str | None = None,
    watched: Callable[[nn.Module], Iterable[nn.Module]] = lambda block: (),
) -> Guard | None:
    """The block's guard, with its pattern as `extra`, for this call; None where the operator must not run in it.

    Args:
        block: the patched block.
        x: its input.
        pattern_of: finds the pattern.
        output_activation: what the operator does last.
        watched: finds the block's modules that must not be in training mode, as the normalisation.
    """
    if torch.is_grad_enabled() or not _is_on_cpu(x):
        return None
    found = _guard.match(block, x)
    if found is None:
        guard = _cache(block, x, pattern_of, output_activation, watched(block))
    else:
        guard, backend = found
        if backend != "cpu":
            return None
    return None if guard is None or dispatch_modes() or function_modes() else guard


def _is_on_cpu(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_cpu


def _cache(
    block: nn.Module, x: Tensor, pattern_of: PatternOf, output_activation: str | None, watched: Iterable[nn.Module]
) -> Guard | None:
    if not is_ordinary(x, PASSES_MODULES):
        return None
    backend = backend_of(block)
    if backends.plain_backend(x, backend) != "cpu":
        return None
    counts, found = counts_of_new(), pattern_of(block)
    if not counts or isinstance(found, str) or not is_served(found.fused[-1]):
        return None
    norm, excitation = found.fused[0], found.fused[-1]
    modes = (norm, *watched)
    if any(module.training for module in modes):
        return None
    codes = (INPUT_ACTIVATION[found.norm_activation], *found.excitation.codes(), OUTPUT_ACTIVATION[output_activation])
    guard = _guard.cache(
        block,
        [*found.around, found.convolution, *(child for module in found.fused for child in module.modules())],
        [*found.norm_tensors(), *found.excitation.tensors()],
        [
            (F.__dict__, "conv2d"),
            (method_owner("_conv_forward", type(found.convolution)).__dict__, "_conv_forward"),
            (norm.__dict__, "eps"),
            *((module.__dict__, "training") for module in modes),
            *((excitation.__dict__, name) for name in (FLAG, *found.excitation.own)),
            *found.excitation.methods_of(excitation),
        ],
        (),
        (norm.eps, *codes),
        backend,
        found._replace(counts=counts),
    )
    keep_only_if_patched(block, backend)
    return guard


def excite_over(guard: Guard, x: Tensor, residual: Tensor | None = None) -> bool:
    """The operator over x, the convolution's result; False, and x as it was, where it refuses."""
    epsilon, norm_activation, *codes = guard.arguments
    try:
        mean, variance, weight, bias, *weights = guard.tensors()
        _operator(x, mean, variance, weight, bias, epsilon, norm_activation, *weights, residual, *codes)
    except (RuntimeError, LookupError):
        return False
    return True


def to_convolution(found: Pattern, x: Tensor) -> tuple[Tensor, bool]:
    """x through a pattern up to its convolution, and whether the result may be written over."""
    for module in found.before:
        x = module(x)
    x, counts = counted(found.convolution, x)
    return x, counts == found.counts


def through(guard: Guard, x: Tensor) -> Tensor:
    """x through the whole pattern of a block, by the guard that `match` returned."""
    found = guard.extra
    x, is_ours = to_convolution(found, x)
    if not is_ours or not excite_over(guard, x):
        for module in found.fused:
            x = module(x)
    for module in found.after:
        x = module(x)
    return x


def block_adapter(
    original: str,
    fingerprints: set[str],
    pattern_of: PatternOf,
    forward: Callable[[nn.Module, Tensor, Guard], Tensor],
    within: Callable[[nn.Module], nn.Module | None],
) -> Adapter:
    """The adapter of a block that only differs from its own forward where `match` finds its pattern.

    Args:
        original: as in Adapter.
        fingerprints: as in Adapter.
        pattern_of: finds the pattern.
        forward: what the block computes of its input, by the guard; it calls `through`.
        within: as in Adapter.
    """

    def serve(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        guard = match(self, x, pattern_of)
        return original(self, x) if guard is None else forward(self, x, guard)

    return Adapter(
        op=OP,
        originals=(original,),
        fingerprints=frozenset(fingerprints),
        arguments=pattern_of,
        forward=serve,
        fuses="normalisation, activation, excitation (inference on a CPU)",
        within=within,
    )
