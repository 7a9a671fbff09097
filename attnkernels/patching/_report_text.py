"""A report in print: modules of a kind together, no line longer than a terminal is wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .._messages import shortened

if TYPE_CHECKING:
    from .report import Report

_WIDTH = 100
_LONGEST_NAME = 60
_NAMES_SHOWN = 8
_BLOCKS = (
    "A block is served together with the attention module in it: what its line names is computed in the same passes."
)


def summary(report: Report) -> str:
    """How many attention modules, and blocks around them, were replaced and left alone."""
    if not report.replaced and not report.skipped:
        return "nothing to replace"
    verb = "would be replaced" if report.dry_run else "replaced"
    replaced, blocks = _counts(report.replaced)
    text = f"{_counted(replaced, 'attention module')} {verb}"
    if blocks:
        text += f", and {_counted(blocks, 'block')} around them"
    skipped, blocks = _counts(report.skipped)
    return f"{text}; {skipped} left alone" + (f", and {_counted(blocks, 'block')}" if blocks else "")


def text(report: Report) -> str:
    """The whole report."""
    if report.replaced or report.skipped:
        sections = [_filled(summary(report))]
    else:
        title = f"{summary(report)}: the model has no module of a class that is recognised, which are"
        sections = ["\n".join([title, *_by_package(report.recognised)])]
    sections += [_filled(f"Hint: {hint}") for hint in report.hints]
    if any(record.is_block for record in report.replaced):
        sections.insert(1, _filled(_BLOCKS, ""))
    groups: dict[tuple, list[str]] = {}
    for r in sorted(report.replaced, key=lambda record: record.is_block):
        what = f"{'(block) ' if r.is_block else ''}-> {r.op}, {r.backend}{': ' + r.fuses if r.is_block else ''}"
        groups.setdefault((r.original, what), []).append(r.name)
    for s in sorted(report.skipped, key=lambda record: record.is_block):
        what = f"{'(block) ' if s.is_block else ''}left alone: {s.reason}"
        groups.setdefault((s.original, what), []).append(s.name)
    for (original, what), names in groups.items():
        heading = f"{len(names)} x {_short(original)} {what}"
        sections.append(f"{_filled(heading, ' ' * 8)}\n{_filled('    ' + ', '.join(_compact(names)))}")
    return "\n\n".join(sections)


def _filled(line: str, indent: str = "    ") -> str:
    return textwrap.fill(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _counts(records: Iterable) -> tuple[int, int]:
    """How many attention modules and how many blocks."""
    blocks = [record.is_block for record in records]
    return blocks.count(False), blocks.count(True)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _short(original: str) -> str:
    """The package and the name of a class, as in "timm SEModule"."""
    return shortened(f"{original.partition('.')[0]} {original.rpartition('.')[2]}", _LONGEST_NAME)


def _by_package(classes: Iterable[str]) -> Iterator[str]:
    packages: dict[str, set[str]] = {}
    for original in classes:
        package, _, name = original.partition(".")
        packages.setdefault(package, set()).add(name.rpartition(".")[2])
    for package, names in packages.items():
        yield _filled(f"    {'any package' if package == '*' else package}: {', '.join(sorted(names))}")


def _compact(names: list[str]) -> list[str]:
    """Names in order, those that differ in a number as one ("layer1.{0-2}.se"), and how many more there are."""
    patterns = [[(part,) for part in re.split("([0-9]{1,9})", name)] for name in names]
    for position in reversed(range(1, max(map(len, patterns)), 2)):  # of the numbers
        patterns = list(_merged(patterns, position))
    shown = [shortened("".join(map(_braced, pattern)), _LONGEST_NAME) or "(the model)" for pattern in patterns]
    if len(shown) <= _NAMES_SHOWN:
        return shown
    more = sum(_size(pattern) for pattern in patterns[_NAMES_SHOWN:])
    return [*shown[:_NAMES_SHOWN], f"and {more} more"]


def _merged(patterns: list[list[tuple[str, ...]]], position: int) -> Iterator[list[tuple[str, ...]]]:
    """The patterns; neighbours as one that are the same but for their numbers at a position."""
    last: list[tuple[str, ...]] | None = None
    for pattern in patterns:
        if last is not None and _others(last, position) == _others(pattern, position) and len(pattern) > position:
            last = [*pattern[:position], last[position] + pattern[position], *pattern[position + 1 :]]
            continue
        if last is not None:
            yield last
        last = pattern
    if last is not None:
        yield last


def _others(pattern: list[tuple[str, ...]], position: int) -> tuple:
    return pattern[:position], pattern[position + 1 :]


def _braced(parts: tuple[str, ...]) -> str:
    """Numbers in braces, runs of them as "0-2"."""
    if len(parts) == 1:
        return parts[0]
    runs: list[list[str]] = []
    for part in parts:
        previous = runs[-1][-1] if runs else part
        if (previous, part) == (str(int(previous)), str(int(previous) + 1)):  # not after "01"
            runs[-1].append(part)
        else:
            runs.append([part])
    return "{" + ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"


def _size(pattern: list[tuple[str, ...]]) -> int:
    size = 1
    for parts in pattern:
        size *= len(parts)
    return size
