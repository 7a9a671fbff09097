"""Pictures of results: speed-ups as bars, growth with size as lines with fitted exponents."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from . import photograph, report

FASTER, SLOWER, NEITHER = "#2a7f62", "#b5524a", "#8a8a8a"
SPACE = ("H", "W", "D")  # the axes that make up the number of pixels


def _bars(axes, names: list[str], ratios: list[dict[str, float]], title: str) -> None:
    """Horizontal bars of ratios with their confidence intervals; grey where those lie on both sides of 1, "as fast"."""
    positions = np.arange(len(names))
    middle = np.array([value["median"] for value in ratios])
    spread = np.abs(np.array([[value["low"], value["high"]] for value in ratios]).T - middle)
    colours = [FASTER if value["low"] > 1 else SLOWER if value["high"] < 1 else NEITHER for value in ratios]
    axes.barh(positions, middle, xerr=spread, color=colours, ecolor="#333333")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(positions, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    for position, value in zip(positions, middle, strict=True):
        axes.text(0.02, position, f"{value:.2f}x", va="center", fontsize=8, color="white")


def _place(document: report.Document) -> str:
    place = document["environment"]
    return f"{place['device']}, torch {place['versions']['torch']}, {place['threads']} thread(s)"


def draw_demo(document: report.Document, path: str | Path) -> None:
    """The photograph, and for each model how much faster it is when patched."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), width_ratios=(1, 2))
    left.imshow(photograph.crop(0.5, 400).permute(1, 2, 0).numpy())
    left.axis("off")
    worst = max((max(row["from_eager"].values()) for row in document["rows"]), default=math.nan)
    left.set_title(f"the input; largest\nrelative difference of outputs {worst:.1e}", fontsize=10)
    names, ratios = [], []
    for row in document["rows"]:
        for pair in ("eager / patched", "compile / compile_patched"):
            if pair in row.get("ratios", {}):
                suffix = " compiled" if pair.startswith("compile") else ""
                names.append(f"{row['model']} b{row['batch']} {row['layout']}{suffix}")
                ratios.append(row["ratios"][pair])
    if names:
        _bars(right, names, ratios, "time of the unpatched model / time of the patched model")
    figure.suptitle(_place(document), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_speedups(document: report.Document, path: str | Path) -> None:
    """One panel per column that is compared with the base column, one bar per row."""
    panels: dict[str, list[tuple[str, dict[str, float]]]] = defaultdict(list)
    for row in document["rows"]:
        for name, value in row.get("ratios", {}).items():
            title = name if "/" in name else f"{name} / {row['base']}"
            panels[title].append((report.row_name(row), value))
    if not panels:
        raise ValueError("no row has ratios to draw")
    height = 1.5 + 0.22 * max(len(bars) for bars in panels.values())
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), height), squeeze=False)
    for panel, (title, bars) in zip(axes[0], panels.items(), strict=True):
        _bars(panel, [name for name, _ in bars], [value for _, value in bars], title)
    figure.suptitle(_place(document), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def growth(document: report.Document) -> dict[str, dict[str, Any]]:
    """Sweeps over the number of pixels, all else equal, with the exponent of time ~ pixels ** exponent per column."""
    sweeps: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for row in document["rows"]:
        if "axes" not in row or "median" not in row:
            continue
        sizes = dict(zip(row["axes"].split("x"), map(int, row["shape"].split("x")), strict=True))
        pixels = math.prod(size for axis, size in sizes.items() if axis in SPACE)
        rest = "x".join(f"{axis}{size}" for axis, size in sizes.items() if axis not in SPACE)
        key = " ".join((row["op"], row["variant"], rest, row["dtype"], row["layout"], row["direction"], row["mode"]))
        sweeps[key].append((pixels, row["median"]))
    found = {}
    for key, points in sweeps.items():
        points.sort(key=lambda point: point[0])
        if len({pixels for pixels, _ in points}) < 3:
            continue  # no line through fewer
        pixels = [point[0] for point in points]
        columns = [name for name in points[0][1] if all(name in median for _, median in points)]
        times = {name: [median[name] for _, median in points] for name in columns}
        exponents = {name: float(np.polyfit(np.log(pixels), np.log(values), 1)[0]) for name, values in times.items()}
        found[key] = {"pixels": pixels, "seconds": times, "exponents": exponents}
    return found


def draw_growth(document: report.Document, path: str | Path) -> None:
    sweeps = growth(document)
    if not sweeps:
        raise ValueError("no sweep: measure at least three sizes with all other axes equal")
    figure, axes = plt.subplots(1, len(sweeps), figsize=(6 * len(sweeps), 5), squeeze=False)
    for panel, (title, sweep) in zip(axes[0], sweeps.items(), strict=True):
        for name, values in sweep["seconds"].items():
            panel.loglog(sweep["pixels"], values, "o-", label=f"{name}: pixels^{sweep['exponents'][name]:.2f}")
        panel.set(title=title, xlabel="pixels", ylabel="seconds")
        panel.title.set_fontsize(9)
        panel.legend(fontsize=8)
    figure.suptitle(_place(document), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(arguments) -> int:
    """`python -m benchmarks plot`."""
    document = report.load(arguments.file)
    if arguments.growth:
        draw_growth(document, arguments.out)
        for key, sweep in growth(document).items():
            print(key, {name: round(value, 2) for name, value in sweep["exponents"].items()})
    elif document["kind"] == "demo":
        draw_demo(document, arguments.out)
    else:
        draw_speedups(document, arguments.out)
    print(f"wrote {arguments.out}")
    return 0
