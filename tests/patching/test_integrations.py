"""Patched models in the hands of copies, pickles, wrappers, tracers and compilers."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers.squeeze_excite import SEModule
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

import attnkernels
from attnkernels.patching._swap import Swapped

SWAPPED = 10  # five blocks and their excitations
FUSED = 5  # the calls of the op they make together


@pytest.fixture
def patched(model):
    attnkernels.patch(model)
    return model


def _swapped(model: nn.Module) -> int:
    return sum(isinstance(module, Swapped) for module in model.modules())


def _saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        _saved_and_loaded,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.optim.swa_utils.AveragedModel(model),
        lambda model: timm.utils.ModelEmaV3(model),
    ],
    ids=["deepcopy", "torch.save", "pickle", "AveragedModel", "ModelEmaV3"],
)
def test_copies_are_patched_and_independent(patched, x, calls, duplicate):
    expected = patched(x)
    calls.clear()
    other = duplicate(patched)
    assert torch.equal(other(x), expected)
    assert len(calls) == FUSED
    assert _swapped(other) == SWAPPED
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(patched(x), expected)
    attnkernels.unpatch(other)
    assert (_swapped(other), _swapped(patched)) == (0, SWAPPED)


def test_copies_of_an_excitation_alone(patched):
    other = pickle.loads(pickle.dumps(patched.layer1[0].se))
    assert isinstance(other, SEModule)
    assert type(other) is type(patched.layer1[0].se)


def test_loads_in_another_process(patched, x, tmp_path):
    torch.save((patched, x, patched(x)), tmp_path / "model.pt")
    program = (
        "import sys, torch\n"
        "model, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.set_num_threads(1)\n"
        "torch.testing.assert_close(model(x), expected)\n"
        "print(sum(hasattr(type(module), '_attnkernels') for module in model.modules()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(SWAPPED)


def _replicate(module: nn.Module) -> nn.Module:
    """One replica as DataParallel makes it: parameters become plain attributes."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        if child is not None:
            replica._modules[name] = _replicate(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter * 1)
    return replica


def test_data_parallel_replicas(patched, x, calls):
    expected = patched(x)
    replica = _replicate(patched)
    calls.clear()
    assert torch.equal(replica(x), expected)
    assert len(calls) == FUSED
    replica(x).sum().backward()
    assert all(parameter.grad is not None for parameter in patched.parameters())


def _operations(graph: torch.fx.Graph) -> list[str]:
    return [f"{node.op} {node.target}" for node in graph.nodes if node.op.startswith("call")]


def _compiled(model, x):
    graphs = []

    def backend(graph_module, _):
        graphs.append(graph_module.graph)
        return graph_module.forward

    torch._dynamo.reset()
    y = torch.compile(model, backend=backend, fullgraph=True)(x)
    assert len(graphs) == 1
    return y, _operations(graphs[0])


def _exported(model, x, strict):
    program = torch.export.export(model, (x,), strict=strict)
    return program.module()(x), _operations(program.graph)


def _symbolically_traced(model, x):
    traced = torch.fx.symbolic_trace(model)
    return traced(x), _operations(traced.graph)


def _jit_traced(model, x):
    traced = torch.jit.trace(model, x, check_trace=False)  # the check would run the model untraced
    return traced(x), [node.kind() for node in traced.inlined_graph.nodes()]


@pytest.mark.parametrize(
    "capture",
    [
        _compiled,
        lambda model, x: _exported(model, x, strict=True),
        lambda model, x: _exported(model, x, strict=False),
        _symbolically_traced,
        _jit_traced,
    ],
    ids=["compile", "export strict", "export", "fx", "jit.trace"],
)
def test_captured_graphs_are_the_stock_ones(model, x, calls, capture):
    expected, operations = capture(model, x)
    attnkernels.patch(model)
    y, patched_operations = capture(model, x)
    assert patched_operations == operations
    assert torch.equal(y, expected)
    assert not calls
    assert _swapped(model) == SWAPPED


def test_feature_extractor(model, x):
    nodes = ["layer1.0.se", "layer2.1", "layer4"]
    expected = create_feature_extractor(model, nodes)(x)
    attnkernels.patch(model)
    got = create_feature_extractor(model, nodes)(x)
    assert all(torch.equal(got[node], expected[node]) for node in nodes)


