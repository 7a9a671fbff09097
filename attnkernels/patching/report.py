"""What `patch` returns: data, and a text when printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from . import _report_text

_ATTENTION = "the module"
_NOT_THE_MODEL = (
    "patch changes the model in place and returns a report: keep the model, `attnkernels.patch(model); model(x)`"
)


@dataclass(frozen=True)
class Replaced:
    """A module that an op now serves.

    Attributes:
        name: dotted name in the model, the first where it has several; empty for the model itself.
        original: qualified name of its class.
        op: the function that runs.
        backend: the backend it runs on, by the device of the module's parameters at the time; "reference" also where
            none takes this device and the module waits to be moved.
        fuses: what of the module the op computes.
    """

    name: str
    original: str
    op: str
    backend: str
    fuses: str = _ATTENTION

    @property
    def is_block(self) -> bool:
        """Whether it is a block around an attention module, which is a record of its own."""
        return self.fuses != _ATTENTION


@dataclass(frozen=True)
class Skipped:
    """A module of a class that is recognised, but which was left alone.

    Attributes:
        name: dotted name in the model, the first where it has several; empty for the model itself.
        original: qualified name of its class.
        reason: why it was left alone.
        is_block: whether it is a block around an attention module.
    """

    name: str
    original: str
    reason: str
    is_block: bool = False


@dataclass(frozen=True, repr=False)
class Report:
    """What `patch` did, or with `dry_run` would do.

    It is not the model: calling it, or asking it for what a model has, raises and says so.

    Attributes:
        replaced: the modules that ops serve.
        skipped: the modules left alone, with reasons.
        recognised: qualified names of all classes that `patch` knows.
        dry_run: whether nothing was changed.
        hints: what may not be as it was meant, a sentence each.
    """

    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]
    recognised: tuple[str, ...]
    dry_run: bool = False
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _report_text.text(self)

    def __repr__(self) -> str:
        return f"<attnkernels.patch report: {_report_text.summary(self)}; print it for more>"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(_NOT_THE_MODEL)

    def __getattr__(self, name: str) -> NoReturn:
        of_models = name in nn.Module.__annotations__ or (hasattr(nn.Module, name) and not name.startswith("__"))
        message = _NOT_THE_MODEL if of_models else f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=self)
