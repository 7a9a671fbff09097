"""patch and unpatch: plan first, then change what has to be changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from .. import backends
from .._messages import shortened, shown
from .._modules import qualified_name
from ._adapter import Adapter, find_adapter
from ._availability import device_of, unserved, waiting
from ._dispatch import is_flagged, lock, release, serve
from ._registry import ADAPTERS
from ._selection import Selection, Selector, names_of_modules
from ._weights import sharded_modules, unusual
from .report import Replaced, Report, Skipped


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
    that result. Where nothing but the formula in PyTorch could serve a module (no library was built, no backend for its
    device), it is left alone, unless backend="reference" is asked for. A second call changes nothing but, if asked, the
    backend.

    Args:
        model: any module; also one that is itself an attention module.
        include: module names (patterns as of a shell: "layer1.*"; * matches dots too) or module classes, one or
            several; of a module with several names each counts. Only modules that match are replaced. None: all.
        exclude: the same; modules that match are left alone.
        backend: "auto", "cpu", "cuda", "triton" or "reference", for every call of these modules.
        dry_run: only report.

    Returns:
        What was replaced, and what was left alone and why, as data and in print. The model is changed in place.

    Raises:
        TypeError: model is no module, include or exclude is neither names nor module classes, backend is no name.
        ValueError: a pattern matches no module; no such backend, or it cannot run on the device of a module's
            parameters. Nothing has been changed then.
    """
    _check_model("patch", model)
    backends.checked(backend, "patch: backend")
    names = names_of_modules(model)
    included = None if include is None else Selection("include", include, model, names)
    excluded = None if exclude is None else Selection("exclude", exclude, model, names)
    wanted = backends.requested(backend)

    with lock:  # classes stay as they are between the plan and what is done
        sharded = sharded_modules(model)
        found = [
            _candidate(names[id(module)], module, included, excluded, id(module) in sharded, wanted)
            for module in model.modules()
        ]
        found = _without_parts([candidate for candidate in found if candidate is not None])
        candidates = _without_lonely_blocks(found)
        chosen = [candidate for candidate in candidates if not candidate.obstacle]
        replaced = tuple(
            Replaced(c.name, c.original, c.op, _backend(c, backend, wanted), _fuses(c.adapter, c.module))
            for c in chosen
        )
        skipped = tuple(Skipped(c.name, c.original, c.obstacle, c.is_block) for c in candidates if c.obstacle)
        if not dry_run:
            serve([(c.module, c.adapter.forward, backend) for c in chosen])
    attention = [candidate.module for candidate in found if not candidate.is_block]
    hints = [
        *(hint for selection in (included, excluded) if selection is not None for hint in selection.hints(attention)),
        *_scripted(model),
        *(waiting([candidate.module for candidate in chosen]) if wanted == "auto" else ()),
    ]
    recognised = tuple(name for name, adapter in ADAPTERS.items() if adapter.within is None)
    return Report(replaced, skipped, recognised, dry_run, tuple(hints))


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
    op: str
    obstacle: str
    excluded: bool

    @property
    def original(self) -> str:
        return qualified_name(type(self.module))

    @property
    def is_block(self) -> bool:
        return self.adapter.within is not None


def _candidate(
    names: list[str],
    module: nn.Module,
    included: Selection | None,
    excluded: Selection | None,
    sharded: bool,
    wanted: str,
) -> _Candidate | None:
    """A module that an adapter recognises, with the obstacle to replacing it; None for any other."""
    adapter, obstacle = find_adapter(type(module), ADAPTERS)
    if adapter is None:
        return None
    found: tuple | str = ""
    match = "" if excluded is None else excluded.matched_by(module)
    if match:
        obstacle = f"excluded by {match}"
    elif included is not None and not included.matched_by(module):
        obstacle = "not among those to include"
    elif not obstacle and "forward" in module.__dict__:
        obstacle = "its forward was replaced on the instance"
    elif not obstacle:
        found = adapter.arguments(module)
        obstacle = found if isinstance(found, str) else unusual(module, found, sharded)
        if not obstacle and wanted == "auto":
            obstacle = unserved(device_of(module))
    op = found.op.name if hasattr(found, "op") else adapter.op  # that of a block is the op of the module in it
    return _Candidate(names[0], module, adapter, op, obstacle and _left(module, obstacle), bool(match))


def _left(module: nn.Module, obstacle: str) -> str:
    """What the report says of a module that is left alone."""
    return f"{obstacle} (it stays as an earlier patch left it)" if is_flagged(module) else obstacle


def _without_parts(candidates: list[_Candidate]) -> list[_Candidate]:
    """Drops what is inside a module that is replaced as a whole, which is not where a part of it is excluded."""
    result: list[_Candidate] = []
    parts: set[int] = set()
    for candidate in candidates:  # a module comes before what is inside
        if id(candidate.module) in parts:
            continue
        if not candidate.obstacle and not candidate.is_block:
            inside = {id(part) for part in candidate.module.modules() if part is not candidate.module}
            if kept := [other for other in candidates if other.excluded and id(other.module) in inside]:
                obstacle = _left(candidate.module, f"its part {kept[0].name} is excluded")
                candidate = replace(candidate, obstacle=obstacle)
            else:
                parts |= inside
        result.append(candidate)
    return result


def _without_lonely_blocks(candidates: list[_Candidate]) -> list[_Candidate]:
    """Drops the blocks whose attention module is not replaced: that module's own line says why, or there is none."""
    replaced = {id(candidate.module) for candidate in candidates if not candidate.obstacle}

    def stays(candidate: _Candidate) -> bool:
        within = candidate.adapter.within
        return within is None or id(within(candidate.module)) in replaced

    return [candidate for candidate in candidates if stays(candidate)]


def _scripted(model: nn.Module) -> list[str]:
    """What to say of modules that do not run in Python."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return ["modules compiled by torch.jit run code of their own, which patch cannot change"]
    return []


def _fuses(adapter: Adapter, module: nn.Module) -> str:
    return adapter.fuses if isinstance(adapter.fuses, str) else adapter.fuses(module)


def _backend(candidate: _Candidate, backend: str, wanted: str) -> str:
    """The backend that the module's calls will run on while its parameters stay where they are."""
    device = device_of(candidate.module)
    if wanted == "auto":
        return backends.best_backend(device)
    if reason := backends.unavailable(wanted, device):
        by = "" if backend == wanted else " (by use_backend or ATTNKERNELS_BACKEND)"
        name = shortened(candidate.name) or "the model"
        message = f"patch: backend: expected one that can run {name}, got {wanted!r}{by}: "
        raise ValueError(message + shortened(reason, 300 - len(message)))
    return wanted


def _check_model(function: str, model: nn.Module) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        got = f"{shown(model)}: make an instance of it"
    elif isinstance(model, str):
        got = f"{shown(model)}: make the model of that name"
    elif isinstance(model, list | tuple):
        got = f"{type(model).__name__}: give one module at a time"
    elif isinstance(model, Report):
        got = "the report of patch, which changes the model in place: give the model itself"
    else:
        got = shown(model)
    raise TypeError(f"{function}: model: expected a torch.nn.Module, got {got}")
