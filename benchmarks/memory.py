"""Bytes allocated by a call, as the allocator itself counts them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def _cpu_peak(call: Callable[[], object]) -> tuple[int, int]:
    # Every torch allocation on the CPU, those inside compiled code and C++ kernels too, reports itself to the profiler.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        result = call()  # held until the profiler has stopped, so that `held` counts it
    now = peak = 0
    events = [event for event in session.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return now, peak


def _gpu_peak(call: Callable[[], object]) -> tuple[int, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    held, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    del result
    return held, peak


def held_and_peak(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Bytes above what was there before: held while the result lives, and the most at any time."""
    return (_gpu_peak if device.type == "cuda" else _cpu_peak)(call)
