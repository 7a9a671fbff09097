"""Compiles the CPU sources with g++ and clang, for this machine and for aarch64; warnings are errors.

Of the versions that are installed, the oldest that is supported is taken.

python -m tools.compile_checks
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parent.parent
# Compilers, their oldest supported versions (README.md and attnkernels/info.py say the same), and flags.
CHECKS = [
    ("g++", 11, []),
    ("clang++", 14, []),
    ("aarch64-linux-gnu-g++", 11, []),
    ("clang++", 14, ["--target=aarch64-linux-gnu"]),  # with the headers that g++ for aarch64 brings
]
# The build's warnings, but not about torch's headers. Code is generated: before that, clang does not notice intrinsics
# in functions of a smaller instruction set. Unoptimised code is enough for it, and takes a fifth of the build's time.
FLAGS = [
    "-std=c++20", "-O0", "-c", "-o", os.devnull, "-Wall", "-Werror", "-Wno-psabi", "-Wno-attributes",
    "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
    f"-I{ROOT / 'csrc'}", "-include", "common/old_glibc.h", *(f"-isystem{path}" for path in include_paths()),
]  # fmt: skip


def installed(name: str, oldest: int) -> str:
    """The oldest supported version of a compiler on the PATH, or the one without a version in its name."""
    names = [*(f"{name}-{version}" for version in range(oldest, 100)), name]
    return next(filter(shutil.which, names), None) or sys.exit(f"the compile checks need {name}: it was not found")


def messages(compiler: list[str], source: Path) -> str:
    """What a compiler says of a source; empty where it compiles without a warning."""
    done = subprocess.run([*compiler, *FLAGS, str(source)], capture_output=True, text=True)
    return f"{' '.join(compiler)}: {source.relative_to(ROOT)}\n{done.stderr}" if done.returncode else ""


def main() -> int:
    compilers = [[installed(name, oldest), *flags] for name, oldest, flags in CHECKS]
    # The longest first, so that no processor waits for one of them at the end.
    sources = sorted(ROOT.glob("csrc/*/*_cpu.cpp"), key=lambda path: path.stat().st_size, reverse=True)
    runs = [(compiler, source) for source in sources for compiler in compilers]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        failures = list(filter(None, pool.map(lambda run: messages(*run), runs)))
    print("".join(failures), end="")
    print(f"{len(runs) - len(failures)} of {len(runs)} compile: {', '.join(map(' '.join, compilers))}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
