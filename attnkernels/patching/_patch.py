"""patch and unpatch: plan first, then change what has to be changed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .. import backends
from ..layers._fusing import qualified_name
from ._adapter import Adapter, find_adapter
from ._dispatch import is_flagged, lock, release, serve
from ._registry import ADAPTERS
from ._weights import sharded_modules, unusual
from .report import Replaced, Report, Skipped

Selector = str | type[nn.Module]


def patch(
    model: nn.Module,
    *,
    include: Selector | Iterable[Selector] | None = None,
    exclude: Selector | Iterable[Selector] | None = None,
    backend: str = "auto",
    dry_run: bool = False,
) -> Report:
    """Let the fused ops serve a model's attention modules, in place: same parameters, same state_dict, same outputs.

    Modules keep their classes: each recognised one is flagged, and the forward of its class asks for the flag, as long
    as the process holds a patched instance of it. So types, hooks, copies, pickles and wrappers work as before. A model
    that is loaded in another process runs the original code there until `patch` is called on it. Under
    `torch.compile`, export and tracing the original forward runs, which the compiler fuses by itself. In inference on a
    CPU the blocks of known networks do the batch normalisation and the activation before an excitation together with
    it, over what the convolution before them returned, unless one of these modules carries a hook or something may hold
    that result. A second call changes nothing but, if asked, the backend.

    Args:
        model: any module; also one that is itself an attention module.
        include: module names (patterns as of a shell: "layer1.*"; * matches dots too) or module classes, one or
            several; of a module with several names each counts. Only modules that match are replaced. None: all.
        exclude: the same; modules that match are left alone.
        backend: "auto", "cpu", "cuda", "triton" or "reference", for every call of these modules.
        dry_run: only report.

    Returns:
        What was replaced and what was left alone and why; printed, a table.

    Raises:
        TypeError: model is no module, include or exclude is neither names nor module classes.
        ValueError: a pattern matches no module; no such backend, or it cannot run on the device of a module's
            parameters. Nothing has been changed then.
    """
    _check_model("patch", model)
    if backend not in backends.BACKENDS:
        raise ValueError(f"patch: backend: expected one of {', '.join(map(repr, backends.BACKENDS))}, got {backend!r}")
    names = _names(model)
    included = None if include is None else _Selection("include", include, names)
    excluded = _Selection("exclude", exclude, names) if exclude is not None else None

    with lock:  # classes stay as they are between the plan and what is done
        sharded = sharded_modules(model)
        candidates = [
            _candidate(names[id(module)], module, included, excluded, id(module) in sharded)
            for module in model.modules()
        ]
        candidates = _without_lonely_blocks([candidate for candidate in candidates if candidate is not None])
        chosen = [candidate for candidate in candidates if not candidate.obstacle]
        replaced = tuple(
            Replaced(c.name, c.original, c.adapter.op, _backend(c, backend), _fuses(c.adapter, c.module))
            for c in chosen
        )
        skipped = tuple(Skipped(c.name, c.original, c.obstacle) for c in candidates if c.obstacle)
        if not dry_run:
            serve([(c.module, c.adapter.forward, backend) for c in chosen])
    recognised = tuple(name for name, adapter in ADAPTERS.items() if adapter.within is None)
    return Report(replaced, skipped, recognised, dry_run)


def unpatch(model: nn.Module) -> nn.Module:
    """Let every module of a patched model run its own forward, which restores exactly the model that was patched.

    Classes of which the process holds no other patched instance get their own forward back too.

    Args:
        model: a model, patched or not.

    Returns:
        The same model.

    Raises:
        TypeError: model is no module.
    """
    _check_model("unpatch", model)
    release(model.modules())
    return model


@dataclass(frozen=True)
class _Candidate:
    name: str
    module: nn.Module
    adapter: Adapter
    obstacle: str

    @property
    def original(self) -> str:
        return qualified_name(type(self.module))


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each module, by its identity: a module that is used in two places has two."""
    names: dict[int, list[str]] = {}

    def walk(module: nn.Module, name: str, parents: tuple[nn.Module, ...]) -> None:
        names.setdefault(id(module), []).append(name)
        for key, child in module._modules.items():
            if child is not None and not any(child is parent for parent in parents):
                walk(child, f"{name}.{key}" if name else key, (*parents, child))

    walk(model, "", (model,))
    return names


class _Selection:
    """Modules chosen by name patterns and classes."""

    def __init__(self, argument: str, wanted: Selector | Iterable[Selector], names: dict[int, list[str]]):
        if isinstance(wanted, str | type):
            wanted = [wanted]
        if not isinstance(wanted, Iterable):
            raise TypeError(f"patch: {argument}: expected names or module classes, got {wanted!r}")
        self.patterns: list[str] = []
        self.classes: list[type] = []
        for item in wanted:
            if isinstance(item, str):
                if not any(fnmatch.fnmatchcase(name, item) for aliases in names.values() for name in aliases):
                    raise ValueError(f"patch: {argument}: expected a pattern that matches some module, got {item!r}")
                self.patterns.append(item)
            elif isinstance(item, type) and issubclass(item, nn.Module):
                self.classes.append(item)
            else:
                raise TypeError(f"patch: {argument}: expected names or module classes, got {item!r}")

    def matched_by(self, names: list[str], module: nn.Module) -> str:
        """What of the selection a module with these names matches; empty where it matches nothing."""
        for pattern in self.patterns:
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                return repr(pattern)
        return next((cls.__name__ for cls in self.classes if isinstance(module, cls)), "")


def _candidate(
    names: list[str], module: nn.Module, included: _Selection | None, excluded: _Selection | None, sharded: bool
) -> _Candidate | None:
    """A module that an adapter recognises, with the obstacle to replacing it; None for any other."""
    adapter, obstacle = find_adapter(type(module), ADAPTERS)
    if adapter is None:
        return None
    if excluded is not None and (match := excluded.matched_by(names, module)):
        obstacle = f"excluded by {match}"
    elif included is not None and not included.matched_by(names, module):
        obstacle = "not among those to include"
    elif not obstacle and "forward" in module.__dict__:
        obstacle = "its forward was replaced on the instance"
    elif not obstacle:
        found = adapter.arguments(module)
        obstacle = found if isinstance(found, str) else unusual(module, found, sharded)
    if obstacle and is_flagged(module):
        obstacle += " (it stays as an earlier patch left it)"
    return _Candidate(names[0], module, adapter, obstacle)


def _without_lonely_blocks(candidates: list[_Candidate]) -> list[_Candidate]:
    """Drops the blocks whose attention module is not replaced: that module's own line says why, or there is none."""
    replaced = {id(candidate.module) for candidate in candidates if not candidate.obstacle}

    def stays(candidate: _Candidate) -> bool:
        within = candidate.adapter.within
        return within is None or id(within(candidate.module)) in replaced

    return [candidate for candidate in candidates if stays(candidate)]


def _fuses(adapter: Adapter, module: nn.Module) -> str:
    return adapter.fuses if isinstance(adapter.fuses, str) else adapter.fuses(module)


def _backend(candidate: _Candidate, backend: str) -> str:
    """The backend that the module's calls will run on while its parameters stay where they are."""
    parameter = next(candidate.module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    wanted = backends.requested(backend)
    if wanted == "auto":
        return backends.best_wall(device)
    if reason := backends.unavailable(wanted, device):
        raise ValueError(f"patch: backend: {wanted!r} cannot run {candidate.name or 'the model'}: {reason}")
    return wanted


def _check_model(function: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model: expected a torch.nn.Module, got {type(model).__name__}")
