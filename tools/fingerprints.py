"""The fingerprints of upstream forwards, against the libraries that are installed.

    python -m tools.fingerprints           names the forwards that attnkernels/patching/_fingerprints.py does not know
    python -m tools.fingerprints --write   adds them, and the installed versions, to that file

An adapter may serve every forward in the table: compare a forward that `--write` adds with the adapter of its class
before it is committed. To take in other versions of a library, run the command with each of them installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from attnkernels.patching import _fingerprints
from attnkernels.patching._adapter import fingerprint

FILE = Path(_fingerprints.__file__)
Row = tuple[str, str, str, str, str]


def installed(rows: Iterable[Row]) -> list[Row]:
    """What the table would say of the installed libraries alone: a row for each class of theirs that it names."""
    found = []
    for name, methods in dict.fromkeys((row[0], row[3]) for row in rows):
        module, _, cls = name.rpartition(".")
        try:
            version = importlib.metadata.version(name.partition(".")[0]).partition("+")[0]
            value = fingerprint(getattr(importlib.import_module(module), cls), tuple(methods.split()))
        except (ImportError, AttributeError, ValueError):
            continue  # not installed, or without this class in this version
        found.append((name, version, version, methods, value))
    return found


def unknown(rows: Iterable[Row]) -> list[Row]:
    """The rows of the installed libraries with fingerprints that the table does not have."""
    known = {(row[0], *row[3:]) for row in rows}
    return [row for row in installed(rows) if (row[0], *row[3:]) not in known]


def extended(rows: Iterable[Row]) -> list[Row]:
    """The table with the installed versions: classes in the order they have, the newest version of each first.

    Rows without fingerprints, by which a class is entered, are left out.
    """
    ranges: dict[tuple[str, str, str], tuple[str, str]] = {}
    for name, first, last, *key in (row for row in (*rows, *installed(rows)) if row[-1]):
        before = ranges.get((name, *key), (first, last))
        ranges[(name, *key)] = min(before[0], first, key=_order), max(before[1], last, key=_order)
    merged = [(name, *versions, methods, value) for (name, methods, value), versions in ranges.items()]
    merged.sort(key=lambda row: _order(row[2]), reverse=True)
    places = list(dict.fromkeys(row[0] for row in rows))
    return sorted(merged, key=lambda row: places.index(row[0]))


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", version)]


def text(source: str, rows: Iterable[Row]) -> str:
    """The source of the table's file with these rows."""
    lines = "".join("    ({}),\n".format(", ".join(f'"{field}"' for field in row)) for row in rows)
    return re.sub(r"(?<= = \(\n).*?(?=^\))", lines, source, flags=re.DOTALL | re.MULTILINE)


def main(arguments: list[str]) -> int:
    new = unknown(_fingerprints.TABLE)
    for name, version, _, methods, value in new:
        print(f"{name} ({methods}) of version {version} is not known: {value}; compare it with its adapter")
    if arguments == ["--write"]:
        FILE.write_text(text(FILE.read_text(), extended(_fingerprints.TABLE)))
        return 0
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
