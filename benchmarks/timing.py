"""Interleaved timing: every column is timed once in every round, and only ratios within a round are compared."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
Sampler = Callable[[], float]  # seconds per call, measured now

CPU_SAMPLE_SECONDS = 0.02  # long against the clock's tick and a scheduler slice's noise
GPU_SAMPLE_SECONDS = 0.002
COLD_REPEATS = 5
MOST_CALLS = 200


def interleave(samplers: dict[str, Sampler], rounds: int) -> dict[str, list[float]]:
    """A B C, B C A, C A B, ...: the seconds per call of each column in each round."""
    names, times = list(samplers), {name: [] for name in samplers}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(samplers[name]())
    return times


def enough_rounds(round_seconds: float, budget_seconds: float, least: int, most: int = 1000) -> int:
    """As many rounds as the budget allows within bounds: quick calls need, and can afford, more of them."""
    return min(most, max(least, int(budget_seconds / round_seconds)))


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median of the per-round ratios slow / fast, and its 95 % confidence interval: above 1 where `fast` is faster.

    The interval is that of the binomial distribution, whatever the ratios': between the two order statistics that the
    median lies outside of in at most one of 20 runs (below 6 rounds: the extremes, in one of 2^(rounds - 1)).
    """
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    rounds, outside, chance = len(ratios), 0, 2.0 ** -len(ratios)
    while chance <= 0.025:
        outside += 1
        chance += math.comb(rounds, outside) / 2**rounds
    skipped = max(outside - 1, 0)
    return {"median": statistics.median(ratios), "low": ratios[skipped], "high": ratios[rounds - 1 - skipped]}


def keep_freed_memory() -> None:
    """Let glibc's malloc give freed memory to the next call instead of back to the system.

    Which it does depends on what else lies on the heap, and fresh pages cost more than the ops that are measured (25 MB
    of them 4 ms): the same call took 2.5 or 7 ms. Outputs beyond 32 MB get fresh pages all the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class CpuTimer:
    """Process time of a loop: with one thread it does not count what other processes take from the machine."""

    modes = ("process",)

    def __init__(self) -> None:
        keep_freed_memory()
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def _loop(self, call: Call, calls: int) -> float:
        start = self.clock()
        for _ in range(calls):
            call()
        return (self.clock() - start) / calls

    def sampler(self, call: Call, mode: str = "process") -> Sampler:
        seconds = self._loop(call, 1)
        if seconds < CPU_SAMPLE_SECONDS:  # the first call of all may have been slower
            seconds = max(self._loop(call, 3), 1e-7)
        calls = max(1, min(100_000, round(CPU_SAMPLE_SECONDS / seconds)))
        return lambda: self._loop(call, calls)


class GpuTimer:
    """CUDA events, in three modes.

    launch: called from Python back to back, as an eager user calls it: kernels or their launches, whichever is slower.
    warm: a CUDA graph of many calls, data in L2 where it fits: the kernels alone.
    cold: a CUDA graph of one call after L2 was emptied: the kernels when their data comes from memory.

    Everything runs on one stream, since autograd replays a backward on the stream of its forward.
    """

    modes = ("launch", "warm", "cold")

    def __init__(self, device: str = "cuda") -> None:
        self.stream = torch.cuda.Stream()
        # Read, not written: dirty lines would have to be written back on the measured kernel's account.
        size = 3 * torch.cuda.get_device_properties(device).L2_cache_size
        self.flush_buffer = torch.ones(size // 4, device=device)
        self.flush_result = torch.empty((), device=device)

    def _events(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def _timed(self, call: Call, calls: int = 1) -> float:
        start, end = self._events()
        start.record(self.stream)
        for _ in range(calls):
            call()
        end.record(self.stream)
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    def _graph(self, call: Call, calls: int) -> torch.cuda.CUDAGraph:
        # Not `with torch.cuda.graph(...)`: it empties the allocator's cache each time, and there are thousands.
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            graph.capture_begin()
            for _ in range(calls):
                call()
            graph.capture_end()
        return graph

    def _flush(self) -> None:
        torch.sum(self.flush_buffer, 0, out=self.flush_result)

    def sampler(self, call: Call, mode: str) -> Sampler:
        """`call` must have run before on `self.stream` (compiled, autotuned)."""
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                call()
            seconds = self._timed(call, 5)
        calls = max(2, min(MOST_CALLS, round(GPU_SAMPLE_SECONDS / seconds)))
        if mode == "launch":
            return self._on_stream(lambda: self._timed(call, calls))
        graph = self._graph(call, calls if mode == "warm" else 1)
        if mode == "warm":
            return self._on_stream(lambda: self._timed(graph.replay) / calls)

        def cold() -> float:
            times = []
            for _ in range(COLD_REPEATS):
                self._flush()
                times.append(self._timed(graph.replay))
            return statistics.median(times)

        return self._on_stream(cold)

    def _on_stream(self, sampler: Sampler) -> Sampler:
        def sample() -> float:
            with torch.cuda.stream(self.stream):
                return sampler()

        return sample


def make_timer(device: torch.device) -> CpuTimer | GpuTimer:
    return GpuTimer(str(device)) if device.type == "cuda" else CpuTimer()


def copy_bandwidth(timer: CpuTimer | GpuTimer, device: torch.device, nbytes: int, mode: str) -> float:
    """Bytes per second, read and written, of a copy that moves `nbytes` in all."""
    source = torch.ones(max(1, nbytes // 8), device=device)
    target = torch.empty_like(source)
    sampler = timer.sampler(lambda: target.copy_(source), mode)
    return 2 * source.nbytes / statistics.median(sampler() for _ in range(7))


def matmul_rate(timer: CpuTimer | GpuTimer, device: torch.device, dtype: torch.dtype, mode: str) -> float:
    """Floating-point operations per second of a square matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    sampler = timer.sampler(lambda: a @ b, mode)
    return 2 * size**3 / statistics.median(sampler() for _ in range(7))
