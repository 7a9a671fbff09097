"""Which backend runs a call: "cpu" (fused C++), "cuda" (fused CUDA C++), "triton", "reference" (pure PyTorch).

A call's `backend=` wins over `use_backend`, which wins over the environment variable ATTNKERNELS_BACKEND, which wins
over "auto". "auto" takes the best backend for the op, device, dtype and shape; each op states its own exceptions, with
the measurement behind them. A backend that was asked for by name and is not there raises: nothing else poses as it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from . import _forced, _load
from ._context import FUNCTION, PLAIN, TENSORS, beyond_reverse_mode, is_ordinary
from ._messages import not_among

if TYPE_CHECKING:
    from .ops._op import Op

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
GPU_BACKENDS = ("cuda", "triton")  # best first, where an op does not say otherwise
FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))
_HIDDEN = ("emulated",)  # the CUDA kernels on the host: tests only


OPS: dict[str, Op] = {}  # by the name of their public function


def checked(name: Any, where: str) -> str:
    """The name of a backend.

    Args:
        name: what was given as one.
        where: how the message begins: the function and its argument.

    Raises:
        TypeError: it is no string.
        ValueError: it is no backend's name.
    """
    if isinstance(name, str) and (name in BACKENDS or name in _HIDDEN):
        return name
    raise not_among(where, name, BACKENDS)


_environment = checked(os.environ.get("ATTNKERNELS_BACKEND", "auto") or "auto", "ATTNKERNELS_BACKEND")


class use_backend:
    """Take this backend for every call inside the `with` block (a call's own `backend=` still wins).

    As a decorator, for every call that the decorated function makes. Without either it does nothing, and warns.

    The backward of a call takes the call's backend, wherever it runs. So does what torch.utils.checkpoint recomputes
    with use_reentrant=False; the reentrant kind knows nothing of the forward but its inputs, and takes the backend that
    is asked for around the backward.

    Before PyTorch 2.14, torch.compile cannot tell contexts apart: a compiled call takes the backend of the block that
    the process entered last, in whichever thread.

    Args:
        name: "auto", "cpu", "cuda", "triton" or "reference".

    Raises:
        TypeError: the name is no string.
        ValueError: the name is none of these. Whether the backend can run is decided by each call.
    """

    _used = True  # where a wrong name ends the construction

    def __init__(self, name: str) -> None:
        self._name = checked(name, "use_backend: name")
        self._used = False

    def __enter__(self) -> None:
        self._used = True
        _forced.enter(self._name)

    def __exit__(self, *error: object) -> None:
        _forced.leave()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._used = True

        @functools.wraps(function)
        def forced_function(*args: Any, **kwargs: Any) -> Any:
            with use_backend(self._name):
                return function(*args, **kwargs)

        return forced_function

    def __del__(self) -> None:
        if not self._used and not sys.is_finalizing():
            call = f"use_backend({self._name!r})"
            warnings.warn(f"{call} has no effect without `with`: write `with attnkernels.{call}: ...`", stacklevel=2)


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
        return f"{_load.why_missing('cuda')}; use the triton backend, or see python -m attnkernels.info"
    major, minor = torch.cuda.get_device_capability(device_index)
    built = _load.build_record().get("cuda_architectures", [])
    found = f"{major}.{minor}"
    if any(_runs(architecture, major, minor) for architecture in built):
        return ""
    return (
        f"_C_cuda.so was built for {', '.join(built) or 'no architecture'}, this GPU is {found}; "
        f'rebuild with TORCH_CUDA_ARCH_LIST="{found}", or use the triton backend'
    )


def unavailable(backend: str, device: torch.device) -> str:
    """Why a backend cannot take tensors on `device`; empty when it can."""
    if backend == "reference":
        return ""
    if backend in ("cpu", "emulated"):
        if device.type != "cpu":
            return f"it takes CPU tensors, these are on {device}"
        return _load.why_missing(backend)
    if device.type != "cuda":
        return f"it takes CUDA tensors, these are on {device}"
    if backend == "triton":
        return triton_missing()
    return cuda_missing(device.index if device.index is not None else torch.cuda.current_device())


# A constant of the process, which torch.compile is not to look into. What torch.compiler.assume_constant_result sets,
# without its import of the whole compiler (over a second).
unavailable._dynamo_marked_constant = True


def best_backend(device: torch.device, on_gpu: tuple[str, ...] = GPU_BACKENDS) -> str:
    """The fused backend that `auto` prefers on a device, on a GPU in the order given; "reference" if there is none."""
    if device.type == "cpu":
        return "cpu" if _load.is_loaded("cpu") else "reference"
    if device.type == "cuda":
        for backend in on_gpu:
            if not unavailable(backend, device):
                return backend
    return "reference"


def gpu_backends(x: Tensor) -> tuple[str, ...]:
    """The order in which `auto` prefers the backends of a GPU, where an op does not say otherwise of its `x`."""
    return GPU_BACKENDS


forced = _forced.current  # what use_backend asks for here; "" for nothing


def requested(backend: str, op: str = "") -> str:
    """The backend that counts for a call (of `op`, in a message) made with `backend=`."""
    if not isinstance(backend, str) or backend != "auto":
        return checked(backend, f"{op}: backend" if op else "backend")
    return _forced.of_call() or _environment


class _Question(str):
    """A `backend=` with which a call tells what it would run on instead of running."""


def _is_exporting() -> bool:
    """torch.compiler.is_exporting, which the compiler takes for true in every compilation before PyTorch 2.14."""
    if _forced.COMPILER_KNOWS_CONTEXT:
        return torch.compiler.is_exporting()
    return torch.compiler._is_exporting_flag


class _Answer(Exception):
    """The backend, and why."""


def choose(
    op: str,
    x: Tensor,
    backend: str,
    tensors: Iterable[Tensor | None],
    *,
    only_formula: str = "",
    when_compiled: str = "",
    on_gpu: Callable[[Tensor], tuple[str, ...]] = gpu_backends,
) -> str:
    """The backend for a call of `op` made with `backend=`: the one place that decides.

    Args:
        op: the public function's name.
        x: the tensor whose device decides.
        backend: the call's own argument.
        tensors: the other tensors of the call.
        only_formula: under which condition, met by this call, nothing but the formula computes it ("where ...").
        when_compiled: why `auto` takes the formula under torch.compile; empty where it does not.
        on_gpu: the order in which `auto` prefers the backends of a GPU, by x.

    Raises:
        ValueError: a backend was asked for by name and cannot take this call.
    """
    wanted = requested(backend, op)
    compiling = torch.compiler.is_compiling()
    if not only_formula and not compiling:
        only_formula = needs_formula(x, *tensors)
    if only_formula:
        if wanted not in ("auto", "reference"):
            raise ValueError(f"{op}: backend: expected 'auto' or 'reference' {only_formula}, got {wanted!r}")
        chosen, reason = "reference", only_formula
    elif wanted != "auto":
        if obstacle := unavailable(wanted, x.device):
            usable = ", ".join(w for w in (*BACKENDS[1:], *_HIDDEN) if not unavailable(w, x.device))
            raise ValueError(f"{op}: backend: expected one that can run here ({usable}), got {wanted!r}: {obstacle}")
        chosen, reason = wanted, "asked for by name"
    elif compiling and when_compiled:
        chosen, reason = "reference", when_compiled
    elif compiling and _is_exporting():
        chosen, reason = "reference", "an exported program is to load where this library is not installed"
    elif x.is_cpu and _load.is_loaded("cpu"):  # as best_backend, which would make a device of x first
        chosen, reason = "cpu", "best on cpu"
    else:
        chosen, reason = best_backend(x.device, on_gpu(x)), ""
    if backend.__class__ is _Question:
        kind = x.device.type
        raise _Answer(
            chosen, reason or (f"best on {kind}" if chosen != "reference" else f"no fused backend for {kind} here")
        )
    return chosen


def overridden(tensors: tuple[Any, ...]) -> bool:
    """Whether one of the arguments answers a function by `__torch_function__` (a tracer's proxy, a subclass).

    A mode does not: the function runs in it, and the mode sees the operators.
    """
    if has_torch_function(tensors):
        for tensor in tensors:
            if tensor.__class__ not in PLAIN:
                return True
    return False


def needs_formula(*tensors: Tensor | None) -> str:
    """Why nothing but the plain formula can take these tensors now ("where ..."); empty where kernels can.

    A subclass may hold its values anywhere.
    """
    if transform := beyond_reverse_mode():
        return transform
    for tensor in tensors:  # a loop, not all(): this runs on every call
        if tensor.__class__ not in PLAIN:
            return f"where a tensor is of the subclass {tensor.__class__.__name__}"
    return ""


# Names of this module: the lookups are on the way of every call.
_grad_enabled = torch.is_grad_enabled
_autocasting = torch._C._is_any_autocast_enabled


def plain_backend(
    x: Any,
    backend: str,
    tensors: Iterable[Any] = (),
    on_gpu: Callable[[Tensor], tuple[str, ...]] = gpu_backends,
    does: int = FUNCTION,
) -> str:
    """The backend of kernels for a call that nothing is special about; empty where each argument is to be considered.

    Checking everything one after the other takes longer than a small op. Where this function names a backend, `choose`
    would name the same; what is left to do is to check dtypes, devices and shapes, which an operator may do itself:
    then it is called at once, and the checks in Python say afterwards why it refused.

    Args:
        x: the tensor whose device decides, if it is one.
        backend: as in `choose`.
        tensors: all tensors of the call, if they are.
        on_gpu: as in `choose`.
        does: as in `is_ordinary`.
    """
    if (
        not is_ordinary(x, does)
        or x.dtype not in FLOATING
        or _autocasting()
        or backend.__class__ is not str  # a question, or an error
    ):
        return ""
    for tensor in tensors:
        if tensor.__class__ not in TENSORS and tensor is not None:
            return ""
    if backend == "auto":
        if _grad_enabled() and not _forced.is_simple():
            return ""
        backend = forced() or _environment
        if backend == "auto":
            if x.is_cpu:
                return "cpu" if _load.is_loaded("cpu") else ""
            backend = best_backend(x.device, on_gpu(x)) if x.is_cuda else "reference"
            return "" if backend == "reference" else backend
    if (backend not in BACKENDS and backend not in _HIDDEN) or unavailable(backend, x.device):
        return ""
    return "" if backend == "reference" else backend


def available_backends(op: str | None = None) -> tuple[str, ...]:
    """The backends that can run on this machine, best first; the same for every op.

    Args:
        op: a public function's name, to have it checked; None for all.

    Raises:
        TypeError: op is no string.
        ValueError: no such op.
    """
    if op is not None:
        op_of(op, "available_backends")
    backends = []
    if torch.cuda.is_available():
        gpu = torch.device("cuda", torch.cuda.current_device())
        backends += [backend for backend in ("cuda", "triton") if not unavailable(backend, gpu)]
    if _load.is_loaded("cpu"):
        backends.append("cpu")
    return (*backends, "reference")


def op_of(op: Any, where: str) -> Op:
    """The op of that name.

    Raises:
        TypeError, ValueError: no such op.
    """
    if isinstance(op, str) and op in OPS:
        return OPS[op]
    names = sorted(OPS)
    raise not_among(f"{where}: op", op, names, f"one of {', '.join(names)}", 0.6)


def plan(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> tuple[str, str]:
    """The backend that a call would take, and why."""
    found = op_of(op, "backend_of")
    question = _Question(checked(backend, f"{op}: backend"))
    try:
        found.function(*args, backend=question, **kwargs)
    except _Answer as answer:
        return answer.args
    except TypeError:
        _check_call(found, args, kwargs)
        raise
    raise AssertionError(f"{op} chose no backend")


def _check_call(op: Op, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise where a function does not take so many arguments, or none of these names."""
    signature = inspect.signature(op.function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
        names = inspect.Signature(bare)
        got = str(error).removeprefix("got ")
        raise TypeError(f"backend_of: *args, **kwargs: expected those of {op.name}{names}, got {got}") from None


def backend_of(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> str:
    """The name of the backend that `attnkernels.<op>(*args, **kwargs)` would run on, without running it.

    Takes what the function takes, and raises what it would raise; a TypeError that shows the function's signature where
    there are too few or too many arguments.
    """
    return plan(op, *args, backend=backend, **kwargs)[0]
