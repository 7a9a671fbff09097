"""Ops one by one: speed, memory and error of eager, compiled and fused forms."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import attnkernels
from attnkernels import backends, reference
from attnkernels.testing import map_tensors, tensors_of

from . import report
from .cases import Case, Shape, Work, all_cases, parse_shape
from .environment import environment
from .memory import held_and_peak
from .timing import CpuTimer, GpuTimer, copy_bandwidth, interleave, make_timer, matmul_rate, ratio

DIRECTIONS = ("forward", "backward", "training")
LAYOUTS = ("nchw", "channels_last")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# "ours" is what a user gets (auto); a backend's name forces it. Backends that cannot run on the device are left out.
COLUMNS = ("eager", "eager_channels_last", "compile", "compile_ours", "ours", "cuda", "triton")
# Errors up to this are the dtype's own rounding; beyond it a result may be at most twice as far off as eager's.
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
# Bytes read and written; far beyond any L2. Not a power of two: as the node of a CUDA graph, a copy of exactly 512 MiB
# runs a fifth slower than those of other sizes.
LARGE_COPY = 1000 << 20


@dataclass
class Settings:
    device: torch.device
    directions: tuple[str, ...]
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...]
    columns: tuple[str, ...]
    modes: tuple[str, ...]
    rounds: int
    budget: float = float("inf")  # seconds after which compiled columns are left out, and listed as such
    limit: float = float("inf")  # seconds after which further problems are


@dataclass
class Problem:
    """One case, shape, dtype, layout and variant, with its inputs."""

    case: Case
    shape: Shape
    variant: str
    dtype: torch.dtype
    layout: str
    device: torch.device
    name: str = field(init=False)
    args: tuple[Any, ...] = field(init=False)
    kwargs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.name = problem_name(self.case, self.shape, self.variant, self.dtype, self.layout)
        generator = torch.Generator(self.device).manual_seed(0)

        def randn(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=self.device, dtype=torch.float32)

        self.args, self.kwargs = map_tensors(
            self.case.make(randn, self.shape, self.variant),
            lambda value: self._formatted(value.to(self.dtype)).requires_grad_(),
        )
        y = self.case.eager(*self.args, **self.kwargs)
        self.grad = torch.randn(y.shape, generator=generator, device=self.device).to(y.dtype)
        # In the layout of the model: what the next layer of a channels_last model hands back is channels_last.
        self.grad = self._formatted(self.grad)

    def _formatted(self, value: Tensor) -> Tensor:
        last = self.layout == "channels_last" and value.dim() == 4
        return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def converted(self, function: Callable[[Tensor], Tensor]) -> tuple[tuple, dict]:
        """The arguments with every tensor converted, as fresh leaves."""
        return map_tensors((self.args, self.kwargs), lambda value: function(value).detach().requires_grad_())


def problem_name(case: Case, shape: Shape, variant: str, dtype: torch.dtype, layout: str) -> str:
    return f"{case.op} {variant} {'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {layout}"


@dataclass
class Column:
    """A function with arguments of its own; everything needed to run it in any direction."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: Tensor

    def __post_init__(self) -> None:
        self.leaves = list(tensors_of((self.args, self.kwargs)))

    def output(self) -> Tensor:
        return self.function(*self.args, **self.kwargs)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.output()

    def training(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.output(), self.leaves, self.grad)

    def call(self, direction: str) -> Callable[[], object]:
        if direction == "backward":
            y = self.output()
            return lambda: torch.autograd.grad(y, self.leaves, self.grad, retain_graph=True)
        return self.forward if direction == "forward" else self.training


def compiled(name: str) -> bool:
    return name.startswith("compile")


def every_column(cases: list[Case]) -> tuple[str, ...]:
    """COLUMNS and the cases' alternatives, eager and compiled."""
    alternatives = dict.fromkeys(name for case in cases for name in case.alternatives)
    return (*COLUMNS, *(column for name in alternatives for column in (name, f"compile_{name}")))


