"""Bytes that the CUDA kernels move, counted by the host emulation on the cases of tests/emulation/traffic/<op>.py.

A case file has `CASES: list[TrafficCase]`. Counting runs in a process of its own (`python -m
tools.budgets.traffic OP`): one process holds either the plain emulated library or the one that counts.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools import emulation

ROOT = Path(__file__).resolve().parent.parent.parent
CASE_FILES = ROOT / "tests" / "emulation" / "traffic"
COMPILER = "g++"


@dataclass(frozen=True)
class TrafficCase:
    """One call whose traffic is counted.

    Attributes:
        name: what is particular about it.
        dtype: as the table names it, such as "bfloat16".
        call: runs the op with backend "emulated"; the tensors to account for, inputs and results, by name. None of them
            may lie where a workspace did that was freed in between: a buffer is known by its address.
        device: fields of the emulated device that differ from an H100's.
        prepare: what comes before and is not counted; its results are the arguments of `call`.
    """

    name: str
    dtype: str
    call: Callable[..., dict]
    device: dict[str, int] = field(default_factory=dict)
    prepare: Callable[[], tuple] = tuple


def compiler() -> str:
    return "any"  # the figures follow from the source


def why_unavailable() -> str:
    return emulation.why_unavailable()


def ops() -> list[str]:
    return sorted(path.stem for path in CASE_FILES.glob("*.py"))


def rows(op: str, quick: bool = False) -> Iterator[dict]:
    """Every case, also when `quick`: they are small."""
    command = [sys.executable, "-m", "tools.budgets.traffic", op]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"counting the traffic of {op} failed:\n{done.stdout}{done.stderr}")
    yield from json.loads(done.stdout.splitlines()[-1])


def count(op: str) -> Iterator[dict]:
    """The rows of an op, counted in this process."""
    spec = importlib.util.spec_from_file_location(f"traffic_{op}", CASE_FILES / f"{op}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bench = emulation.load("traffic")
    for case in module.CASES:
        buffers: dict = {}
        with bench.device(**case.device):
            prepared = case.prepare()
            with bench.traffic(buffers) as traffic:
                buffers.update(case.call(*prepared))
        common = {"backend": "cuda", "arch": "emulated", "dtype": case.dtype, "case": case.name}
        for row in traffic.buffers:
            figures = {
                "factor": round(row.factor, 4),
                "bytes_per_access": round(row.bytes_per_access, 2),
                "sector_efficiency": round(row.sector_efficiency, 4),
            }
            access = "write" if row.write else "read"
            yield {**common, "kernel": row.kernel, "buffer": row.buffer, "access": access, "figures": figures}
        for row in traffic.shared:
            yield {
                **common,
                "kernel": row.kernel,
                "buffer": "shared",
                "figures": {"conflicts": round(row.conflicts, 3)},
            }


if __name__ == "__main__":
    print(json.dumps(list(count(sys.argv[1]))))
