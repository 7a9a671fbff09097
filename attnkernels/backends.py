"""Which wall runs a call: "cpu" (fused C++), "cuda" (fused CUDA C++), "triton", "reference" (pure PyTorch).

A call's `backend=` wins over `use_backend`, which wins over the environment variable ATTNKERNELS_BACKEND, which wins
over "auto". "auto" takes the best wall for the op, device, dtype and shape; each op states its own exceptions, with
the measurement behind them. A wall that was asked for by name and is not there raises: nothing else poses as it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _load

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
GPU_WALLS = ("cuda", "triton")  # best first, where an op does not say otherwise
_HIDDEN = ("emulated",)  # the CUDA kernels on the host: tests only


@dataclass(frozen=True)
class Operator:
    """What the machinery knows of a public function.

    Attributes:
        name: the public function's name.
        example: returns `(args, kwargs)` of a small call on a device, for `info`.
        plan: maps a call's arguments (without `backend`) to `(tensor that decides, wall that "auto" takes, reason)`.
    """

    name: str
    example: Callable[[str], tuple[tuple, dict]]
    plan: Callable[..., tuple[Tensor, str, str]]


OPERATORS: dict[str, Operator] = {}
_forced: ContextVar[str] = ContextVar("attnkernels_backend", default="")


def register(operator: Operator) -> None:
    OPERATORS[operator.name] = operator


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS and name not in _HIDDEN:
        raise ValueError(f"{where}: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name


_environment = _checked(os.environ.get("ATTNKERNELS_BACKEND", "auto") or "auto", "ATTNKERNELS_BACKEND")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Take this wall for every call inside the `with` block (a call's own `backend=` still wins).

    Args:
        name: "auto", "cpu", "cuda", "triton" or "reference".

    Raises:
        ValueError: the name is none of these. Whether the wall can run is decided by each call.
    """
    token = _forced.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


@functools.cache
def triton_missing() -> str:
    """Why Triton kernels cannot run here; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return ""


def _runs(architecture: str, major: int, minor: int) -> bool:
    """Whether code built for "9.0", "9.0a" (that one only), "10.0f" (its family) or "9.0+PTX" runs on a GPU."""
    built_major, built_minor, suffix, ptx = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture).groups()
    built = int(built_major), int(built_minor)
    if suffix == "a":
        return built == (major, minor)
    return (built[0] == major and built[1] <= minor) or (bool(ptx) and built <= (major, minor))


@functools.cache
def cuda_missing(device_index: int) -> str:
    """Why the CUDA library cannot run on that GPU; empty when it can."""
    if not _load.is_loaded("cuda"):
        return _load.why_missing("cuda") + "; reinstall with nvcc on the PATH, or use the triton backend"
    major, minor = torch.cuda.get_device_capability(device_index)
    built = _load.build_record().get("cuda_architectures", [])
    found = f"{major}.{minor}"
    if any(_runs(architecture, major, minor) for architecture in built):
        return ""
    return (
        f"_C_cuda.so was built for {', '.join(built) or 'no architecture'}, this GPU is {found}; "
        f'rebuild with TORCH_CUDA_ARCH_LIST="{found}", or use the triton backend'
    )


# A constant of the process, which torch.compile is not to look into.
@torch.compiler.assume_constant_result
def unavailable(wall: str, device: torch.device) -> str:
    """Why a wall cannot take tensors on `device`; empty when it can."""
    if wall == "reference":
        return ""
    if wall in ("cpu", "emulated"):
        if device.type != "cpu":
            return f"it takes CPU tensors, these are on {device}"
        return _load.why_missing(wall)
    if device.type != "cuda":
        return f"it takes CUDA tensors, these are on {device}"
    if wall == "triton":
        return triton_missing()
    return cuda_missing(device.index if device.index is not None else torch.cuda.current_device())


def best_wall(device: torch.device, on_gpu: tuple[str, ...] = GPU_WALLS) -> str:
    """The fused wall that `auto` prefers on a device, on a GPU in the order given; "reference" where there is none."""
    if device.type == "cpu":
        return "cpu" if _load.is_loaded("cpu") else "reference"
    if device.type == "cuda":
        for wall in on_gpu:
            if not unavailable(wall, device):
                return wall
    return "reference"


def best_plan(x: Tensor, on_gpu: tuple[str, ...] = GPU_WALLS) -> tuple[Tensor, str, str]:
    """What an `Operator.plan` returns where `auto` takes the best wall of x's device."""
    kind, wall = x.device.type, best_wall(x.device, on_gpu)
    return x, wall, f"best on {kind}" if wall != "reference" else f"no fused wall for {kind} here"


forced = _forced.get  # what use_backend asks for here; "" for nothing


def requested(backend: str) -> str:
    """The backend that counts for a call made with `backend=`."""
    if backend != "auto":
        return _checked(backend, "backend")
    return _forced.get() or _environment


def resolve(op: str, x: Tensor, backend: str, on_gpu: tuple[str, ...] = GPU_WALLS) -> str:
    """The wall for a call of `op` on `x` made with `backend=`, where `auto` means the best wall of the device.

    `on_gpu` is the op's order of preference there.

    Raises:
        ValueError: a wall was asked for by name and cannot take this call.
    """
    wanted = requested(backend)
    if wanted == "auto":
        return best_wall(x.device, on_gpu)
    reason = unavailable(wanted, x.device)
    if reason:
        usable = ", ".join(w for w in (*BACKENDS[1:], *_HIDDEN) if not unavailable(w, x.device))
        raise ValueError(f"{op}: backend: expected one that can run here ({usable}), got {wanted!r}: {reason}")
    return wanted


def takes_cpu_kernels(op: str, x: Any, backend: str) -> bool:
    """Whether a call of `op` on `x` with `backend=` may go straight to the CPU kernels: nothing is recorded or cast.

    Between the layers of a model Python is cold, and checking every argument takes longer than a small op. An operator
    that checks as the public function does may be called at once; the checks in Python say afterwards why it refused.

    Raises:
        ValueError: as `resolve`.
    """
    return (
        x.__class__ is Tensor
        and not torch.is_grad_enabled()
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._is_any_autocast_enabled()
        and resolve(op, x, backend) == "cpu"
    )


def available_backends(op: str | None = None) -> tuple[str, ...]:
    """The backends that can run on this machine, best first; the same for every op.

    Args:
        op: a public function's name, to have it checked; None for all.

    Raises:
        ValueError: no such op.
    """
    if op is not None and op not in OPERATORS:
        raise ValueError(f"available_backends: op: expected one of {', '.join(sorted(OPERATORS))}, got {op!r}")
    walls = []
    if torch.cuda.is_available():
        gpu = torch.device("cuda", torch.cuda.current_device())
        walls += [wall for wall in ("cuda", "triton") if not unavailable(wall, gpu)]
    if _load.is_loaded("cpu"):
        walls.append("cpu")
    return (*walls, "reference")


def plan(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> tuple[str, str]:
    """The wall that a call would take, and why."""
    if op not in OPERATORS:
        raise ValueError(f"backend_of: op: expected one of {', '.join(sorted(OPERATORS))}, got {op!r}")
    x, wall, reason = OPERATORS[op].plan(*args, **kwargs)
    if requested(backend) != "auto":
        return resolve(op, x, backend), "asked for by name"
    return wall, reason


def backend_of(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> str:
    """The name of the wall that `attnkernels.<op>(*args, **kwargs)` would run on, without running it."""
    return plan(op, *args, backend=backend, **kwargs)[0]
