"""Real models on a real photograph, before and after `attnkernels.patch`: same outputs, how much faster."""

from __future__ import annotations

import time
from typing import Any

import torch

from attnkernels import available_backends

from . import photograph, plot, report
from .environment import environment
from .models import SQUEEZE_EXCITE_MODELS, Configuration, Measurement, calibrate, load_model
from .timing import make_timer

COMPILED_MODELS = ("mobilenet_v3_large", "seresnet50")  # the full set belongs to `python -m benchmarks models`
BATCHES = (1, 8)
ROUNDS, SECONDS = 7, 15.0  # of a row: rounds at least, and more of them while the seconds last
QUICK_ROUNDS, QUICK_SECONDS = 3, 1.0  # with --quick, which is to end in a minute and a half


def configurations(compiled: bool) -> list[tuple[str, int, str, tuple[str, ...]]]:
    """(model, batch, layout, columns) of every measurement."""
    found = []
    for name in SQUEEZE_EXCITE_MODELS:
        found += [(name, n, layout, ("eager", "patched")) for n in BATCHES for layout in ("nchw", "channels_last")]
        if compiled and name in COMPILED_MODELS:
            found.append((name, 1, "channels_last", ("eager", "compile", "compile_patched")))
    return found


def run(arguments) -> int:
    """`python -m benchmarks demo`; 0 if every patched model gives the outputs of the unpatched one."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    started = time.monotonic()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    timer = make_timer(device)
    document: dict[str, Any] = {"kind": "demo", "environment": environment(), "rows": [], "failed": []}
    if "cpu" not in available_backends():
        report.note("No compiled CPU kernels here, so nothing can be faster: `python -m attnkernels.info` says why.")
    todo = configurations(compiled=not arguments.quick)
    with Progress(
        TextColumn("{task.description:50}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    ) as progress:
        bar = progress.add_task("", total=len(todo))
        models, exact = {}, {}
        for name, batch, layout, columns in todo:
            progress.update(bar, description=f"{name} b{batch} {layout}{' compile' if 'compile' in columns else ''}")
            if name not in models:
                models = {name: calibrate(load_model(name), photograph.batch(4))}
            configuration = Configuration(name, batch, layout, torch.float32, "forward", device)
            rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if arguments.quick else (ROUNDS, SECONDS)
            try:
                measurement = Measurement(configuration, models[name], columns, exact.get((name, batch)))
                exact[name, batch] = measurement.exact
                document["rows"].append(measurement.row(timer, rounds, arguments.seconds or seconds))
            except Exception as error:  # the others are still worth showing
                document["failed"].append(f"{configuration}: {error!r}")
            progress.advance(bar)
    document["total_seconds"] = time.monotonic() - started
    report.save(document, arguments.json)
    report.print_models(document)
    plot.draw_demo(document, arguments.picture)
    print(f"{document['total_seconds']:.0f} s; figures in {arguments.json}, picture in {arguments.picture}")
    return 1 if document["failed"] or any("red" in row for row in document["rows"]) else 0
