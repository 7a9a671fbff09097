"""Whole models of timm and torchvision: eager, patched, compiled, compiled and patched.

In inference also with the batch normalisations folded into the convolutions, patched and not.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import attnkernels

from . import photograph, report
from .environment import environment
from .folding import folded
from .memory import held_and_peak
from .micro import DTYPES, LAYOUTS, ROUNDING
from .timing import CpuTimer, GpuTimer, Sampler, enough_rounds, interleave, make_timer, ratio

SQUEEZE_EXCITE_MODELS = ("mobilenet_v3_large", "efficientnet_b0", "seresnet50", "regnety_032")
BRANCH_MODELS = ("skresnet18", "skresnet34", "skresnet50", "skresnext50_32x4d", "resnest50d")
# timm's models that have no name of their own: their names there and what else they are made with.
MADE = {"resnet50_cbam": ("resnet50", {"block_args": {"attn_layer": "cbam"}})}
MODELS = (*SQUEEZE_EXCITE_MODELS, *BRANCH_MODELS, *MADE)
COLUMNS = ("eager", "patched", "folded", "folded_patched", "compile", "compile_patched")
DIRECTIONS = ("forward", "training")
# Largest elements of deep nets' outputs are a few roundings apart in any two correct evaluations.
TIMES_NOISE = 3


def load_model(name: str) -> nn.Module:
    """A model with random weights on which every block counts: torchvision's where it has the name, else timm's."""
    import timm
    import torchvision

    torch.manual_seed(0)
    if name in torchvision.models.list_models():
        model = torchvision.models.get_model(name, weights=None)
    else:
        timm_name, arguments = MADE.get(name, (name, {}))
        model = timm.create_model(timm_name, pretrained=False, **arguments)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # timm starts the last normalisation of each residual block at 0: its attention would work on nothing.
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0  # every column computes the same
    return model


def calibrate(model: nn.Module, images: Tensor) -> nn.Module:
    """Give the normalisations the statistics of these images: with those of initialisation, outputs are degenerate."""
    normalisations = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in normalisations]
    for module in normalisations:
        module.reset_running_stats()
        module.momentum = None  # the plain average over the passes
    model.train()
    with torch.no_grad():
        for shift in range(3):
            model(images.roll(shift * 8, dims=-1))
    for module, momentum in zip(normalisations, momenta, strict=True):
        module.momentum = momentum
    return model.eval()


def relative_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Of the output, max |a - b| / max |b|; of all gradients together, where there are any, |a - b| / |b| if larger.

    Together, since the gradient of a bias before a normalisation is rounding and nothing else.
    """
    (output, *grads), (want, *want_grads) = ([tensor.double() for tensor in tensors] for tensors in (a, b))
    difference = (output - want).abs().max() / want.abs().max()
    if grads:
        grad, want_grad = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (grads, want_grads))
        difference = torch.maximum(difference, (grad - want_grad).norm() / want_grad.norm())
    return difference.item()


@dataclass
class Configuration:
    name: str
    batch: int
    layout: str
    dtype: torch.dtype
    direction: str
    device: torch.device

    def __str__(self) -> str:
        return f"{self.name} b{self.batch} {self.layout} {str(self.dtype).removeprefix('torch.')} {self.direction}"


