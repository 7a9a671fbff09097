"""Blocks around a squeeze-and-excitation module: the patterns in which an op does more than that module.

In inference on a CPU one operator does a batch normalisation, an activation and the excitation over the result of the
convolution before them, which nobody else has: two reads and two writes of a map, the second ones in the cache, in the
place of four and three. Where the normalisation was folded into the convolution, or never was, it does the rest. In the
residual blocks of ResNet and SENet the sum and the ReLU after the excitation are done in the same pass, in training and
on a GPU as well. Everywhere else the block's own forward runs, and calls the patched excitation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import backends
from .._context import WRITES_OVER, is_ordinary
from .._guard import NAME, PART, Guard, cache, entries, match
from .._modules import are_ordinary, is_bare, method_owner, pointwise_name, qualified_name
from ..layers._gated import Gated
from ..ops.squeeze_excite.schema import INPUT_ACTIVATION
from ._adapter import Adapter
from ._dispatch import FLAG, backend_of, is_served, keep_only_if_patched
from ._gates import considered
from ._ownership import counted, counts_of_new
from ._patterns import Pattern, excitation_inside, is_excitation, is_sequential, is_written_over, pattern
from ._weights import unusual

_operator = torch.ops.attnkernels.squeeze_excite_.default
_DROPS = ("torch.nn.modules.linear.Identity", "timm.layers.drop.DropPath")


@dataclass(frozen=True)
class Block:
    """A block of a library, which computes act(drop(after(gate(before(x)))) + shortcut(x)), by names of its children.

    Attributes:
        original: the qualified name of its class.
        before: what is called before the excitation, in order; a name with "?" may be absent.
        gate: the excitation.
        after: what is called after it, as `before`.
        inside: a Sequential of which the excitation is a child, instead of `before`, `gate` and `after`.
        drop: what is called before the sum.
        shortcut: what is called on x for the sum; where it is absent, x is added.
        sums: an attribute of the block without which, or if it is false, nothing is dropped or added; empty: always.
        act: what is called last.
        in_place: whether the sum is written over its first operand, as in the block's own forward.
    """

    original: str
    before: str = ""
    gate: str = "se"
    after: str = ""
    inside: str = ""
    drop: str = ""
    shortcut: str = ""
    sums: str = ""
    act: str = ""
    in_place: bool = False

    def adapter(self) -> Adapter:
        """The adapter of these blocks."""
        arguments = self._joined if self._joins else self._pattern_of
        return Adapter("squeeze_excite", (self.original,), arguments, self._serve, self._fuses, self._excitation_of)

    @property
    def _joins(self) -> bool:
        """Whether the sum and the activation follow the excitation at once, so that the op does them too."""
        return not self.after and not self.inside

    def _excitation_of(self, block: nn.Module) -> nn.Module | None:
        if not self.inside:
            return block._modules.get(self.gate)
        sequence = block._modules.get(self.inside)
        return None if sequence is None else next(filter(is_excitation, sequence._modules.values()), None)

    def _fuses(self, block: nn.Module) -> str:
        found = self._pattern_of(block)
        fits = not isinstance(found, str) and not unusual(block, found)
        norm = fits and found.norm is not None
        if not self._joins:
            return f"{'normalisation, ' if norm else ''}activation, excitation (inference on a CPU)"
        also = "; in inference on a CPU the normalisation as well" if norm else ""
        return f"{self.gate}, residual sum, {self.act}{also}"

    def _drops(self, block: nn.Module) -> tuple[nn.Module, ...]:
        drop = block._modules.get(self.drop)
        return () if drop is None else (drop,)

    def _joined(self, block: nn.Module) -> Gated | str:
        """What the op takes that does the sum and the activation too; a reason where it cannot."""
        last = block._modules.get(self.act)
        if last is None or not is_bare(last) or pointwise_name(last.__class__) != "relu":
            return f"its {self.act} is not a bare ReLU, the excitation alone is replaced"
        for drop in self._drops(block):
            if not is_bare(drop) or qualified_name(drop.__class__) not in _DROPS:
                return f"its {self.drop} is a {qualified_name(drop.__class__)}, the excitation alone is replaced"
        return excitation_inside(block, self.gate)

    def _pattern_of(self, block: nn.Module) -> Pattern | str:
        if self.inside:
            sequence = block._modules.get(self.inside)
            if not is_sequential(sequence):
                return f"its {self.inside} is no Sequential"
            names, children = list(sequence._modules), list(sequence._modules.values())
            found: Pattern | str = "it has no squeeze-and-excitation module"
            if (gate := self._excitation_of(block)) is not None:
                at = children.index(gate)
                found = pattern(children[:at], sequence, names[at], children[at + 1 :], [sequence])
            return f"in its {self.inside}, {found}" if isinstance(found, str) else found
        around = []
        if self._joins:
            if isinstance(obstacle := self._joined(block), str):
                return obstacle
            around = [block._modules[self.act], *self._drops(block)]
        head, after = _children(block, self.before), _children(block, self.after)
        if head is None or after is None:
            return "a part of it is missing"
        return pattern(head, block, self.gate, after, around)

    # ---- how a patched block runs

    def _serve(self, block: nn.Module, original: Callable, x: Tensor) -> Tensor:
        guard = self._matched(block, x)
        if guard is not None:
            return self._written_over(block, x, guard)
        found = self._matched_part(block, x) if self._joins else None
        before = None if found is None else _children(block, self.before)
        if before is None or any(drop.training and getattr(drop, "drop_prob", 0) > 0 for drop in self._drops(block)):
            return original(block, x)
        y = _through(before, x)
        shortcut = self._shortcut(block, x)
        if shortcut.shape == y.shape and shortcut.dtype == y.dtype:
            return found(y, backend_of(block), shortcut, "relu")
        return self._finished(block, block._modules[self.gate](y), shortcut)

    def _written_over(self, block: nn.Module, x: Tensor, guard: Guard) -> Tensor:
        """What the block computes, with the operator over the convolution's result where nobody else has that."""
        found, joins = guard.extra, self._joins
        shortcut = self._shortcut(block, x) if self.inside else None
        y, counts = counted(found.convolution, _through(found.before, x))
        if joins:
            shortcut = self._shortcut(block, x)
        if counts == found.counts and _write_over(guard, y, shortcut if joins else None):
            if joins:
                return y
        else:
            y = _through(found.fused, y)
        y = _through(found.after, y)
        return self._finished(block, y, self._shortcut(block, x) if shortcut is None else shortcut)

    def _shortcut(self, block: nn.Module, x: Tensor) -> Tensor | None:
        """What is added to the block's result; None for nothing."""
        if self.sums and getattr(block, self.sums) in (None, False):
            return None
        shortcut = block._modules.get(self.shortcut)
        return x if shortcut is None else shortcut(x)

    def _finished(self, block: nn.Module, y: Tensor, shortcut: Tensor | None) -> Tensor:
        if shortcut is not None:
            y = _through(self._drops(block), y)
            if self.in_place:
                y += shortcut
            else:
                y = y + shortcut
        return block._modules[self.act](y) if self.act else y

    # ---- whether it does

    def _matched(self, block: nn.Module, x: Tensor) -> Guard | None:
        """The block's guard, with its Pattern as `extra`, where the operator may run in this call."""
        if torch.is_grad_enabled() or not (isinstance(x, Tensor) and x.is_cpu):
            return None
        found = match(block, x, NAME, WRITES_OVER)
        if found is not None:
            guard, backend = found
            return guard if backend == "cpu" else None
        backend = backend_of(block)
        if (
            not is_written_over(self._excitation_of(block))
            or not is_ordinary(x, WRITES_OVER)
            or backends.plain_backend(x, backend) != "cpu"
        ):
            return None
        counts, found = counts_of_new(), self._pattern_of(block)
        if not counts or isinstance(found, str) or not is_served(found.fused[-1]):
            return None
        norm = () if found.norm is None else (found.norm,)
        of_inference = (*norm, *(self._drops(block) if self._joins else ()))
        if any(module.training for module in of_inference):
            return None
        excitation = found.fused[-1]
        guard = cache(
            block,
            [*found.around, found.convolution, *(child for module in found.fused for child in module.modules())],
            entries(found.taken()),
            [
                (F.__dict__, "conv2d"),
                (method_owner("_conv_forward", type(found.convolution)).__dict__, "_conv_forward"),
                *((module.__dict__, "eps") for module in norm),
                *((module.__dict__, "training") for module in of_inference),
                *_settings(found.excitation, excitation),
            ],
            (),
            (
                found.norm.eps if norm else 0.0,
                INPUT_ACTIVATION[found.activation],
                *found.excitation.integers("relu" if self._joins else None),
            ),
            backend,
            found._replace(counts=counts),
        )
        keep_only_if_patched(block, backend)
        return guard

    def _matched_part(self, block: nn.Module, x: Tensor) -> Gated | None:
        """The op's arguments where it may do the excitation, the sum and the activation of this call."""
        known = match(block, x, PART)
        if known is not None and x.dim() == 4:
            guard, _ = known
            try:
                weights = guard.tensors()
            except LookupError:
                pass
            else:
                if are_ordinary(*weights):  # a layout may have changed
                    return guard.extra._replace(weights=weights)
        backend = backend_of(block)
        found = considered(block, x, self._joined, backend)
        if found is None or not is_served(excitation := block._modules[self.gate]):
            return None
        if backends.plain_backend(x, backend):
            passed = (excitation, block._modules[self.act], *self._drops(block), *excitation._modules.values())
            settings = _settings(found, excitation)
            cache(block, passed, entries(found.taken()), settings, (), (), backend, found, name=PART)
            keep_only_if_patched(block, backend)
        return found


def _settings(found: Gated, module: nn.Module) -> list[tuple[Any, str]]:
    """Entries that decide whether the op computes what an excitation inside a block does, for a guard of the block."""
    return [*((module.__dict__, name) for name in (FLAG, *found.own)), *found.settings_of(module)]


def _children(block: nn.Module, names: str) -> list[nn.Module] | None:
    """The children of these names, as in `Block.before`; None where one is missing."""
    found = [(name, block._modules.get(name.rstrip("?"))) for name in names.split()]
    if any(child is None and not name.endswith("?") for name, child in found):
        return None
    return [child for _, child in found if child is not None]


def _through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _write_over(guard: Guard, x: Tensor, residual: Tensor | None) -> bool:
    """The operator over x, the convolution's result; False, and x as it was, where it refuses."""
    epsilon, input_activation, *codes = guard.arguments
    try:
        mean, variance, weight, bias, *weights = guard.tensors()
        _operator(x, mean, variance, weight, bias, epsilon, input_activation, *weights, residual, *codes)
    except (RuntimeError, LookupError):
        return False
    return True
