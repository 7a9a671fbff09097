"""Dispatchers: how the modules of an upstream class are served by an op and stay instances of that class.

A patched module carries a flag in its `__dict__`, the name of its backend. The forward of its class is replaced, once,
by a dispatcher that asks for the flag: flagged instances are served by an adapter, all others run the original forward
(0.1 us later). So `type(module)` is what it was, for everything that asks for it by identity; copies, pickles,
replicas and subclasses made by FSDP or parametrisations carry the flag along, a plain string, and load where this
library is not installed.

The dispatcher keeps the original under `__wrapped__`, where `inspect` and with it `torch.jit.script` and `torch.fx`
look for the source, and has the original's globals, in which scripting looks names up. It stands on the class that
defines the forward. `unpatch` takes it off the class when the process holds no flagged instance any more. Where
another library has wrapped the forward in the meantime it stays below that wrapper, and serves again after the next
`patch`.
"""

from __future__ import annotations

import functools
import gc
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from .._guard import invalidate
from .._modules import method_owner

FLAG = "_attnkernels"

# Called with a module, the original forward and the input; returns what the module returns.
Serve = Callable[[nn.Module, Callable, Tensor], Tensor]

lock = threading.RLock()  # held while flags are set and removed, and while classes are changed
_touched: weakref.WeakSet[type] = weakref.WeakSet()  # classes whose forward is, or contains, a dispatcher
_ABSENT = object()


def backend_of(module: nn.Module) -> str:
    """The backend of a patched module; "auto" where another thread unpatches it during this call."""
    return module.__dict__.get(FLAG, "auto")


def is_flagged(module: nn.Module) -> bool:
    """Whether the module was patched."""
    return FLAG in module.__dict__


def keep_only_if_patched(module: nn.Module, backend: str) -> None:
    """Drop the guard that a call has just cached, where another thread has unpatched or changed the module since."""
    if module.__dict__.get(FLAG) != backend:
        invalidate(module)


def is_served(module: nn.Module) -> bool:
    """Whether calling the module's forward is no more than the op that serves it."""
    return FLAG in module.__dict__ and _is_dispatcher(module.__class__.forward)


def _template(original: Callable, serve: Serve, flag: str) -> types.FunctionType:
    def forward(self, x):
        if flag in self.__dict__:
            return serve(self, original, x)
        return original(self, x)

    return forward


_codes: dict[int, types.CodeType] = {}  # of all dispatchers, by identity


@functools.cache
def _code(parameter: str) -> types.CodeType:
    """The dispatchers' code, with the name that the original's parameter has."""
    code = _template(None, None, "").__code__.replace(co_varnames=("self", parameter))
    _codes[id(code)] = code
    return code


def _is_dispatcher(function: Any) -> bool:
    return id(getattr(function, "__code__", None)) in _codes


def _dispatcher_in(function: Any) -> Callable | None:
    """The dispatcher that a function is, or that it wraps by its own account; None where there is none."""
    seen: set[int] = set()
    while function is not None and id(function) not in seen:
        if _is_dispatcher(function):
            return function
        seen.add(id(function))
        function = getattr(function, "__wrapped__", None)
    return None


def original_forward(function: Any) -> Any:
    """The forward below a dispatcher; the function itself where there is none."""
    dispatcher = _dispatcher_in(function)
    return function if dispatcher is None else dispatcher.__wrapped__


def is_wrapped_by_others(function: Any) -> bool:
    """Whether a function wraps one that is not to be passed by, and that no dispatcher could be put below."""
    return hasattr(function, "__wrapped__") and _dispatcher_in(function) is None


def takes_one_input(function: Any) -> bool:
    """Whether a function is a method with one parameter, as all forwards are that adapters know."""
    code = getattr(function, "__code__", None)
    variable = 0x04 | 0x08  # *args and **kwargs
    return code is not None and (code.co_argcount, code.co_kwonlyargcount, code.co_flags & variable) == (2, 0, 0)


def _install(cls: type, serve: Serve) -> bool:
    """Put a dispatcher on a class; False where there is one."""
    original = cls.__dict__["forward"]
    if _dispatcher_in(original) is not None:
        return False
    dispatcher = types.FunctionType(
        _code(original.__code__.co_varnames[1]),
        original.__globals__,
        "forward",
        original.__defaults__,
        _template(original, serve, FLAG).__closure__,
    )
    cls.forward = functools.update_wrapper(dispatcher, original)
    _touched.add(cls)
    return True


def _uninstall(classes: Iterable[type]) -> None:
    """Give classes their own forward back; one that refuses, or whose forward was wrapped since, keeps a dispatcher."""
    for cls in classes:
        forward = cls.__dict__.get("forward")
        if _is_dispatcher(forward):
            try:
                cls.forward = forward.__wrapped__
            except (AttributeError, TypeError):
                continue
        elif _dispatcher_in(forward) is not None:
            continue
        _touched.discard(cls)


def serve(modules: list[tuple[nn.Module, Serve, str]]) -> None:
    """Patch modules, each with what serves its class and its backend; if that fails, nothing was changed."""
    with lock:
        installed: list[type] = []
        before: list[tuple[nn.Module, Any]] = []
        try:
            for module, function, _ in modules:
                owner = method_owner("forward", type(module))
                if _install(owner, function):
                    installed.append(owner)
            for module, _, backend in modules:
                flag = module.__dict__.get(FLAG, _ABSENT)
                if flag != backend:
                    before.append((module, flag))
                    module.__dict__[FLAG] = backend
                    invalidate(module)
        except BaseException:
            for module, flag in before:
                _set_flag(module, flag)
            _uninstall(installed)
            raise


def _set_flag(module: nn.Module, flag: Any) -> None:
    if flag is _ABSENT:
        module.__dict__.pop(FLAG, None)
    else:
        module.__dict__[FLAG] = flag
    invalidate(module)


def release(modules: Iterable[nn.Module]) -> None:
    """Unpatch modules, and give the classes of which no patched instance is left their own forward back."""
    with lock:
        for module in modules:
            if is_flagged(module):
                _set_flag(module, _ABSENT)
        removable = [cls for cls in _touched if _dispatcher_in(cls.__dict__.get("forward")) is not None]
        if removable:
            used = _used(removable)
            _uninstall(cls for cls in removable if cls not in used)


def _used(classes: list[type]) -> set[type]:
    """Those of the classes of which the process holds a flagged instance; copies are known to the collector alone."""
    kinds = {id(subclass): subclass for cls in classes for subclass in _with_subclasses(cls)}
    # An instance refers to its class. What else does is not asked anything, not even for its class.
    instances = [item for item in gc.get_referrers(*kinds.values()) if id(type(item)) in kinds]
    flagged = {type(instance) for instance in instances if FLAG in object.__getattribute__(instance, "__dict__")}
    return {cls for cls in classes if any(cls in kind.__mro__ for kind in flagged)}


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    for subclass in type.__subclasses__(cls):
        yield from _with_subclasses(subclass)