def test_jit_script(patched, x):
    expected = patched(x)
    torch.testing.assert_close(torch.jit.script(patched)(x), expected)
    attnkernels.patch(patched)  # torch.jit.script leaves the stock modules in the model
    assert _swapped(patched) == SWAPPED


def test_patching_a_compiled_model(model, x, calls):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(x)
    attnkernels.patch(compiled)
    assert _swapped(compiled) == SWAPPED
    assert torch.equal(compiled(x), expected)
    assert not calls


def test_function_transforms_and_forward_mode(patched, x, calls):
    parameters = {name: torch.stack([p, 2 * p]) for name, p in patched.named_parameters()}
    buffers = {name: torch.stack([b, b]) for name, b in patched.named_buffers()}

    def run(parameters, buffers):
        return torch.func.functional_call(patched, (parameters, buffers), (x,))

    ensemble = torch.func.vmap(run)(parameters, buffers)
    _, tangent = torch.func.jvp(patched, (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        dual = patched(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    assert not calls
    torch.testing.assert_close(ensemble[0], patched(x))
    functional = torch.func.functional_call(patched, {"layer1.0.se.fc1.bias": torch.full((8,), 3.0).double()}, (x,))
    assert len(calls) == 2 * FUSED
    assert not torch.allclose(functional, patched(x)), "the op reads the weights that the call was given"


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(patched, x, calls):
    expected = patched(x)
    wrapped = nn.parallel.DistributedDataParallel(patched)
    calls.clear()
    y = wrapped(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert len(calls) == FUSED
    assert all(parameter.grad is not None for parameter in patched.parameters())


def _shard(model: nn.Module, what: str) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    parts = {"stages": [model.layer1, model.layer2], "blocks": list(model.layer1), "se": [model.layer1[0].se]}[what]
    for part in parts:
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("order", ["patch first", "shard first"])
@pytest.mark.parametrize("what", ["stages", "blocks", "se"])
def test_fully_sharded(model, x, calls, what, order):
    expected = model(x)
    if order == "patch first":
        attnkernels.patch(model)
    _shard(model, what)
    if order == "shard first":
        attnkernels.patch(model)
    y = model(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert len(calls) == FUSED
    # FSDP's hooks on an excitation have to run: its block leaves it to itself
    assert sum(call.get("residual") is not None for call in calls) == FUSED - (what == "se")
    attnkernels.unpatch(model)
    assert _swapped(model) == 0
    block = model.layer1[0]
    names = (type(block).__name__, type(block.se).__name__)
    assert (
        names
        == {
            "stages": ("BasicBlock", "SEModule"),
            "blocks": ("FSDPBasicBlock", "SEModule"),
            "se": ("BasicBlock", "FSDPSEModule"),
        }[what]
    )
    assert isinstance(block, FSDPModule) == (what == "blocks")
    assert isinstance(block.se, FSDPModule) == (what == "se")
    calls.clear()
    torch.testing.assert_close(model(x), expected)
    assert not calls


def test_parametrized_and_pruned_children(patched, x, calls):
    se = patched.layer1[0].se
    feature = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    prune.l1_unstructured(se.fc1, "weight", amount=0.5)
    torch.nn.utils.parametrizations.spectral_norm(se.fc2)
    got = se.eval()(feature)
    assert not calls
    torch.testing.assert_close(got, attnkernels.unpatch(se)(feature))


def test_parametrized_module_itself(patched):
    class Doubled(nn.Module):
        def forward(self, value):
            return 2 * value

    se = patched.layer1[0].se
    se.register_parameter("extra", nn.Parameter(torch.ones(1)))
    torch.nn.utils.parametrize.register_parametrization(se, "extra", Doubled())
    assert isinstance(se, Swapped)
    attnkernels.unpatch(patched)
    assert not isinstance(se, Swapped)
    assert isinstance(se, SEModule)
    assert se.extra.item() == 2


def test_half_and_dtype_moves(patched, x, calls):
    patched.to(torch.bfloat16)
    assert patched(x.bfloat16()).dtype is torch.bfloat16
    assert len(calls) == FUSED
