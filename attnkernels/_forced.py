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
from torch.torch_version import TorchVersion
from torch.utils import checkpoint

_CHECKPOINT = checkpoint._CheckpointFrame
_NAME = "_attnkernels_backend"  # on a checkpoint's frame, which lives as long as what it has to recompute


# The stack of hooks by which tensors are saved.
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_pop_hooks = torch._C._autograd._pop_saved_tensors_default_hooks
_push_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_graph_task = torch._C._current_graph_task_id
# From PyTorch 2.14 on, torch.compile reads context variables, and compiles anew where their values differ.
COMPILER_KNOWS_CONTEXT = TorchVersion(torch.__version__) >= (2, 14)


class Forced(str):
    """A backend's name, with the checkpoint in whose forward or recomputation it was asked for.

    Attributes:
        checkpoint: the checkpoint; None outside of any.
        token: what `leave` restores. Here, since one `use_backend` may be entered in several contexts at once.
    """

    checkpoint: weakref.ref | None = None
    token: Token | None = None


_forced: ContextVar[str] = ContextVar("attnkernels_backend", default="")
current = _forced.get  # what use_backend asks for here; "" for nothing
# The same for a compiler that cannot read context variables: of the whole process, whatever the thread.
_names: list[str] = []


def enter(name: str) -> None:
    """Ask for a backend in this context."""
    if not COMPILER_KNOWS_CONTEXT:
        _names.append(name)
        if is_dynamo_compiling():
            return
    forced = Forced(name)
    for frame, _ in _checkpoints():
        forced.checkpoint = weakref.ref(frame)
        break
    forced.token = _forced.set(forced)


def leave() -> None:
    """Ask for what was asked for before the last `enter`."""
    if not COMPILER_KNOWS_CONTEXT and is_dynamo_compiling():
        _names.pop()
        return
    forced = _forced.get()
    token = getattr(forced, "token", None)
    if token is None:
        raise RuntimeError("use_backend: expected to be left in the context where it was entered, got another one")
    forced.token = None  # a module's guard may keep the name, and is not to keep the context
    _forced.reset(token)
    if not COMPILER_KNOWS_CONTEXT:
        _names.pop()


def _checkpoints() -> list[tuple[object, bool]]:
    """The checkpoints that this code runs in, the innermost first, each with whether it is being recomputed.

    (Not of the reentrant kind, which does not compare what is saved.)
    """
    if _top_hooks(True) is None:
        return []
    stack = []
    while (hooks := _top_hooks(True)) is not None:  # only the top can be seen
        stack.append(hooks)
        _pop_hooks()
    for hooks in reversed(stack):
        _push_hooks(*hooks)
    found = []
    for pack, _ in stack:
        # Nothing public tells it. The hook by which a checkpoint saves tensors has its frame in a closure, a weak
        # reference to it where it recomputes.
        for cell in getattr(inspect.unwrap(pack), "__closure__", None) or ():
            value = cell.cell_contents
            recomputes = isinstance(value, weakref.ref)
            frame = value() if recomputes else value
            if isinstance(frame, _CHECKPOINT):
                found.append((frame, recomputes))
                break
    return found


def is_simple() -> bool:
    """Whether what `use_backend` asks for is all that counts where autograd records: no backward, no checkpoint."""
    return _graph_task() == -1 and _top_hooks(True) is None


def of_call() -> str:
    """The backend asked for where a call with "auto" is made here; "" for none."""
    if not COMPILER_KNOWS_CONTEXT and is_dynamo_compiling():
        return _names[-1] if _names else ""
    forced = _forced.get()
    if is_dynamo_compiling() or not torch.is_grad_enabled():
        return forced
    if not forced and torch._C._current_graph_task_id() != -1 and torch._C._is_key_in_tls("context"):
        # In autograd's worker threads: the context of the thread that called backward.
        forced = torch._C._get_obj_in_tls("context").get(_forced, "")
    recorded = []
    for frame, recomputes in _checkpoints():
        if forced and forced.checkpoint is not None and forced.checkpoint() is frame:
            break
        if recomputes:
            forced = getattr(frame, _NAME, "")
            break
        recorded.append(frame)
    if forced:
        for frame in recorded:
            setattr(frame, _NAME, forced)
    return forced