class Measurement:
    """All columns of one configuration.

    The columns eager and patched are one model, patched and unpatched in turn: two copies of a model differ by up to
    1 % in time for the addresses of their weights alone. So are the columns folded and folded_patched, in inference.
    """

    def __init__(
        self,
        configuration: Configuration,
        model: nn.Module,
        columns: tuple[str, ...],
        exact: list[Tensor] | None = None,
    ):
        """`exact`: the results in float64, where they are known from another layout or dtype."""
        self.configuration = configuration
        self.model = model
        self.images = photograph.batch(configuration.batch).to(configuration.device)
        self.corner = self._in(self.images[:1, :, :64, :64], configuration.dtype)
        self.seconds_to_compile: dict[str, float] = {}
        self.replaced = 0
        self.results: dict[str, list[Tensor]] = {}
        self.uncompiled = self._copy(configuration.dtype)
        if configuration.direction == "training":
            columns = tuple(name for name in columns if not name.startswith("folded"))
        self.folded = None
        if any(name.startswith("folded") for name in columns):
            self.folded = self._in(folded(self.uncompiled, self.corner), configuration.dtype)
        self.columns = {name: self._column(name) for name in columns}
        self.exact = exact or self._call(self._copy(torch.float64), torch.float64)()

    def _in(self, module_or_tensor, dtype: torch.dtype):
        last = self.configuration.layout == "channels_last"
        memory_format = torch.channels_last if last else torch.contiguous_format
        return module_or_tensor.to(device=self.configuration.device, dtype=dtype, memory_format=memory_format)

    def _copy(self, dtype: torch.dtype) -> nn.Module:
        model = self._in(copy.deepcopy(self.model), dtype)
        return model.train(self.configuration.direction == "training")

    def _call(self, model: nn.Module, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        images = self._in(self.images, dtype)
        if self.configuration.direction == "forward":

            def forward() -> list[Tensor]:
                with torch.no_grad():
                    return [model(images)]

            return forward

        parameters = list(model.parameters())

        def training() -> list[Tensor]:
            output = model(images)
            # A loss with a gradient of its own for every logit, so that no layer's gradient cancels.
            loss = (output.float() * torch.linspace(-1, 1, output.shape[1], device=output.device)).pow(2).mean()
            return [output.detach(), *torch.autograd.grad(loss, parameters)]

        return training

    def _column(self, name: str) -> Callable[[], list[Tensor]]:
        if not name.startswith("compile"):
            call = self._call(self._model_of(name), self.configuration.dtype)
            with self._turn(name):
                self.results[name] = call()
            return call
        model = self._copy(self.configuration.dtype)
        if name == "compile_patched":
            self._patch(model)
        call = self._call(torch.compile(model), self.configuration.dtype)
        start = time.perf_counter()
        self.results[name] = call()
        self.seconds_to_compile[name] = time.perf_counter() - start
        return call

    def _model_of(self, name: str) -> nn.Module:
        """The model of a column that is not compiled."""
        return self.folded if name.startswith("folded") else self.uncompiled

    def _patch(self, model: nn.Module) -> None:
        self.replaced = len(attnkernels.patch(model).replaced)
        if not self.replaced:
            raise RuntimeError(f"{self.configuration}: patch found nothing to replace")

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """While a column runs, the model is what the column says."""
        if name.startswith("compile"):
            yield
            return
        model = self._model_of(name)
        if name.endswith("patched"):
            self._patch(model)
        try:
            if self.configuration.direction == "forward":
                with torch.no_grad():  # in its first call a patched model looks at its modules
                    model(self.corner)
            yield
        finally:
            if name.endswith("patched"):
                attnkernels.unpatch(model)

    def _sampler(self, name: str, timer: CpuTimer | GpuTimer) -> Sampler:
        with self._turn(name):
            sampler = timer.sampler(self.columns[name], timer.modes[0])

        def sample() -> float:
            with self._turn(name):
                return sampler()

        return sample

    def differences(self) -> dict[str, Any]:
        """Each column's largest relative difference to eager, and to float64 (eager's is the dtype's noise)."""
        results, exact = self.results, self.exact
        if not all(value.std() > 0 for value in exact[:1]):
            raise RuntimeError(f"{self.configuration}: the output is constant, which proves nothing")
        from_exact = {name: relative_difference(result, exact) for name, result in results.items()}
        from_eager = {n: relative_difference(r, results["eager"]) for n, r in results.items() if n != "eager"}
        allowed = TIMES_NOISE * from_exact["eager"] + ROUNDING[self.configuration.dtype]
        red = {name: value for name, value in from_exact.items() if not value <= allowed}
        return {"from_eager": from_eager, "from_float64": from_exact} | ({"red": red} if red else {})

    def row(self, timer: CpuTimer | GpuTimer, rounds: int, budget: float = 0.0) -> dict[str, Any]:
        """Everything about this configuration; no times where a result is wrong.

        `rounds` at least; more of them while `budget` seconds last.
        """
        configuration, device = self.configuration, self.configuration.device
        head = {
            "model": configuration.name, "batch": configuration.batch, "layout": configuration.layout,
            "dtype": str(configuration.dtype).removeprefix("torch."), "direction": configuration.direction,
            "replaced": self.replaced, "compile_seconds": self.seconds_to_compile,
        } | self.differences()  # fmt: skip
        if "red" in head:
            return head
        self.results.clear()
        memory = {}
        for name, call in self.columns.items():
            with self._turn(name):
                memory[name] = held_and_peak(call, device)[1]
        samplers = {name: self._sampler(name, timer) for name in self.columns}
        start = time.perf_counter()
        times = interleave(samplers, 1)
        rounds = enough_rounds(time.perf_counter() - start, budget, rounds)
        for name, more in interleave(samplers, rounds - 1).items():
            times[name] += more
        pairs = [("eager", "patched"), ("folded", "folded_patched"), ("eager", "folded")]
        pairs += [("compile", "compile_patched"), ("eager", "compile")]
        return head | {
            "rounds": rounds,
            "median": {name: statistics.median(values) for name, values in times.items()},
            "ratios": {f"{a} / {b}": ratio(times[a], times[b]) for a, b in pairs if a in times and b in times},
            "peak_bytes": memory,
        }


def run(arguments) -> int:
    """`python -m benchmarks models`; 0 unless some result was wrong or some configuration failed."""
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    timer = make_timer(device)
    document: dict[str, Any] = {
        "kind": "models",
        "environment": environment(arguments.device),
        "rows": [],
        "failed": [],
    }
    for name in arguments.model or MODELS:
        model = calibrate(load_model(name), photograph.batch(8))
        for batch, layout, dtype, direction in itertools.product(
            arguments.batch, arguments.layout or LAYOUTS, arguments.dtype, arguments.direction or DIRECTIONS
        ):
            configuration = Configuration(name, batch, layout, DTYPES[dtype], direction, device)
            torch.compiler.reset()
            try:
                measurement = Measurement(configuration, model, arguments.columns or COLUMNS)
                document["rows"].append(measurement.row(timer, arguments.rounds, arguments.seconds))
            except Exception as error:  # one configuration that fails must not lose the others' figures
                document["failed"].append(f"{configuration}: {error!r}")
                report.note(f"FAILED {document['failed'][-1]}")
            else:
                report.note(str(configuration))
            report.save(document, arguments.json)
    report.print_models(document)
    return 1 if document["failed"] or any("red" in row for row in document["rows"]) else 0
