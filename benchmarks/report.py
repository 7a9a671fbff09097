"""Tables and JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def note(text: str) -> None:
    """A line of progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def save(document: Document, path: str | Path | None) -> None:
    if path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: str | Path) -> Document:
    return json.loads(Path(path).read_text())


def print_table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table by rich; plain columns where rich is not installed, so that no measurement is lost for its sake."""
    header, rows = list(header), [list(row) for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        print(title)
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(title=title, title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=1000, soft_wrap=True).print(table)  # as wide as it needs: a narrow terminal would cut figures off


def seconds(value: float) -> str:
    return f"{value * 1e6:.1f} us" if value < 1e-3 else f"{value * 1e3:.2f} ms"


def speedup(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def mebibytes(value: float) -> str:
    return f"{value / 2**20:.1f}"


def row_name(row: dict[str, Any]) -> str:
    """What was run, of a row of any kind."""
    what = f"{row['model']} b{row['batch']}" if "model" in row else f"{row['op']} {row['variant']} {row['shape']}"
    return f"{what} {row['dtype']} {row['layout']}"


def row_key(row: dict[str, Any]) -> str:
    """What was run, and how it was measured: the same in two files for rows that can be compared."""
    return " ".join(filter(None, (row_name(row), row["direction"], row.get("mode", ""))))


def print_micro(document: Document) -> None:
    """One line per case, direction and mode: our time, and how much longer each other column takes."""
    rows = document["rows"]
    others = list(dict.fromkeys(name for row in rows for name in row.get("ratios", {})))
    header = ["case", "direction", "mode", "backend", "base", "time", *(f"{name} / base" for name in others)]
    header += ["GB/s", "copy GB/s", "/ floor", "peak MiB", "eager's", "error", "eager's"]
    lines = []
    for row in rows:
        if "red" in row:
            lines.append([row_name(row), "RED", str(row["red"]), *[""] * (len(header) - 3)])
            continue
        base = row["base"]
        time = row["median"][base]
        lines.append(
            [
                row_name(row), row["direction"], row["mode"], row["backend"], base, seconds(time),
                *(speedup(row["ratios"][name]) if name in row["ratios"] else "" for name in others),
                f"{row['bytes'] / time / 1e9:.0f}", f"{row['copy_same_size'] / 1e9:.0f}", f"{time / row['floor']:.2f}",
                mebibytes(row["peak_bytes"][base]), mebibytes(row["peak_bytes"].get("eager", 0)),
                f"{row['errors'][base]:.1e}", f"{row['errors'].get('eager', 0):.1e}",
            ]
        )  # fmt: skip
    place = document["environment"]
    print_table(f"{place['device']}, torch {place['versions']['torch']}, {place['threads']} thread(s)", header, lines)
    for key in ("failed", "left_out"):
        for line in document[key]:
            print(f"{key.replace('_', ' ')}: {line}")


def print_models(document: Document) -> None:
    """One line per model and configuration: times, speed-ups, memory, and how far outputs are from eager's."""
    columns = list(dict.fromkeys(name for row in document["rows"] for name in row.get("median", {})))
    pairs = list(dict.fromkeys(name for row in document["rows"] for name in row.get("ratios", {})))
    header = ["model", "direction", "replaced", *columns, *pairs, f"peak MiB: {', '.join(columns)}"]
    header += ["difference", "float32's own noise" if document["kind"] == "demo" else "eager's noise"]
    lines = []
    for row in document["rows"]:
        difference = [f"{max(row['from_eager'].values(), default=0):.1e}", f"{row['from_float64']['eager']:.1e}"]
        line = [row_name(row), row["direction"], str(row["replaced"])]
        if "red" in row:
            lines.append([*line, f"RED {row['red']}", *[""] * (len(header) - 6), *difference])
            continue
        line += [seconds(row["median"][name]) if name in row["median"] else "" for name in columns]
        line += [speedup(row["ratios"][name]) if name in row["ratios"] else "" for name in pairs]
        line.append(
            ", ".join(mebibytes(row["peak_bytes"][name]) if name in row["peak_bytes"] else "-" for name in columns)
        )
        lines.append(line + difference)
    place = document["environment"]
    print_table(f"{place['device']}, torch {place['versions']['torch']}, {place['threads']} thread(s)", header, lines)
    for line in document["failed"]:
        print(f"failed: {line}")
