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
from attnkernels.patching._dispatch import is_flagged

PATCHED = 10  # five blocks and their excitations
FUSED = 5  # the calls of the op they make together


@pytest.fixture
def patched(model):
    attnkernels.patch(model)
    return model


def _patched(model: nn.Module) -> int:
    return sum(map(is_flagged, model.modules()))


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
    assert _patched(other) == PATCHED
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(patched(x), expected)
    attnkernels.unpatch(other)
    assert (_patched(other), _patched(patched)) == (0, PATCHED)


def test_copies_of_an_excitation_alone(patched):
    other = pickle.loads(pickle.dumps(patched.layer1[0].se))
    assert type(other) is SEModule
    assert is_flagged(other)


def test_runs_the_original_in_another_process_until_patched_there(patched, x, tmp_path):
    torch.save((patched, x, patched(x)), tmp_path / "model.pt")
    program = (
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "model, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert 'attnkernels' not in sys.modules\n"
        "torch.testing.assert_close(model(x), expected)\n"
        "import attnkernels\n"
        "from attnkernels.ops._op import FusedOp\n"
        "op, calls = FusedOp.__call__, []\n"
        "FusedOp.__call__ = lambda *args: calls.append(1) or op(*args)\n"
        "model(x)\n"
        "assert not calls\n"
        "before = [dict(module.__dict__) for module in model.modules()]\n"
        "report = attnkernels.patch(model)\n"
        "assert before == [dict(module.__dict__) for module in model.modules()]\n"
        "torch.testing.assert_close(model(x), expected)\n"
        "print(len(report.replaced), len(calls))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(PATCHED), str(FUSED)]


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
def test_captured_graphs_are_the_original_ones(model, x, calls, capture):
    expected, operations = capture(model, x)
    attnkernels.patch(model)
    y, patched_operations = capture(model, x)
    assert patched_operations == operations
    assert torch.equal(y, expected)
    assert not calls
    assert _patched(model) == PATCHED


def test_feature_extractor(model, x):
    nodes = ["layer1.0.se", "layer2.1", "layer4"]
    expected = create_feature_extractor(model, nodes)(x)
    attnkernels.patch(model)
    got = create_feature_extractor(model, nodes)(x)
    assert all(torch.equal(got[node], expected[node]) for node in nodes)


def test_jit_script(patched, x, calls):
    expected = patched(x)
    calls.clear()
    torch.testing.assert_close(torch.jit.script(patched)(x), expected)
    se, feature = patched.layer1[0].se, torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(se)(feature), attnkernels.unpatch(copy.deepcopy(se))(feature))
    assert not calls
    assert _patched(patched) == PATCHED
    assert torch.equal(patched(x), expected)
    assert len(calls) == FUSED


def test_patching_a_compiled_model(model, x, calls):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(x)
    attnkernels.patch(compiled)
    assert _patched(compiled) == PATCHED
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
    assert _patched(model) == 0
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
    assert is_flagged(se)
    attnkernels.unpatch(patched)
    assert not is_flagged(se)
    assert type(se).__bases__ == (SEModule,)
    assert se.extra.item() == 2


def test_half_and_dtype_moves(patched, x, calls):
    patched.to(torch.bfloat16)
    assert patched(x.bfloat16()).dtype is torch.bfloat16
    assert len(calls) == FUSED