def make_columns(problem: Problem, names: tuple[str, ...], backend: str) -> dict[str, Column]:
    """The columns that this problem has; forcing `backend`, which `auto` takes anyway, is not measured twice."""
    public = getattr(attnkernels, problem.case.op)
    available = [backend for backend in ("cpu", "cuda", "triton") if not backends.unavailable(backend, problem.device)]
    columns = {}
    for name in names:
        args, kwargs, grad = problem.args, problem.kwargs, problem.grad
        if name == "eager":
            function = problem.case.eager
        elif name == "eager_channels_last":
            if problem.layout == "channels_last":
                continue  # that is "eager"
            function = problem.case.eager
            args, kwargs = problem.converted(_channels_last)
            grad = _channels_last(grad)
        elif name == "compile":
            function = torch.compile(problem.case.eager, dynamic=False)
        elif name == "compile_ours":
            function = torch.compile(public, dynamic=False)
        elif name in problem.case.alternatives:
            function = problem.case.alternatives[name]
        elif name.removeprefix("compile_") in problem.case.alternatives:
            function = torch.compile(problem.case.alternatives[name.removeprefix("compile_")], dynamic=False)
        elif name == "ours":
            function = public
        elif name in available and name != backend:
            function = functools.partial(public, backend=name)
        else:
            continue
        columns[name] = Column(function, args, kwargs, grad)
    return columns


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def chosen_backend(problem: Problem) -> tuple[str, str]:
    """The backend of "ours" and the reason.

    Raises:
        RuntimeError: there is no fused backend on this device: a benchmark of the fallback would pose as one of ours.
    """
    backend, reason = backends.plan(problem.case.op, *problem.args, **problem.kwargs)
    if backend == "reference" and backends.best_backend(problem.device) == "reference":
        raise RuntimeError(
            f"no fused backend of {problem.case.op} can run on {problem.device}: build the library first"
        )
    return backend, reason


def errors(problem: Problem, columns: dict[str, Column], backward: bool) -> dict[str, list[float]]:
    """Per column |result - reference| / |reference| in the 2-norm, for the output and each gradient; float64 reference.

    In a norm, since where ReLU's argument is near 0 its rounding alone decides whether a gradient passes.
    """
    exact = getattr(reference, problem.case.op)
    args, kwargs = problem.converted(lambda value: value.double())
    expected = _results(Column(exact, args, kwargs, problem.grad.double()), backward)
    scales = [value.norm().item() for value in expected]
    if not all(scale > 0 for scale in scales):
        raise RuntimeError(f"{problem.name}: a result is all zeros, which proves nothing")
    return {
        name: [
            (got.double() - want).norm().item() / scale
            for got, want, scale in zip(_results(column, backward), expected, scales, strict=True)
        ]
        for name, column in columns.items()
    }


def _results(column: Column, backward: bool) -> list[Tensor]:
    if not backward:
        return [column.forward()]
    y = column.output()
    return [y.detach(), *torch.autograd.grad(y, column.leaves, column.grad)]


def red_columns(measured: dict[str, list[float]], dtype: torch.dtype) -> dict[str, str]:
    """The columns whose results are wrong, with the figures."""
    baseline = measured.get("eager", [0.0] * 99)
    return {
        name: f"error {max(values):.2e}, eager {max(baseline[: len(values)]):.2e}"
        for name, values in measured.items()
        if not all(value <= ROUNDING[dtype] + 2 * own for value, own in zip(values, baseline, strict=False))
    }


class Runner:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.timer: CpuTimer | GpuTimer = make_timer(settings.device)
        self.started = time.monotonic()
        self.left_out: list[str] = []
        self._copies: dict[tuple[int, str], float] = {}
        self._gemms: dict[torch.dtype, float] = {}

    def copy(self, nbytes: int, mode: str) -> float:
        key = (nbytes, mode)
        if key not in self._copies:
            self._copies[key] = copy_bandwidth(self.timer, self.settings.device, nbytes, mode)
        return self._copies[key]

    def gemm(self, dtype: torch.dtype) -> float:
        if dtype not in self._gemms:
            self._gemms[dtype] = matmul_rate(self.timer, self.settings.device, dtype, self.timer.modes[0])
        return self._gemms[dtype]

    def floor(self, work: Work, direction: str, dtype: torch.dtype, mode: str) -> float:
        """Seconds that the memory or the matrix units need at least."""
        nbytes, flops = work.of(direction)
        # On a GPU the floor is that of memory proper; on the CPU a copy of the same size, caches and all.
        bandwidth = self.copy(LARGE_COPY, "cold") if self.settings.device.type == "cuda" else self.copy(nbytes, mode)
        return max(nbytes / bandwidth, flops / self.gemm(dtype) if flops else 0.0)

    def rows(self, problem: Problem) -> Iterator[dict[str, Any]]:
        """One row per direction and mode; a single one with "red" where a result is wrong."""
        torch.compiler.reset()
        settings = self.settings
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()  # what the last problem's graphs held
        backward = any(direction != "forward" for direction in settings.directions)
        backend, reason = chosen_backend(problem) if "ours" in settings.columns else ("", "")
        head = {
            "op": problem.case.op, "axes": problem.case.axes, "variant": problem.variant,
            "shape": "x".join(map(str, problem.shape)),
            "dtype": str(problem.dtype).removeprefix("torch."), "layout": problem.layout,
            "backend": backend, "reason": reason,
        }  # fmt: skip
        columns = make_columns(problem, settings.columns, backend)
        if self.elapsed() > settings.budget and any(map(compiled, columns)):
            self.left_out.append(f"{problem.name}: {', '.join(filter(compiled, columns))} (time budget)")
            columns = {name: column for name, column in columns.items() if not compiled(name)}
        measured = errors(problem, columns, backward)
        head["errors"] = {name: max(values) for name, values in measured.items()}
        if red := red_columns(measured, problem.dtype):
            yield head | {"direction": "-", "mode": "-", "red": red}
            return
        work = problem.case.work(problem.shape, problem.variant, problem.dtype.itemsize)
        for direction in settings.directions:
            yield from self._timed(head, direction, columns, work, problem.dtype)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def _timed(self, head, direction, columns, work, dtype) -> Iterator[dict[str, Any]]:
        # A compiled backward frees what it saved as it runs (donated buffers): it cannot be repeated on its own.
        names = [name for name in columns if direction != "backward" or not compiled(name)]
        calls = self._prepared({name: columns[name] for name in names}, direction)
        memory = {name: held_and_peak(columns[name].output, self.settings.device) for name in names}
        peaks = {name: held_and_peak(columns[name].call(direction), self.settings.device)[1] for name in names}
        base = "ours" if "ours" in names else names[0]
        nbytes, flops = work.of(direction)
        for mode in self.settings.modes:
            times = interleave({n: self.timer.sampler(call, mode) for n, call in calls.items()}, self.settings.rounds)
            floor = self.floor(work, direction, dtype, mode)
            yield head | {
                "direction": direction, "mode": mode, "bytes": nbytes, "flops": flops, "floor": floor,
                "copy_same_size": self.copy(nbytes, mode),
                "seconds": times,
                "median": {name: statistics.median(values) for name, values in times.items()},
                "base": base,
                "ratios": {name: ratio(values, times[base]) for name, values in times.items() if name != base},
                "held_bytes": {name: held for name, (held, _) in memory.items()},
                "peak_bytes": peaks,
            }  # fmt: skip

    def _prepared(self, columns: dict[str, Column], direction: str) -> dict[str, Callable[[], object]]:
        if isinstance(self.timer, CpuTimer):
            return {name: column.call(direction) for name, column in columns.items()}
        torch.cuda.synchronize()  # the inputs were made on another stream
        with torch.cuda.stream(self.timer.stream):
            calls = {name: column.call(direction) for name, column in columns.items()}
            for call in calls.values():
                call()
        torch.cuda.synchronize()
        return calls


