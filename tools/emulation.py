"""The CUDA kernels on the host: builds the emulated library, loads it, and controls it (docs/emulation.md).

from tools import emulation

bench = emulation.load()                  # backend "emulated" now takes CPU tensors
with bench.device(major=7, minor=5), bench.launches() as launches:
    attnkernels.squeeze_excite(..., backend="emulated")
assert [launch.kernel for launch in launches] == [...]
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attnkernels import _load

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its name with template arguments, its configuration in blocks, threads and bytes."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_shared: int
    static_shared: int
    cooperative: bool
    dependent: bool


@dataclass(frozen=True)
class BufferTraffic:
    """What one kernel read from, or wrote to, one buffer.

    Attributes:
        factor: bytes moved over the buffer's bytes; lanes of a warp that read one address together count once.
        bytes_per_access: of one lane; 16 is the widest.
        sector_efficiency: bytes moved over the bytes of the 32-byte sectors touched.
        atomics: how many of the lanes' accesses were atomic.
    """

    kernel: str
    buffer: str
    write: bool
    bytes: int
    factor: float
    bytes_per_access: float
    sector_efficiency: float
    requests: int
    atomics: int


@dataclass(frozen=True)
class SharedTraffic:
    """One kernel's shared memory: `conflicts` is the wavefronts needed over the fewest possible (1.0: none)."""

    kernel: str
    requests: int
    conflicts: float
    remote_bytes: int


class Traffic:
    """Filled by `Emulation.traffic`; `read` and `write` look a buffer's rows up."""

    def __init__(self) -> None:
        self.buffers: list[BufferTraffic] = []
        self.shared: list[SharedTraffic] = []

    def factor(self, buffer: str, write: bool = False) -> float:
        """Bytes moved by all kernels together, over the buffer's bytes."""
        return sum(row.factor for row in self.buffers if row.buffer == buffer and row.write == write)


