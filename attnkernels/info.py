"""`python -m attnkernels.info [--json]`: what is here, what each op runs on and why, how to fix what is missing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from typing import Any

import torch

from . import __version__, _load, backends


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return ""
    import triton

    return triton.__version__


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def _library(wall: str, record: dict) -> dict[str, Any]:
    found = {"loaded": _load.is_loaded(wall)}
    if not found["loaded"]:
        found["reason"] = record.get(f"{wall}_missing") or _load.why_missing(wall)
    return found


def collect() -> dict[str, Any]:
    """Everything that `info` prints, as plain data."""
    record = _load.build_record()
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "capability": f"{properties.major}.{properties.minor}"})
    devices = ["cpu"] + (["cuda"] if gpus else [])
    operators = {}
    for name, operator in sorted(backends.OPERATORS.items()):
        operators[name] = {}
        for device in devices:
            args, kwargs = operator.example(device)
            try:
                backend, reason = backends.plan(name, *args, **kwargs)
            except ValueError as error:  # a backend that is forced and cannot run here
                backend, reason = "none", str(error)
            operators[name][device] = {"backend": backend, "reason": reason}
    cpu = _library("cpu", record)
    if cpu["loaded"]:
        cpu["instructions"] = torch.ops.attnkernels.simd_level()
    cuda = _library("cuda", record)
    if cuda["loaded"]:
        cuda["architectures"] = record.get("cuda_architectures", [])
    triton_reason = backends.triton_missing()
    return {
        "attnkernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": _triton_version(),
        "platform": f"{platform.system()} {platform.machine()}, {_cpu_model()}, {torch.get_num_threads()} threads",
        "gpus": gpus,
        "built_with": record,
        "libraries": {
            "cpu": cpu,
            "cuda": cuda,
            "triton": {"loaded": not triton_reason, **({"reason": triton_reason} if triton_reason else {})},
        },
        "forced_backend": backends.requested("auto"),
        "operators": operators,
    }


_FIXES = {
    "cpu": "install g++ 11 or newer, or clang 14 or newer, then reinstall with pip install --no-build-isolation",
    "cuda": "install a CUDA build of torch and nvcc of its version (or attnkernels[cuda-compiler]), then reinstall",
    "triton": "needs a GPU that torch sees, and pip install triton",
}


def text(found: dict[str, Any]) -> str:
    """The report that a person reads."""
    lines = [
        f"attnkernels {found['attnkernels']}, Python {found['python']}, torch {found['torch']}"
        f"{' (CUDA ' + found['cuda'] + ')' if found['cuda'] else ' (no CUDA)'}, "
        f"triton {found['triton'] or 'not installed'}",
        found["platform"],
        "GPUs: " + (", ".join(f"{gpu['name']} ({gpu['capability']})" for gpu in found["gpus"]) or "none"),
        "",
        "libraries",
    ]
    for name, library in found["libraries"].items():
        if library["loaded"]:
            detail = library.get("instructions") or ", ".join(library.get("architectures", []))
            lines.append(f"  {name:7} ready{': ' + detail if detail else ''}")
        else:
            lines += [f"  {name:7} not available: {library['reason']}", f"          to fix: {_FIXES[name]}"]
    if found["forced_backend"] != "auto":
        lines += ["", f"every call is forced to backend {found['forced_backend']!r} (ATTNKERNELS_BACKEND)"]
    lines += ["", "operators"]
    for name, devices in found["operators"].items():
        for device, choice in devices.items():
            lines.append(f"  {name:24} on {device:4} -> {choice['backend']:9} {choice['reason']}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m attnkernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    options = parser.parse_args(arguments)
    found = collect()
    print(json.dumps(found, indent=1) if options.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