def problems(
    settings: Settings, cases: list[Case], shapes: tuple[str, ...], variants: tuple[str, ...]
) -> Iterator[tuple]:
    """Arguments of every Problem, the plain variants first: time may run out."""
    for position in range(max(len(case.variants) for case in cases)):
        for dtype, case in itertools.product(settings.dtypes, cases):
            variant = dict(enumerate(case.variants)).get(position)
            if variant is None or (variants and variant not in variants):
                continue
            for text, layout in itertools.product(shapes or case.shapes[settings.device.type], settings.layouts):
                yield case, parse_shape(text), variant, DTYPES[dtype], layout, settings.device


def run(arguments) -> int:
    """`python -m benchmarks micro`; 0 unless some result was wrong or some case failed."""
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # the same arithmetic in every column
    warnings.filterwarnings("ignore", module="torch._inductor")
    on_gpu = device.type == "cuda"
    known = all_cases()
    cases = [known[op] for op in (arguments.op or known)]
    settings = Settings(
        device=device,
        directions=arguments.direction or (DIRECTIONS if on_gpu else ("forward", "training")),
        layouts=arguments.layout or LAYOUTS,
        dtypes=arguments.dtype or (("bfloat16", "float32") if on_gpu else ("float32",)),
        columns=arguments.columns or every_column(cases),
        modes=arguments.mode or (GpuTimer.modes if on_gpu else CpuTimer.modes),
        rounds=arguments.rounds,
        budget=arguments.budget,
        limit=arguments.limit,
    )
    runner = Runner(settings)
    large = LARGE_COPY if on_gpu else 1 << 25
    document = {
        "kind": "micro",
        "environment": environment(arguments.device),
        "settings": {key: str(value) for key, value in vars(settings).items()},
        "copy_bytes_per_second": {mode: runner.copy(large, mode) for mode in settings.modes},
        "rows": [],
        "failed": [],
        "left_out": runner.left_out,
    }
    for parts in problems(settings, cases, arguments.shapes or (), arguments.variant or ()):
        name = problem_name(*parts[:-1])
        if runner.elapsed() > settings.limit:
            runner.left_out.append(f"{name} (time limit)")
            continue
        try:
            document["rows"] += runner.rows(Problem(*parts))
        except Exception as error:  # one case that fails must not lose the others' figures
            document["failed"].append(f"{name}: {type(error).__name__}: {error}")
            report.note(f"FAILED {document['failed'][-1]}")
        else:
            report.note(f"{runner.elapsed():6.0f} s  {name}")
        report.save(document, arguments.json)
    report.print_micro(document)
    return 1 if document["failed"] or any("red" in row for row in document["rows"]) else 0
