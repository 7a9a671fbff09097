"""Reads, writes and compares tables of budgets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "budgets"

LOWER_IS_BETTER = {"registers", "spill_bytes", "shared_bytes", "factor", "conflicts"}
HIGHER_IS_BETTER = {"load_bits", "store_bits", "occupancy", "bytes_per_access", "sector_efficiency"}
# Another version of the compiler allocates registers differently; spills and widths it must keep.
OF_ONE_COMPILER = {"registers", "occupancy", "shared_bytes"}

Row = dict[str, Any]
Key = tuple[tuple[str, str], ...]


def key_of(row: Row) -> Key:
    return tuple(sorted((name, value) for name, value in row.items() if name != "figures"))


def describe(key: Key) -> str:
    fields = dict(key)
    return " ".join(fields.pop(name) for name in ("backend", "arch", "kernel", "dtype", "case") if fields.get(name)) + (
        f" {' '.join(fields[name] for name in ('buffer', 'access') if name in fields)}" if "buffer" in fields else ""
    )


def group_of(row: Row) -> tuple:
    """Rows of one group are measured together, or not at all."""
    return tuple(row.get(name, "") for name in ("backend", "arch", "dtype"))


def load(op: str) -> dict:
    path = FOLDER / f"{op}.json"
    return json.loads(path.read_text()) if path.exists() else {"compilers": {}, "rows": []}


def save(op: str, compilers: dict[str, str], rows: Iterable[Row]) -> None:
    """One row a line, in the order of their keys, so that a change shows as the lines that changed."""
    lines = [json.dumps(row, sort_keys=True) for row in sorted(rows, key=key_of)]
    text = f'{{"compilers": {json.dumps(compilers, sort_keys=True)}, "rows": [\n' + ",\n".join(lines) + "\n]}\n"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{op}.json").write_text(text)


def worse(committed: dict[str, float], measured: dict[str, float], same_compiler: bool) -> list[str]:
    """The figures that got worse, as text."""
    found = []
    for name, value in measured.items():
        if name not in committed or (name in OF_ONE_COMPILER and not same_compiler):
            continue
        if name not in LOWER_IS_BETTER | HIGHER_IS_BETTER:
            raise ValueError(f"budgets: {name!r} is neither better when lower nor better when higher")
        slack = 1e-6 * abs(committed[name])  # the figures are printed numbers
        if (value > committed[name] + slack) if name in LOWER_IS_BETTER else (value < committed[name] - slack):
            found.append(f"{name} {committed[name]:g} -> {value:g}")
    return found


def compare(committed: Iterable[Row], measured: Iterable[Row], same_compiler: bool = True) -> list[str]:
    """What is wrong: figures that got worse, kernels without a row, rows without a kernel."""
    measured = list(measured)
    budget = {key_of(row): row["figures"] for row in committed}
    groups = {group_of(row) for row in measured}
    problems = []
    for row in measured:
        key = key_of(row)
        if key not in budget:
            problems.append(f"{describe(key)}: has no row in the table")
            continue
        figures = worse(budget.pop(key), row["figures"], same_compiler)
        if figures:
            problems.append(f"{describe(key)}: {', '.join(figures)}")
    problems += [f"{describe(key)}: no such kernel any more" for key in budget if group_of(dict(key)) in groups]
    return problems
