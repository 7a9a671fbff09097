"""Builds the CPU library with AddressSanitizer and UndefinedBehaviorSanitizer and runs the CPU tests on it (g++).

python -m tools.sanitize_cpu [pytest arguments]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitized"
FLAGS = [
    "-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi", "-Wno-attributes", "-w",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
]  # fmt: skip


def build() -> None:
    """A copy of the package whose CPU library is instrumented, and no other library."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(ROOT / "attnkernels", FOLDER / "attnkernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    sources = sorted(map(str, ROOT.glob("csrc/*/*_cpu.cpp")))
    search = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    link = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    library = FOLDER / "attnkernels" / "_C_cpu.so"
    subprocess.run(["g++", *FLAGS, *search, *sources, *link, "-ltorch_cpu", "-lc10", "-o", str(library)], check=True)


def main(arguments: list[str]) -> int:
    build()
    # libstdc++ as well: the sanitizer looks up the functions that it intercepts when the process starts.
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Python leaks by design and frees with one allocator's functions what another's have allocated.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:alloc_dealloc_mismatch=0",
        "PYTHONPATH": str(FOLDER),
    }
    tests = [str(ROOT / "tests" / "cpu"), *arguments]
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--rootdir", str(FOLDER), *tests]
    return subprocess.run(command, env=environment, cwd=FOLDER).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
