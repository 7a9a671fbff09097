"""What nvcc made of the CUDA kernels: read from `_C_cuda.so` where it is built, from cubins compiled here otherwise."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools import cuda_toolkit
from tools.emulation import short_name

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = ROOT / "attnkernels" / "_C_cuda.so"
COMPILER = "nvcc"
ARCHITECTURES = ("75", "80", "90", "100", "120")  # 86 and 89 run what 80 runs, with fewer threads
RESERVED_SHARED = 1024  # from sm_90 on, ptxas counts the bytes that the driver reserves in each block
# As setup.py compiles them.
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA"]


@dataclass(frozen=True)
class Multiprocessor:
    """CUDA C++ programming guide, table of technical specifications per compute capability."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved_shared_bytes: int = 1024  # of each block, by the driver; none before 8.0
    registers: int = 64 * 1024


MULTIPROCESSORS = {
    "75": Multiprocessor(1024, 16, 64 * 1024, 0),
    "80": Multiprocessor(2048, 32, 164 * 1024),
    "86": Multiprocessor(1536, 16, 100 * 1024),
    "89": Multiprocessor(1536, 24, 100 * 1024),
    "90": Multiprocessor(2048, 32, 228 * 1024),
    "100": Multiprocessor(2048, 32, 228 * 1024),
    "120": Multiprocessor(1536, 24, 100 * 1024),
}


def occupancy(architecture: str, registers: int, threads: int, shared_bytes: int) -> float:
    """Threads that are resident, over those that a multiprocessor can hold.

    Each of the four parts of a multiprocessor has a quarter of the registers, given to warps in units of 256.
    """
    limits = MULTIPROCESSORS[architecture]
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // 256) * 256
    blocks = min(limits.blocks, limits.threads // (warps * 32), 4 * (limits.registers // 4 // of_a_warp) // warps)
    if shared_bytes:
        blocks = min(blocks, limits.shared_bytes // (shared_bytes + limits.reserved_shared_bytes))
    return blocks * warps * 32 / limits.threads


def compiler() -> str:
    return cuda_toolkit.nvcc_version()


def why_unavailable() -> str:
    if not cuda_toolkit.nvcc():
        return "nvcc was not found"
    missing = [name for name in ("cuobjdump", "nvdisasm") if not cuda_toolkit.utility(name)]
    return f"{' and '.join(missing)} were not found: pip install triton" if missing else ""


def ops() -> list[str]:
    return sorted({path.parent.name for path in ROOT.glob("csrc/*/*.cu")})


def rows(op: str, quick: bool = False) -> Iterator[dict]:
    """One row a kernel and architecture; only sm_90 when `quick`."""
    architectures = ("90",) if quick else ARCHITECTURES
    if _library_is_current(op):
        yield from (row for name, row in _rows_of_library(architectures) if f"attnkernels::{op}::" in name)
        return
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            (source, architecture, Path(folder) / f"{source.stem}.{architecture}.cubin")
            for source in sorted(ROOT.glob(f"csrc/{op}/*.cu"))
            for architecture in architectures
        ]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: _compile(*job), jobs))
        for _, architecture, cubin in jobs:
            yield from (row for _, row in _rows_of_cubin(cubin, architecture))


def _library_is_current(op: str) -> bool:
    sources = [path for folder in (op, "common") for path in (ROOT / "csrc" / folder).iterdir()]
    return LIBRARY.exists() and LIBRARY.stat().st_mtime > max(path.stat().st_mtime for path in sources)


@functools.cache
def _rows_of_library(architectures: tuple[str, ...]) -> list[tuple[str, dict]]:
    """The full name and the row of every kernel, of all ops, for those of the architectures that were built. Read once
    a process: it is the library's whole code that is taken apart."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        command = [cuda_toolkit.utility("cuobjdump"), "-xelf", "all", LIBRARY]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            architecture = cubin.suffixes[-2].removeprefix(".sm_")
            if architecture in architectures:
                found += _rows_of_cubin(cubin, architecture)
    return found


def _compile(source: Path, architecture: str, cubin: Path) -> None:
    command = [cuda_toolkit.nvcc(), *NVCC_FLAGS, "-I", ROOT / "csrc", f"-arch=sm_{architecture}", "--cubin", source]
    done = subprocess.run([*command, "-o", cubin], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {source}:\n{done.stderr}")


def _rows_of_cubin(cubin: Path, architecture: str) -> Iterator[tuple[str, dict]]:
    """The full name and the row of each kernel of a cubin."""
    usage = _output("cuobjdump", "-res-usage", cubin)
    block_sizes = _block_sizes(_output("cuobjdump", "-elf", cubin))
    widths = _widths(_output("nvdisasm", cubin))
    found = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    names = subprocess.run(
        ["c++filt"], input="\n".join(name for name, *_ in found), capture_output=True, text=True, check=True
    )
    for (mangled, *numbers), demangled in zip(found, names.stdout.splitlines(), strict=True):
        registers, stack, shared, local = map(int, numbers)
        shared -= RESERVED_SHARED if int(architecture) >= 90 and shared >= RESERVED_SHARED else 0
        threads = block_sizes.get(mangled, 1024)  # what ptxas assumes of a kernel without __launch_bounds__
        load_bits, store_bits = widths[mangled]
        figures = {
            "registers": registers,
            "spill_bytes": stack + local,
            "shared_bytes": shared,
            "load_bits": load_bits,
            "store_bits": store_bits,
            "occupancy": round(occupancy(architecture, registers, threads, shared), 4),
        }
        row = {"kernel": short_name(demangled), "backend": "cuda", "arch": f"sm_{architecture}", "figures": figures}
        yield demangled, row


def _output(tool: str, *arguments: str | Path) -> str:
    command = [cuda_toolkit.utility(tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _block_sizes(listing: str) -> dict[str, int]:
    """Threads of a block, from the attribute that __launch_bounds__ leaves in the section .nv.info.<kernel>."""
    sizes, kernel = {}, ""
    for match in re.finditer(
        r"^\.nv\.info\.(\S+)|EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+([^\n]+)", listing, re.MULTILINE
    ):
        if match.group(1):
            kernel = match.group(1)
        else:
            x, y, z = (int(value, 16) for value in match.group(2).split()[:3])
            sizes[kernel] = x * y * z
    return sizes


def _widths(assembly: str) -> dict[str, tuple[int, int]]:
    """Bits of the widest global load and store of each kernel; 0 where it has none."""
    widths = {}
    for part in re.split(r"^\.text\.(?=\S+:$)", assembly, flags=re.MULTILINE)[1:]:
        kernel, body = part.split(":", 1)
        widths[kernel] = (_widest(body, "LDG"), _widest(body, "STG"))
    return widths


def _widest(assembly: str, opcode: str) -> int:
    widest = 0
    for modifiers in re.findall(rf"\b{opcode}((?:\.\w+)*)", assembly):
        sizes = [int(size) for size in re.findall(r"\.[US]?(8|16|64|128|256)\b", modifiers)]
        widest = max(widest, *(sizes or [32]))
    return widest
