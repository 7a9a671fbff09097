"""Where figures were measured: device, driver, versions, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from attnkernels import info

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("triton", "timm", "torchvision", "numpy")


WRITTEN = (":!README.md", ":!benchmarks/results", ":!docs")  # what a benchmark changes, not what it measures


def _output(*command: str) -> str:
    """What a command prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()


def _commit() -> dict[str, Any]:
    """The commit that is measured and how many of its files were changed since.

    A copy without a history of its own is told by ATTNKERNELS_COMMIT, as "<commit>" or "<commit>+<number of changed
    files>"; the history around it may be another's.
    """
    if told := os.environ.get("ATTNKERNELS_COMMIT"):
        commit, _, modified = told.partition("+")
        return {"commit": commit, "modified_files": int(modified or 0)}
    if commit := _output("git", "rev-parse", "HEAD"):
        status = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
        return {"commit": commit, "modified_files": len(status.splitlines())}
    return {"commit": None, "modified_files": None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return model.group(1) if model else platform.machine()


def environment(device: str = "cpu") -> dict[str, Any]:
    """A JSON-ready record of the machine, the versions and the commit."""
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__} | {package: _version(package) for package in PACKAGES},
        "device": _cpu_name(),
        # Without the place on a disk, which says nothing to who reads the results.
        "attnkernels": {name: value for name, value in info.collect().items() if name != "libraries_from"},
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
            "nvcc": (re.findall(r"release ([\d.]+)", _output("nvcc", "--version")) or [None])[0],
        }
    return record