class Emulation:
    """Controls of one emulated library."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def seed(self, value: int) -> None:
        """Set the random order in which threads run between barriers."""
        self.module.set_seed(value)

    @contextlib.contextmanager
    def device(self, **fields: int | list[int]) -> Iterator[None]:
        """Pretend to be another GPU than an H100: `get_device()` of the module lists the fields."""
        before = self.module.get_device()
        self.module.set_device(fields)
        try:
            yield
        finally:
            self.module.set_device(before)

    @contextlib.contextmanager
    def launches(self) -> Iterator[list[Launch]]:
        """The launches made inside the `with` block, in order; the list is filled when the block ends."""
        result: list[Launch] = []
        self.module.record_launches(True)
        try:
            yield result
        finally:
            self.module.record_launches(False)
            for record in self.module.launches():
                result.append(Launch(**{**record, "kernel": self.kernel_name(record["kernel"])}))

    @contextlib.contextmanager
    def traffic(self, buffers: Mapping[str, Any]) -> Iterator[Traffic]:
        """Count the memory traffic of the `with` block (a library built in mode "traffic").

        Args:
            buffers: names to tensors or arrays, looked up when the block ends: results may be added inside it.
        """
        result = Traffic()
        self.module.begin_traffic()
        try:
            yield result
        finally:
            requests, shared = self.module.end_traffic()
            for name, buffer in buffers.items():
                result.buffers += self._rows(requests, name, *_address_and_bytes(buffer))
            for row in shared:
                conflicts = float(row["wavefronts"]) / max(1.0, float(row["least_wavefronts"]))
                result.shared.append(
                    SharedTraffic(
                        self.kernel_name(int(row["kernel"])), int(row["requests"]), conflicts, int(row["remote_bytes"])
                    )
                )

    def _rows(self, requests: np.ndarray, name: str, address: int, size: int) -> Iterator[BufferTraffic]:
        inside = requests[(requests["address"] >= address) & (requests["address"] < address + size)]
        for kernel in dict.fromkeys(inside["kernel"].tolist()):
            for write in (0, 1):
                rows = inside[(inside["kernel"] == kernel) & (inside["write"] == write)]
                if len(rows) == 0:
                    continue
                moved, lanes = int(rows["bytes"].sum()), int(rows["lanes"].sum())
                yield BufferTraffic(
                    kernel=self.kernel_name(kernel),
                    buffer=name,
                    write=bool(write),
                    bytes=moved,
                    factor=moved / size,
                    bytes_per_access=int(rows["lane_bytes"].sum()) / lanes,
                    sector_efficiency=moved / (32 * int(rows["sectors"].sum())),
                    requests=len(rows),
                    atomics=int(rows["lanes"][rows["atomic"] == 1].sum()),
                )

    def kernel_name(self, offset: int) -> str:
        """The name, with template arguments but without namespaces, of the function at that place in the library."""
        return _symbols(self.module.__file__).get(offset, hex(offset))


def _address_and_bytes(buffer: Any) -> tuple[int, int]:
    if hasattr(buffer, "data_ptr"):
        return buffer.data_ptr(), buffer.numel() * buffer.element_size()
    return buffer.ctypes.data, buffer.nbytes


def short_name(demangled: str) -> str:
    """`void a::(anonymous namespace)::pool<a::Relu, 4>(float const*)` -> `pool<Relu, 4>`."""
    name = demangled.replace("(anonymous namespace)::", "")
    depth, start, end = 0, 0, len(name)
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if depth == 0 and character == " ":
            start = position + 1  # what came before is the return type
        elif depth == 0 and character == "(":
            end = position  # the parameters begin
            break
    return re.sub(r"\b\w+::", "", name[start:end])


@functools.cache
def _symbols(library: str) -> dict[int, str]:
    listing = subprocess.run(["nm", "-C", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    entries = (line.split(" ", 2) for line in listing.splitlines())
    return {int(address, 16): short_name(name) for address, kind, name in entries if kind in "tTwW"}


def with_lines(report: str) -> str:
    """A sanitizer's report with the source lines of its `(program+offset)`: GCC's own look-up misses many templates."""

    def line(place: re.Match) -> str:
        command = ["addr2line", "-e", place.group(1), place.group(2)]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return place.group(0) if found.startswith("?") or not found else f"({found})"

    return re.sub(r"\((/[^()\n]+)\+(0x[0-9a-f]+)\)", line, report)  # the path may hold blanks


def why_unavailable() -> str:
    """Why the emulation cannot be built here; empty when it can."""
    command = [sys.executable, "-c", "from tools.emulated import why_unavailable; print(why_unavailable())"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def is_built() -> bool:
    """Whether `python -m tools.emulated` has built the plain library; `load` would bring it up to date."""
    return (ROOT / "build" / "emulated" / "plain" / "attnkernels_emulated.so").exists()


@functools.cache
def build(mode: str, target: str) -> Path:
    """Build a target of `python -m tools.emulated` where it is out of date, once a process; its path.

    Raises:
        RuntimeError: it cannot be built; the compiler's messages.
    """
    command = [sys.executable, "-m", "tools.emulated", "--mode", mode, target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stdout}{done.stderr}")
    return Path(done.stdout.splitlines()[-1])


def run(mode: str, program: str, *arguments: str, timeout: float, **environment: str) -> subprocess.CompletedProcess:
    """Build a stand-alone program where it is out of date, and run it. By default ThreadSanitizer would sleep for a
    second before each program ends, for races with threads that are left over: the emulation starts none."""
    environment = {"TSAN_OPTIONS": "atexit_sleep_ms=0", **os.environ, **environment}
    command = [build(mode, program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@functools.cache
def load_module(mode: str, target: str, name: str) -> Emulation:
    """Build and import a Python module that binds the emulation's controls."""
    path = build(mode, target)
    spec = importlib.util.spec_from_file_location(f"{mode}.{name}", path)  # modes are different modules
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Emulation(module)


@functools.cache
def load(mode: str = "plain") -> Emulation:
    """Bring every CUDA kernel, compiled for the host, into the process as the backend "emulated".

    Args:
        mode: "plain", or "traffic" to count memory traffic (slower). One process holds one of them.

    Raises:
        RuntimeError: the library cannot be built, or the process holds one of the other mode.
    """
    if _load.is_loaded("emulated"):
        raise RuntimeError("another emulated library is already in this process")
    emulation = load_module(mode, "library", "attnkernels_emulated")
    _load.mark_loaded("emulated")
    return emulation
