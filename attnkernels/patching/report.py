"""What `patch` returns: data, and a table when printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Replaced:
    """A module that an op now serves.

    Attributes:
        name: dotted name in the model, the first where it has several; empty for the model itself.
        original: qualified name of its class.
        op: the function that runs.
        backend: the backend it runs on, by the device of the module's parameters at the time.
        fuses: what of the module the op computes.
    """

    name: str
    original: str
    op: str
    backend: str
    fuses: str = "the module"


@dataclass(frozen=True)
class Skipped:
    """A module of a class that is recognised, but which was left alone.

    Attributes:
        name: dotted name in the model, the first where it has several; empty for the model itself.
        original: qualified name of its class.
        reason: why it was left alone.
    """

    name: str
    original: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `patch` did, or with `dry_run` would do.

    Attributes:
        replaced: the modules that ops serve.
        skipped: the modules left alone, with reasons.
        recognised: qualified names of all classes that `patch` knows.
        dry_run: whether nothing was changed.
    """

    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]
    recognised: tuple[str, ...] = field(repr=False)
    dry_run: bool = False

    def __str__(self) -> str:
        if not self.replaced and not self.skipped:
            known = "\n".join(f"  {name}" for name in self.recognised)
            return f"nothing to replace: the model has no module of a class that is recognised, which are\n{known}"
        verb = "would be replaced" if self.dry_run else "replaced"
        parts = [f"{_modules(len(self.replaced))} {verb}, {len(self.skipped)} left alone"]
        if self.replaced:
            rows = [(_shown(r.name), r.original, r.op, r.backend, r.fuses) for r in self.replaced]
            parts.append(_table(("module", "original", "op", "backend", "fuses"), rows))
        if self.skipped:
            rows = [(_shown(s.name), s.original, s.reason) for s in self.skipped]
            parts.append(_table(("left alone", "original", "reason"), rows))
        return "\n\n".join(parts)


def _shown(name: str) -> str:
    return name or "(the model)"


def _modules(count: int) -> str:
    return f"{count} module{'' if count == 1 else 's'}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    ruled = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in ruled)
