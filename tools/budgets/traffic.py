"""Bytes that the CUDA kernels move, counted by the host emulation on every op's calls in attnkernels.testing.TRAFFIC.

What is no op's has a file tests/emulation/traffic/<name>.py with `CASES: list[TrafficCase]`. Counting runs in a process
of its own (`python -m tools.budgets.traffic OP`): one process holds either the plain emulated library or the one that
counts.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attnkernels import testing
from tools import emulation

ROOT = Path(__file__).resolve().parent.parent.parent
CASE_FILES = ROOT / "tests" / "emulation" / "traffic"
DTYPES = (torch.float32, torch.bfloat16)
COMPILER = "g++"


@dataclass(frozen=True)
class TrafficCase:
    """One call whose traffic is counted.

    Attributes:
        name: what is particular about it.
        dtype: as the table names it, such as "bfloat16".
        prepare: runs what is not counted; returns what is: a function that gives the tensors to account for by name.
        device: fields of the emulated device that differ from an H100's.
    """

    name: str
    dtype: str
    prepare: Callable[[], Callable[[], dict[str, torch.Tensor]]]
    device: dict[str, int] = field(default_factory=dict)


def compiler() -> str:
    return "any"  # the figures follow from the source


def why_unavailable() -> str:
    return emulation.why_unavailable()


def ops() -> list[str]:
    return sorted({*testing.TRAFFIC, *(path.stem for path in CASE_FILES.glob("*.py"))})


def cases(op: str) -> list[TrafficCase]:
    """What is counted of an op."""
    if op in testing.TRAFFIC:
        return [_case(call, dtype) for call in testing.TRAFFIC[op] for dtype in DTYPES]
    spec = importlib.util.spec_from_file_location(f"traffic_{op}", CASE_FILES / f"{op}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def _case(traffic_call: testing.TrafficCall, dtype: torch.dtype) -> TrafficCase:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        call = traffic_call.prepare("emulated", dtype)
        return lambda: traffic_call.buffers(call())

    return TrafficCase(traffic_call.name, str(dtype).removeprefix("torch."), prepare, traffic_call.device)


def rows(op: str, quick: bool = False) -> Iterator[dict]:
    """Every case, also when `quick`: they are small."""
    command = [sys.executable, "-m", "tools.budgets.traffic", op]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"counting the traffic of {op} failed:\n{done.stdout}{done.stderr}")
    yield from json.loads(done.stdout.splitlines()[-1])


def count(op: str) -> Iterator[dict]:
    """The rows of an op, counted in this process."""
    bench = emulation.load("traffic")
    for case in cases(op):
        buffers: dict = {}
        with bench.device(**case.device):
            call = case.prepare()
            with bench.traffic(buffers) as traffic:
                buffers.update(call())
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
