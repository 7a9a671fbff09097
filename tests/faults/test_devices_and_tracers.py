"""The meta device, scripts, symbolic traces, export and ONNX."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

import attnkernels
from attnkernels import layers, testing

ONE_PER_OP = [next(case for case in of_op if case.small) for of_op in testing.CASES.values()]


def made_layers():
    torch.manual_seed(0)
    made = {
        "SqueezeExcite": layers.SqueezeExcite(8),
        "SqueezeExcite(silu)": layers.SqueezeExcite(8, act="silu", gate="hard_sigmoid", bias=False),
        "CrissCrossAttention": layers.CrissCrossAttention(8, recurrence=2),
        "CrissCrossAttention(dim=3)": layers.CrissCrossAttention(8, dim=3),
        "SelectiveKernel": layers.SelectiveKernel(8),
        "SelectiveKernel(split_input)": layers.SelectiveKernel(8, split_input=True),
        "SKConv": layers.SKConv(8, groups=2),
    }
    for layer in made.values():
        if hasattr(layer, "gamma"):
            torch.nn.init.ones_(layer.gamma)
    return {name: layer.eval() for name, layer in made.items()}


def input_of(name):
    torch.manual_seed(1)
    return torch.randn(2, 8, 4, 5, 3) if "dim=3" in name else torch.randn(2, 8, 6, 5)


LAYERS = tuple(made_layers())


def original_networks():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    names = ("seresnet18", "efficientnet_b0", "skresnet18", "resnest14d", "mobilenetv3_small_100")
    return {name: timm.create_model(name, num_classes=3).eval() for name in names}


# The meta device


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_functions_on_meta(case, layout):
    args, kwargs = case.make(torch.float32, "cpu", layout)
    want = testing.run(case.op, args, kwargs, "auto")
    args, kwargs = testing.map_tensors((args, kwargs), lambda x: x.to("meta").requires_grad_())
    for autocast in (False, True):
        with torch.autocast("cpu", enabled=autocast):
            got = testing.run(case.op, args, kwargs, "auto")
            assert got.device.type == "meta"
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            assert attnkernels.backend_of(case.op, *args, **kwargs) == "reference"
    grads = torch.autograd.grad(got.sum(), list(testing.tensors_of((args, kwargs))))
    assert all(grad.is_meta for grad in grads)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_meta(name):
    layer, x = made_layers()[name], input_of(name)
    want = layer(x).shape
    layer = layer.to("meta")
    assert layer(x.to("meta")).shape == want
    with torch.no_grad():
        assert layer(x.to("meta")).shape == want


@pytest.mark.parametrize("name", ["seresnet18", "efficientnet_b0", "skresnet18", "resnest14d"])
def test_patched_networks_on_meta(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3).eval()
    assert attnkernels.patch(model).replaced
    for grad_mode in (torch.no_grad, torch.enable_grad):
        with grad_mode():
            y = model(torch.empty(2, 3, 64, 64, device="meta"))
            assert y.shape == (2, 3)
            assert y.is_meta
    with torch.no_grad():  # with weights, it is the model that was patched
        model.to_empty(device="cpu").apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(model(x), attnkernels.unpatch(copy.deepcopy(model))(x), rtol=1e-4, atol=1e-4)
        model.to("meta")
    with torch.device("meta"):  # which is a TorchFunctionMode
        assert model(torch.empty(2, 3, 64, 64)).is_meta


# Tracers


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_scriptable(name, tmp_path):
    layer, x = made_layers()[name], input_of(name)
    want = layer(x)
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(x), want)
    inside = torch.jit.script(torch.nn.Sequential(layer))
    torch.testing.assert_close(inside(x), want)
    torch.jit.save(scripted, tmp_path / "scripted.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "scripted.pt")(x), want)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_traced_symbolically(name):
    layer, x = made_layers()[name], input_of(name)
    graph = torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(graph(x), layer(x))
    graph.recompile()
    torch.testing.assert_close(copy.deepcopy(graph)(x), layer(x))


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_functions_stay_one_node_of_a_symbolic_trace(case):
    args, kwargs = case.make()
    tensors = list(testing.tensors_of((args, kwargs)))
    if "attention" in kwargs:
        kwargs["attention"] = lambda pooled: torch.stack([pooled, -pooled], 1)

    class Module(torch.nn.Module):
        def forward(self, x):
            values = iter([x, *tensors[1:]])
            replaced, options = testing.map_tensors((args, kwargs), lambda _: next(values))
            return getattr(attnkernels, case.op)(*replaced, **options)

    graph = torch.fx.symbolic_trace(Module())
    ours = [n.target for n in graph.graph.nodes if getattr(n.target, "__module__", "").startswith("attnkernels")]
    halves = {"selective_kernel": ["pooled_sum", "select_branches"]}  # the network between them is traced
    assert ours == [getattr(attnkernels, name) for name in halves.get(case.op, [case.op])]
    torch.testing.assert_close(graph(tensors[0]), testing.run(case.op, args, kwargs, "auto"))


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_compile_with_one_tensor_given_more_than_once(case, backend):
    if backend not in ("auto", *attnkernels.available_backends()):
        pytest.skip(f"no {backend} here")
    torch._dynamo.reset()
    args, kwargs = case.make()
    first: dict = {}
    args, kwargs = testing.map_tensors((args, kwargs), lambda x: first.setdefault(x.shape, x.requires_grad_()))
    leaves = list(first.values())

    def call(args, kwargs):
        return testing.run(case.op, args, kwargs, backend)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = compiled(args, kwargs), call(args, kwargs)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


# Export


LOAD = """
import sys
sys.modules["attnkernels"] = None  # not installed here
import torch
program = torch.export.load(sys.argv[1])
x, y = torch.load(sys.argv[2])
torch.testing.assert_close(program.module()(x), y, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.parametrize(
    ("name", "strict"),
    [("CrissCrossAttention", False), ("CrissCrossAttention", True), ("SelectiveKernel", False), ("patched", False)],
)
def test_an_exported_program_loads_without_the_library(name, strict, tmp_path):
    if name == "patched":
        timm = pytest.importorskip("timm")
        module, x = timm.create_model("seresnet18", num_classes=3).eval(), torch.randn(1, 3, 64, 64)
        attnkernels.patch(module)
    else:
        module, x = made_layers()[name], input_of(name)
    exported = torch.export.export(module, (x,), strict=strict)
    assert not any(str(node.target).startswith("attnkernels") for node in exported.graph.nodes)
    torch.export.save(exported, tmp_path / "program.pt2")
    torch.save((x, module(x).detach()), tmp_path / "values.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "program.pt2"), str(tmp_path / "values.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_exported_program_keeps_the_operator_where_a_backend_is_asked_for():
    if "cpu" not in attnkernels.available_backends():
        pytest.skip("no CPU library")
    layer, x = made_layers()["CrissCrossAttention"], input_of("CrissCrossAttention")
    with attnkernels.use_backend("cpu"):
        exported = torch.export.export(layer, (x,))
    assert any(str(node.target).startswith("attnkernels") for node in exported.graph.nodes)


# ONNX


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize(
    "name", ["CrissCrossAttention", "CrissCrossAttention(dim=3)", "SqueezeExcite", "SelectiveKernel", "SKConv"]
)
def test_onnx_export(name, dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer, x = made_layers()[name], input_of(name)
    path = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer, (x,), path, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), layer(x), rtol=1e-4, atol=1e-5)
