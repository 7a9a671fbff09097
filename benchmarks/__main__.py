"""`python -m benchmarks {micro,…}`; see each command's --help."""

from __future__ import annotations

import argparse
import importlib
import sys

from . import micro as ops
from . import models as networks
from . import options
from .timing import GpuTimer


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements of attnkernels.")
    commands = main.add_subparsers(dest="command", required=True)

    micro = commands.add_parser("micro", help="ops one by one against eager and torch.compile")
    micro.add_argument(
        "--op", type=options.some_of("an op", options.OPERATORS), help="comma-separated op names; default: all"
    )
    micro.add_argument("--shapes", type=options.shapes, help="comma-separated, e.g. 8x256x56x56x16 (the op's own axes)")
    micro.add_argument(
        "--variant", type=options.some_of("a variant", options.VARIANTS), help="the op's variants; default: all"
    )
    micro.add_argument(
        "--direction", type=options.some_of("a direction", ops.DIRECTIONS), help="of forward,backward,training"
    )
    micro.add_argument("--layout", type=options.some_of("a layout", ops.LAYOUTS), help="of nchw,channels_last")
    micro.add_argument(
        "--dtype", type=options.some_of("a dtype", ops.DTYPES), help="of float32,bfloat16,float16,float64"
    )
    micro.add_argument(
        "--columns",
        type=options.some_of("a column", options.MICRO_COLUMNS),
        help="which to measure; see benchmarks/micro.py",
    )
    micro.add_argument("--mode", type=options.some_of("a mode", GpuTimer.modes), help="GPU only, of launch,warm,cold")
    micro.add_argument("--rounds", type=options.whole, default=9)
    micro.add_argument(
        "--budget", type=options.seconds, default=float("inf"), help="seconds; then without compiled columns"
    )
    micro.add_argument("--limit", type=options.seconds, default=float("inf"), help="seconds; then no further shape")
    micro.add_argument("--device", type=options.device, default="cpu")
    micro.add_argument("--threads", type=options.whole, default=1)
    micro.add_argument("--json", type=options.new_file, help="file to write")

    models = commands.add_parser("models", help="whole models: eager, patched, batch normalisation folded, compiled")
    models.add_argument(
        "--model",
        type=options.some_of("a model of torchvision or timm", options.model_names),
        help="comma-separated names of torchvision's or timm's models",
    )
    models.add_argument("--batch", type=options.batches, default=(1, 8))
    models.add_argument("--layout", type=options.some_of("a layout", ops.LAYOUTS), help="of nchw,channels_last")
    models.add_argument("--dtype", type=options.some_of("a dtype", ops.DTYPES), default=("float32",))
    models.add_argument(
        "--direction", type=options.some_of("a direction", networks.DIRECTIONS), help="of forward,training"
    )
    models.add_argument(
        "--columns",
        type=options.some_of("a column", networks.COLUMNS),
        help=f"of {','.join(networks.COLUMNS)}; eager is needed",
    )
    models.add_argument("--rounds", type=options.whole, default=7, help="at least")
    models.add_argument("--seconds", type=options.seconds, default=0.0, help="per row: more rounds while they last")
    models.add_argument("--device", type=options.device, default="cpu")
    models.add_argument("--threads", type=options.whole, default=1)
    models.add_argument("--json", type=options.new_file, help="file to write")

    demo = commands.add_parser("demo", help="real models on a real photograph, unpatched and patched")
    demo.add_argument("--quick", action="store_true", help="without torch.compile")
    demo.add_argument("--seconds", type=options.seconds, help="per row; the longer, the narrower the intervals")
    demo.add_argument("--threads", type=options.whole, default=1)
    demo.add_argument("--json", type=options.new_file, default="demo.json")
    demo.add_argument("--picture", type=options.picture, default="demo.png")

    compare = commands.add_parser("compare", help="what changed between two result files")
    compare.add_argument("before", type=options.result_file)
    compare.add_argument("after", type=options.result_file)

    commands.add_parser("readme", help="the README's tables, from benchmarks/results")

    plot = commands.add_parser("plot", help="a picture of a result file")
    plot.add_argument("file", type=options.result_file)
    plot.add_argument("--out", type=options.picture, default="benchmarks.png")
    plot.add_argument("--growth", action="store_true", help="time against size, with fitted exponents")
    return main


def main(given: list[str] | None = None) -> int:
    commands = parser()
    arguments = commands.parse_args(given)
    options.refuse_combination(commands, arguments)
    return importlib.import_module(f"benchmarks.{arguments.command}").run(arguments)


if __name__ == "__main__":
    sys.exit(main())
