"""The backend that `use_backend` asks for, also where autograd makes a call anew.

Checkpointing runs a part of the forward again during the backward: perhaps after the `with` block, perhaps in a thread
of autograd's. The calls in it have to save the same tensors, so they take the backend of the forward.
"""

from __future__ import annotations

import inspect
import weakref
from contextvars import ContextVar, Token

import torch
from torch.compiler import is_dynamo_compiling
from torch.utils import checkpoint

_CHECKPOINT = checkpoint._CheckpointFrame
_NAME = "_attnkernels_backend"  # on a checkpoint's frame, which lives as long as what it has to recompute


class Forced(str):
    """A backend's name, with the checkpoint in whose forward or recomputation it was asked for."""

    checkpoint: weakref.ref | None = None


_forced: ContextVar[str] = ContextVar("attnkernels_backend", default="")
current = _forced.get  # what use_backend asks for here; "" for nothing
leave = _forced.reset


def enter(name: str) -> Token:
    """Ask for a backend in this context; the result is for `leave`."""
    forced = Forced(name)
    frame, _ = _checkpoint()
    forced.checkpoint = None if frame is None else weakref.ref(frame)
    return _forced.set(forced)


def _checkpoint() -> tuple[object | None, bool]:
    """The innermost checkpoint that this code runs in, if any, and whether it is recomputed.

    (Not of the reentrant kind, which does not compare what is saved.)
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None:
        return None, False
    # Nothing public tells it. The hook by which a checkpoint saves tensors has its frame in a closure, a weak reference
    # to it where it recomputes.
    for cell in getattr(inspect.unwrap(hooks[0]), "__closure__", None) or ():
        value = cell.cell_contents
        recomputes = isinstance(value, weakref.ref)
        frame = value() if recomputes else value
        if isinstance(frame, _CHECKPOINT):
            return frame, recomputes
    return None, False


def of_call() -> str:
    """The backend asked for where a call with "auto" is made here; "" for none."""
    forced = _forced.get()
    if is_dynamo_compiling() or not torch.is_grad_enabled():
        return forced
    if not forced and torch._C._current_graph_task_id() != -1 and torch._C._is_key_in_tls("context"):
        # In autograd's worker threads: the context of the thread that called backward.
        forced = torch._C._get_obj_in_tls("context").get(_forced, "")
    frame, recomputes = _checkpoint()
    if frame is None or (forced and forced.checkpoint is not None and forced.checkpoint() is frame):
        return forced
    if recomputes:
        return getattr(frame, _NAME, "")
    if forced:
        setattr(frame, _NAME, forced)
    return forced
