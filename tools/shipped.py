"""What a library that is shipped may need of the system, and show of itself (manylinux_2_28, PyTorch's stable ABI)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (8,), "libcudart.so": (99,)}
UNVERSIONED = (
    r"(aoti_)?torch_\w+",  # the stable ABI
    r"(__)?cuda[A-Z]\w+",  # the CUDA runtime, where its library is not found
    r"_ITM_\w+|__gmon_start__",  # of every library, weak
    r"_ZSt28__throw_bad_array_new_lengthv",  # newer than GCC 8: every libtorch_cpu.so defines it
)


def _symbols(library: Path, which: str) -> list[str]:
    command = ["nm", "--dynamic", which, str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[-1] for line in lines]


def _allowed(symbol: str) -> bool:
    name, _, version = symbol.partition("@")
    if not version:
        return any(re.fullmatch(pattern, name) for pattern in UNVERSIONED)
    family, numbers = re.fullmatch(r"@?([A-Za-z.]+)[_.]([\d.]+)", version).groups()
    return family in NEWEST and tuple(map(int, numbers.split("."))) <= NEWEST[family]


def unexpected_symbols(library: Path) -> list[str]:
    """The symbols that a library needs beyond those allowed, and all that it exports."""
    needed = _symbols(library, "--undefined-only")
    assert needed, f"{library} needs no symbols"
    return [name for name in needed if not _allowed(name)] + _symbols(library, "--defined-only")


def build_paths(library: Path, *folders: Path) -> list[str]:
    """Which of the folders stand in the library: those of the sources, of torch, of a home."""
    content = library.read_bytes()
    return [str(folder) for folder in folders if str(folder).encode() in content]
