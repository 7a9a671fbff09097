"""What an adapter is, and how the class of a module finds its adapter.

An adapter serves one upstream class. Upstream libraries are never imported: a class is recognised by its qualified
name. The name alone does not say what the forward computes, and a release may change that, so the forward is recognised
too, by a fingerprint of its source: a forward nobody compared with the adapter's is left alone. Fingerprints ignore
comments, docstrings, annotations and formatting; those that are known are in `_fingerprints.py`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType

from torch import nn

from .._modules import NOT_BARE, descendant, is_bare, lives_as_long_as_the_process, qualified_name
from . import _fingerprints
from ._dispatch import Serve, is_wrapped_by_others, original_forward, takes_one_input

SEQUENTIAL = "torch.nn.modules.container.Sequential"


@dataclass(frozen=True, eq=False)
class Adapter:
    """How the modules of an upstream class are served by an op.

    Attributes:
        op: the public function that runs.
        originals: qualified names of the upstream class, one for each place it has lived; "*.Name" for a class that
            is copied from project to project, and so lives anywhere.
        arguments: reads from a module what `forward` gives to the op, or says why the op cannot take this module. It is
            asked when the module is patched and again at each call, as modules may be changed in between.
        forward: what a patched module runs: called with the module, the original forward and the input. Where the op
            cannot run, it returns `original(self, x)`.
        fuses: what of the module the op computes, in words, or a function that says it of a module.
        within: finds in the module the attention module that has to be replaced as well for this adapter to apply.
        methods: the methods that the upstream forward consists of, which the fingerprint covers.
        is_part_of_blocks: whether the adapters of blocks may read `arguments` of a module inside a block and call the
            op, on [N, C, H, W], in the module's place.
    """

    op: str
    originals: tuple[str, ...]
    arguments: Callable[[nn.Module], tuple | str]
    forward: Serve
    fuses: str | Callable[[nn.Module], str] = "the module"
    within: Callable[[nn.Module], nn.Module | None] | None = None
    methods: tuple[str, ...] = ("forward",)
    is_part_of_blocks: bool = False


def source_fingerprint(function: Callable) -> str:
    """The fingerprint of one function; empty where its source cannot be read.

    That of a function which wraps another one is the wrapper's own.
    """
    code = getattr(function, "__code__", None)
    return _code_fingerprint(code) if isinstance(code, CodeType) else ""


# By the code, because a function would keep alive whatever it closes over, and a bound method its module.
@functools.cache
def _code_fingerprint(code: CodeType) -> str:
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, TypeError, SyntaxError):
        return ""
    if not isinstance(definition, ast.FunctionDef):
        return ""
    body = definition.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    parameters = [argument.arg for argument in definition.args.args]
    return hashlib.sha256("\n".join([*parameters, *map(ast.unparse, body)]).encode()).hexdigest()[:16]


def fingerprint(cls: type, methods: tuple[str, ...] = ("forward",)) -> str:
    """The fingerprint of a class's methods without dispatchers; a part is empty where the source cannot be read."""
    return " ".join(source_fingerprint(original_forward(getattr(cls, method))) for method in methods)


_recognised: dict[tuple[type, str], Callable] = {}


def is_original(cls: type, name: str) -> bool:
    """Whether a class has this qualified name, or as "*.Name" this one in any module, and a forward that is known."""
    if _recognised.get((cls, name)) is cls.forward:
        return True
    found = f"*.{cls.__name__}" if name.startswith("*.") else qualified_name(cls)
    if found != name or fingerprint(cls) not in _fingerprints.known(name):
        return False
    if lives_as_long_as_the_process(cls):
        _recognised[cls, name] = cls.forward
    return True


def not_replaceable(module: nn.Module, path: str, original: str) -> str:
    """Why an op cannot run in place of the own forward of a module inside another one; empty where it can.

    Args:
        module: the one outside.
        path: the dotted path to the one inside.
        original: the name of its class, as in `is_original`.
    """
    child = descendant(module, path)
    if child is None or not is_original(child.__class__, original):
        return f"its {path} is not the {original.removeprefix('*.')} this was written for"
    return "" if is_bare(child) else f"its {path} {NOT_BARE}"


def find_adapter(cls: type, adapters: dict[str, Adapter]) -> tuple[Adapter | None, str]:
    """The adapter that recognises a class, and why it must not be used; both empty for a class that none recognises.

    Subclasses are served where they inherit the forward unchanged (FSDP and parametrisations make such ones).
    """
    for base in cls.__mro__:
        name = qualified_name(base)
        if name not in adapters and not base.__module__.startswith("attnkernels."):
            name = f"*.{base.__name__}"
        adapter = adapters.get(name)
        if adapter is None:
            continue
        for method in adapter.methods:
            if getattr(cls, method) is not getattr(base, method):
                return adapter, f"a subclass of {qualified_name(base)} with a {method} of its own"
        if any(is_wrapped_by_others(getattr(base, method)) for method in adapter.methods):
            return adapter, "its forward is wrapped by something else, which a fused call would pass by"
        known = fingerprint(base, adapter.methods) in _fingerprints.known(name, adapter.methods)
        if not known or not takes_one_input(original_forward(base.forward)):
            return adapter, "its forward is not the one this was written for (another version of the library?)"
        return adapter, ""
    return None, ""
