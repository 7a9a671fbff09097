"""`python -m benchmarks readme`: writes the README's tables from the committed result files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import report
from .report import Document

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS = ("compile_ours", "cpu", "cuda", "triton")


def _place(document: Document, file: Path) -> str:
    place = document["environment"]
    threads = "" if document["environment"].get("driver") else f", {place['threads']} thread"
    link = f"[{file.name}](benchmarks/results/{file.name})"
    torch = f", torch {place['versions']['torch']}" if "versions" in place else ""
    return f"{place['device']}{threads}{torch}; {link}, {place['commit'][:10]}"


def _table(header: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]


def _ratio(row: Document, name: str) -> str:
    found = row["ratios"].get(name)
    return f"{found['median']:.2f}x" if found else ""


def _least(row: Document) -> str:
    """Over the fastest PyTorch form that was measured, however written and compiled or not."""
    others = [value["median"] for name, value in row["ratios"].items() if name not in OURS]
    return f"{min(others):.2f}x" if others else ""


def models(document: Document, file: Path) -> list[str]:
    """One line per model and setting: times, speed-up and its interval, largest differences of the results."""
    lines = []
    for row in document["rows"]:
        if "patched" not in row.get("median", {}):
            continue
        ratio = row["ratios"]["eager / patched"]
        direction = "" if row["direction"] == "forward" else f", {row['direction']}"
        lines.append(
            [
                f"{row['model']}, batch {row['batch']}, {row['layout']}{direction}",
                *(f"{row['median'][name] * 1e3:.1f}" for name in ("eager", "patched")),
                _emphasised(f"{ratio['median']:.3f}x ({ratio['low']:.3f}-{ratio['high']:.3f})", ratio["median"]),
                f"{row['from_eager']['patched']:.0e}",
                f"{row['from_float64']['eager']:.0e}",
            ]
        )
    header = [f"{document['rows'][0]['dtype']}, 224x224", "eager ms", "patched ms", "speed-up (95 % interval)"]
    header += ["eager to patched", "eager to float64"]
    return [*_table(header, lines), "", _place(document, file)]


def gpu_models(document: Document, file: Path) -> list[str]:
    """As `models`, and of runs of its own how much faster compiled models are patched."""
    compiled = file.with_name("h100-models-compiled.json")
    lines = models(document, file)
    if compiled.exists():
        other = report.load(compiled)
        found = ", ".join(
            f"{row['model']} batch {row['batch']} {row['ratios']['compile / compile_patched']['median']:.2f}x"
            for row in other["rows"]
        )
        lines += ["", f"Compiled, patched over not: {found} ({_place(other, compiled)})."]
    return lines


def micro(document: Document, file: Path) -> list[str]:
    """One line per op, shape, dtype and layout: speed-ups, forward and training.

    Over the usual eager form, over that compiled, and over the best of all PyTorch forms that were measured.
    """
    found: dict[tuple, dict[str, Document]] = {}
    for row in document["rows"]:
        if "red" not in row and row["mode"] in ("process", "warm") and row["variant"] == "plain":
            key = (row["op"], row["shape"], row["dtype"], row["layout"])
            found.setdefault(key, {})[row["direction"]] = row
    lines = []
    for (op, shape, dtype, layout), rows in found.items():
        forward, training = rows.get("forward"), rows.get("training")
        if not forward or not training:
            continue
        lines.append(
            [
                f"{op} {shape} {dtype} {layout}",
                f"{forward['median']['ours'] * 1e6:.0f}",
                *(
                    text
                    for row in (forward, training)
                    for text in (_ratio(row, "eager"), _ratio(row, "compile"), _least(row))
                ),
            ]
        )
    header = ["", "forward us"]
    header += [
        f"{direction}{over}" for direction in ("", "training ") for over in ("over eager", "over compile", "over best")
    ]
    return [*_table(header, lines), "", _place(document, file)]


def gpu(document: Document, file: Path) -> list[str]:
    """One line per op, shape and layout: our CUDA kernels, and how much faster they are than the others in one run.

    Those are the fastest PyTorch form in eager mode, torch.compile (of runs of its own) and our Triton kernels.
    """
    compiled: dict[tuple, str] = {}
    places = [_place(document, file)]
    problems = {_problem(row) for row in document["rows"]}
    for path in sorted(file.parent.glob("h100-compiled-*.json")):
        other = report.load(path)
        if not any(_problem(row) in problems for row in other["rows"]):
            continue
        places.append(f"compiled: {_place(other, path)}")
        for row in other["rows"]:
            medians = row["median"]
            best = [medians[name] for name in medians if name.startswith("compile")]
            if best:
                compiled[_problem(row)] = _times(min(best), medians.get("cuda", medians.get("ours")))
    found: dict[tuple, dict[str, list[str]]] = {}
    for row in document["rows"]:
        if "red" in row or row["mode"] != "warm" or row["variant"] not in ("plain", "add"):
            continue
        medians = dict(row["median"])
        ours, triton = medians.pop("cuda"), medians.pop("triton")
        cells = [f"{ours * 1e6:.1f}", _times(min(medians.values()), ours)]
        cells += [compiled.get(_problem(row), "")] if row["direction"] == "forward" else []
        cells.append(_times(triton, ours))
        found.setdefault((row["op"], row["shape"], row["layout"]), {})[row["direction"]] = cells
    lines = [[" ".join(key), *rows["forward"], *rows["backward"]] for key, rows in found.items() if "backward" in rows]
    header = ["bfloat16", "forward us", "over eager", "over compile", "over Triton"]
    header += ["backward us", "over eager", "over Triton"]
    return [*_table(header, lines), "", "; ".join(places)]


def _times(other: float, ours: float) -> str:
    """How many times as long the other takes; bold where it is the faster one."""
    return _emphasised(f"{other / ours:.2f}x", other / ours)


def _emphasised(text: str, ratio: float) -> str:
    return f"**{text}**" if ratio < 1 else text


def _problem(row: Document) -> tuple:
    return tuple(row[name] for name in ("op", "shape", "layout", "direction"))


SECTIONS: dict[str, tuple[str, Callable[[Document, Path], list[str]]]] = {
    "demo": ("cpu-demo.json", models),
    "branches": ("cpu-branch-models.json", models),
    "cpu": ("cpu-micro.json", micro),
    "cpu squeeze_excite": ("cpu-micro-squeeze-excite.json", micro),
    "gpu": ("h100-micro.json", gpu),
    "gpu channel_spatial": ("h100-micro-channel-spatial.json", gpu),
    "gpu efficient_channel_attention": ("h100-micro-efficient-channel-attention.json", gpu),
    "gpu models": ("h100-models.json", gpu_models),
    "gpu models cbam": ("h100-models-cbam.json", models),
}


def write(text: str) -> str:
    """The README with each section between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, (file, make) in SECTIONS.items():
        path = RESULTS / file
        if path.exists():
            body = "\n".join(make(report.load(path), path))
            pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
            text = re.sub(pattern, lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text, flags=re.DOTALL)
    return text


def run(arguments) -> int:
    readme = ROOT / "README.md"
    readme.write_text(write(readme.read_text()))
    return 0
