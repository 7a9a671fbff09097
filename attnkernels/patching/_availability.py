"""Where something faster than plain PyTorch could serve a module: elsewhere its own forward is left to run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _load, backends

_CPU = torch.device("cpu")
_GPU = torch.device("cuda", 0)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU for one that has none."""
    parameter = next(module.parameters(), None)
    return _CPU if parameter is None else parameter.device


def unserved(device: torch.device) -> str:
    """Why nothing but the formula could serve modules on a device; empty where something can.

    On the CPU and on meta models are made, to be moved: there it is enough that some device of this machine is served.
    """
    may_move = device.type in ("cpu", "meta")
    if backends.best_backend(_CPU if may_move else device) != "reference" or (may_move and _gpu_may_serve()):
        return ""
    reasons = [backends.unavailable("cpu", _CPU)] if may_move else []
    if device.type == "cuda" or (may_move and torch.cuda.is_available()):
        reasons += [backends.unavailable(backend, _GPU if may_move else device) for backend in backends.GPU_BACKENDS]
    if not reasons:
        return f"no backend takes tensors on {device.type}"
    return f"{'; '.join(reasons)}; `python -m attnkernels.info` tells how to get it"


def _gpu_may_serve() -> bool:
    # Nothing that initialises CUDA is asked: a process that has done so must not be forked, as data loaders do.
    return not backends.triton_missing() or (_load.is_loaded("cuda") and torch.cuda.is_available())


def waiting(modules: list[nn.Module]) -> list[str]:
    """What to say of the patched modules that nothing serves where they are now: a sentence for each device."""
    devices = {device.type for device in map(device_of, modules) if backends.best_backend(device) == "reference"}
    return [
        f"no backend takes tensors on {device} here; modules take that of the device they are moved to"
        for device in sorted(devices)
    ]


def is_unserved(x: object, backend: str) -> bool:
    """Whether nothing but the formula could serve a call on `x` with `backend=`, and nobody asked for it.

    The module's own forward computes the same then, and takes no longer. On meta nothing takes any time.
    """
    if not isinstance(x, Tensor) or x.is_meta:
        return False
    if _load.is_loaded("cpu") if x.is_cpu else backends.best_backend(x.device) != "reference":
        return False
    return backends.requested(backend) == "auto"
