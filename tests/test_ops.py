"""Every op, on every backend of this machine, against its reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attnkernels
from attnkernels import testing

BACKENDS = testing.fused_backends()
EVERY = [
    pytest.param(case, backend, device, id=f"{case}-{backend}")
    for case in testing.cases()
    for backend, device in BACKENDS
    if case.small or backend != "emulated"
]
SMALL = [p for p in EVERY if p.values[0].small]
HAS_SAMPLES = [p for p in SMALL if "no_samples" not in p.id]


def tensors(parameters):
    """How many a case's call is given."""
    return len(list(testing.tensors_of(parameters.values[0].make())))


def make(case, dtype, device, layout="contiguous", seed=0):
    return case.make(dtype, device, layout, seed)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("case", "backend", "device"), EVERY)
def test_forward_and_gradients(case, backend, device, dtype, layout):
    testing.check_against_float64(case, backend, device, dtype, layout)


@pytest.mark.parametrize(("case", "backend", "device"), EVERY)
def test_same_result_with_and_without_grad_and_every_time(case, backend, device):
    args, kwargs = make(case, torch.float32, device)
    first, grads, grad_output = testing.gradients(case.op, args, kwargs, backend)
    again, grads_again, _ = testing.gradients(case.op, args, kwargs, backend, grad_output)
    with torch.no_grad():
        assert torch.equal(first, testing.run(case.op, args, kwargs, backend))
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize(("case", "backend", "device"), SMALL)
def test_any_strides(case, backend, device):
    """Slices, transposes, storage offsets and gradients that are expanded or sliced."""
    args, kwargs = make(case, torch.float32, device)
    want, want_grads, _ = testing.gradients(case.op, args, kwargs, backend, torch.ones(()).to(device).expand(
        testing.run(case.op, args, kwargs, "reference").shape))  # fmt: skip

    def awkward(x):
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), float("nan"), dtype=x.dtype, device=x.device)
        wide[..., 1:-2] = x
        return wide[..., 1:-2] if x.shape[-1] else x

    odd_args, odd_kwargs = testing.map_tensors((args, kwargs), awkward)
    got, grads, _ = testing.gradients(case.op, odd_args, odd_kwargs, backend, torch.ones_like(want))
    torch.testing.assert_close(got, want)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(grad, want_grad)


@pytest.mark.parametrize(("case", "backend", "device"), HAS_SAMPLES)
def test_memory_format_is_kept(case, backend, device):
    for layout, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        args, kwargs = make(case, torch.float32, device, layout)
        output = testing.run(case.op, args, kwargs, backend)
        first = next(testing.tensors_of(args))
        if first.dim() == 4 and first.is_contiguous() and first.is_contiguous(memory_format=torch.channels_last):
            continue  # in both formats at once
        if output.dim() == 4 and first.is_contiguous(memory_format=memory_format):
            assert output.is_contiguous(memory_format=memory_format)


FEWER = [p for p in HAS_SAMPLES if p.values[1] != "emulated" and p.values[0].smooth]


@pytest.mark.parametrize(("case", "backend", "device"), FEWER)
def test_numerical_gradients(case, backend, device):
    args, kwargs = make(case, torch.float64, device)
    inputs = [x.requires_grad_() for x in testing.tensors_of((args, kwargs))]
    if sum(x.numel() for x in inputs) > 2000:  # numerical gradients cost two calls per element
        args, kwargs = testing.map_tensors((args, kwargs), lambda x: x.detach())
        inputs = [next(testing.tensors_of((args, kwargs))).requires_grad_()]

    def call(*_):
        return testing.run(case.op, args, kwargs, backend)

    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(call, inputs, **fast)
    assert torch.autograd.gradgradcheck(call, inputs, **fast)


RICHEST = [max((p for p in HAS_SAMPLES if p.values[0].op == op and p.values[1] == backend and tensors(p) <= 6),
               key=tensors) for op in testing.CASES for backend, _ in BACKENDS]  # fmt: skip


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize(("case", "backend", "device"), RICHEST)
def test_gradients_only_where_they_are_needed(case, backend, device, layout):
    testing.check_gradients_alone(case, backend, device, layout)


class _Record(TorchDispatchMode):
    """The calls of this library's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("attnkernels"):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize(("case", "backend", "device"), SMALL)
def test_operators_pass_opcheck(case, backend, device, layout):
    args, kwargs = make(case, torch.float32, device, layout)
    with _Record() as record:
        testing.gradients(case.op, args, kwargs, backend)
    assert record.calls
    for func, op_args, op_kwargs in record.calls:
        op_args, op_kwargs = testing.map_tensors((tuple(op_args), op_kwargs), lambda x: x.detach())
        torch.library.opcheck(func, op_args, op_kwargs)


ONE_PER_OP = [next(p for p in HAS_SAMPLES if p.values[0].op == op and p.values[1] == backend)
              for op in testing.CASES for backend, _ in BACKENDS]  # fmt: skip


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("case", "backend", "device"), ONE_PER_OP)
def test_compile_without_graph_breaks(case, backend, device, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda args, kwargs: torch.relu(testing.run(case.op, args, kwargs, backend)) * 2,
        fullgraph=True, dynamic=dynamic, backend="aot_eager",
    )  # fmt: skip
    for layout in testing.LAYOUTS:
        args, kwargs = make(case, torch.float32, device, layout)
        args, kwargs = testing.map_tensors((args, kwargs), lambda x: x.requires_grad_())
        inputs = list(testing.tensors_of((args, kwargs)))
        got = compiled(args, kwargs)
        want = torch.relu(testing.run(case.op, args, kwargs, backend)) * 2
        torch.testing.assert_close(got, want)
        got_grads = torch.autograd.grad(got.sum(), inputs)
        want_grads = torch.autograd.grad(want.sum(), inputs)
        for a, b in zip(got_grads, want_grads, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("case", "backend", "device"), ONE_PER_OP)
def test_export_keeps_the_operator(case, backend, device):
    args, kwargs = make(case, torch.float32, device)

    class Module(torch.nn.Module):
        def forward(self, *values):
            return testing.run(case.op, values, kwargs, backend)

    exported = torch.export.export(Module(), args)
    assert any("attnkernels" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*args), testing.run(case.op, args, kwargs, backend))


def test_every_room_has_its_fused_and_cases():
    from pathlib import Path

    package = Path(attnkernels.__file__).parent
    csrc = package.parent / "csrc"
    for op in sorted(p for p in (package / "ops").iterdir() if (p / "__init__.py").exists()):
        name = op.name
        for file in ("reference.py", "schema.py", "triton_impl.py"):
            assert (op / file).exists(), f"{name} lacks {file}"
        for pattern in (f"{name}*.cuh", f"{name}*.cu", f"{name}_cuda.cpp", f"{name}_cpu.cpp"):
            assert list((csrc / name).glob(pattern)), f"{name} lacks csrc/{name}/{pattern}"
        assert testing.COMPILED.get(name), f"{name} lacks calls whose Triton kernels have a budget"
        assert testing.TRAFFIC.get(name), f"{name} lacks calls whose traffic has a budget"
    assert set(testing.CASES) == set(attnkernels.backends.OPS) == set(attnkernels.ops.__all__)
