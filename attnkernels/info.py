"""`python -m attnkernels.info [--json]`: what is here, what each op runs on and why, how to fix what is missing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import textwrap
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


def _cpu_library() -> dict[str, Any]:
    if not _load.is_loaded("cpu"):
        return {"ready": False, "reason": _load.why_missing("cpu")}
    return {"ready": True, "instructions": torch.ops.attnkernels.simd_level()}


def _cuda_library() -> dict[str, Any]:
    """Ready where at least one GPU can run it."""
    if not _load.is_loaded("cuda"):
        return {"ready": False, "reason": _load.why_missing("cuda")}
    found = {"architectures": _load.build_record().get("cuda_architectures", [])}
    if not torch.cuda.is_available():
        return {"ready": False, "reason": f"built for {', '.join(found['architectures'])}; torch sees no GPU", **found}
    obstacles = [backends.cuda_missing(index) for index in range(torch.cuda.device_count())]
    return {"ready": False, "reason": obstacles[0], **found} if all(obstacles) else {"ready": True, **found}


def _triton() -> dict[str, Any]:
    reason = backends.triton_missing()
    return {"ready": False, "reason": reason} if reason else {"ready": True}


def collect() -> dict[str, Any]:
    """Everything that `info` prints, as plain data."""
    record = _load.build_record()
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "capability": f"{properties.major}.{properties.minor}"})
    devices = ["cpu"] + (["cuda"] if gpus else [])
    operators = {}
    for name, op in sorted(backends.OPS.items()):
        operators[name] = {}
        for device in devices:
            args, kwargs = op.example(device)
            try:
                backend, reason = backends.plan(name, *args, **kwargs)
            except ValueError as error:  # a backend that is forced and cannot run here
                backend, reason = "none", str(error)
            operators[name][device] = {"backend": backend, "reason": reason}
    return {
        "attnkernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": _triton_version(),
        "platform": f"{platform.system()} {platform.machine()}, {_cpu_model()}, {torch.get_num_threads()} threads",
        "gpus": gpus,
        "built_with": record,
        "libraries_from": str(_load.home()),
        "stale": _load.stale(),
        "libraries": {"cpu": _cpu_library(), "cuda": _cuda_library(), "triton": _triton()},
        "forced_backend": backends.requested("auto"),
        "operators": operators,
    }


_REINSTALL = "pip install --no-build-isolation ."
_FIXES = (  # by what the reason says, the first that fits
    ("hides the package", f"start Python in another folder, or build this one: {_REINSTALL}"),
    ("source tree that was not built", f"in that folder: {_REINSTALL}"),
    ("no C++ compiler", f"install g++ 11 or newer, or clang 14 or newer; then {_REINSTALL}"),
    ("did not compile", f"needs g++ 11 or newer, or clang 14 or newer; all of the output: {_REINSTALL} -v"),
    ("ATTNKERNELS_CUDA=0", f"ATTNKERNELS_CUDA=auto {_REINSTALL}"),
    (
        "build without CUDA",
        f"where there is a GPU: install a CUDA build of torch and nvcc of its version; then {_REINSTALL}",
    ),
    (
        "no nvcc",
        f'pip install "attnkernels[cuda-compiler]", or put nvcc on the PATH or set CUDA_HOME; then {_REINSTALL}',
    ),
    ("nvcc is of CUDA", f"put nvcc of torch's CUDA version on the PATH, or set CUDA_HOME; then {_REINSTALL}"),
    ("was built for", "set TORCH_CUDA_ARCH_LIST as it says, or use the triton backend"),
    ("sees no GPU", "nothing, on a machine without a GPU; with one, nvidia-smi tells whether its driver works"),
    ("triton is not installed", "pip install triton"),
    ("", f"build it next to this torch: {_REINSTALL}"),
)


def fix(reason: str) -> str:
    """What to do about a missing library, by why it is missing."""
    return next(hint for said, hint in _FIXES if said in reason)


def _wrapped(first: str, words: str) -> list[str]:
    """Lines of at most 100 columns, three of them at most."""
    return textwrap.wrap(words, 100, initial_indent=first, subsequent_indent=" " * 10, max_lines=3, placeholder=" ...")


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
        if library["ready"]:
            detail = library.get("instructions") or ", ".join(library.get("architectures", []))
            lines.append(f"  {name:7} ready{': ' + detail if detail else ''}")
        else:
            lines += _wrapped(f"  {name:7} ", f"not available: {library['reason']}")
            lines += _wrapped(" " * 10, f"to fix: {fix(library['reason'])}")
    if found["stale"]:
        lines += _wrapped("  ", f"they were built from other C++ sources than those beside them: {_REINSTALL}")
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
