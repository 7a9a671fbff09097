"""`python -m benchmarks {micro,…}`; see each command's --help."""

from __future__ import annotations

import argparse
import importlib
import sys


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements of attnkernels.")
    commands = main.add_subparsers(dest="command", required=True)

    micro = commands.add_parser("micro", help="ops one by one against eager and torch.compile")
    micro.add_argument("--op", type=_list, help="comma-separated op names; default: all")
    micro.add_argument("--shapes", type=_list, help="comma-separated, e.g. 8x256x56x56x16 (the op's own axes)")
    micro.add_argument("--variant", type=_list, help="the op's variants; default: all")
    micro.add_argument("--direction", type=_list, help="of forward,backward,training")
    micro.add_argument("--layout", type=_list, help="of nchw,channels_last")
    micro.add_argument("--dtype", type=_list, help="of float32,bfloat16,float16,float64")
    micro.add_argument("--columns", type=_list, help="which to measure; see benchmarks/micro.py")
    micro.add_argument("--mode", type=_list, help="GPU only, of launch,warm,cold")
    micro.add_argument("--rounds", type=int, default=9)
    micro.add_argument("--budget", type=float, default=float("inf"), help="seconds; then without compiled columns")
    micro.add_argument("--limit", type=float, default=float("inf"), help="seconds; then no further shape")
    micro.add_argument("--device", default="cpu")
    micro.add_argument("--threads", type=int, default=1)
    micro.add_argument("--json", help="file to write")
    return main


def main() -> int:
    arguments = parser().parse_args()
    return importlib.import_module(f"benchmarks.{arguments.command}").run(arguments)


if __name__ == "__main__":
    sys.exit(main())
