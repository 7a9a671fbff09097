"""Patched modules keep their class: for tools that ask `type(module) is X`, for files, for other libraries' wrappers."""

from __future__ import annotations

import importlib
import inspect
import io
import pickle
import pickletools
import subprocess
import sys

import pytest
import torch
import torchvision
from patching.conftest import MODELS
from timm.layers.squeeze_excite import SEModule
from timm.models.resnet import BasicBlock
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

import attnkernels
from attnkernels.patching import _dispatch

FUSED = 5  # calls of the op that the model makes


@pytest.mark.parametrize("name", MODELS)
def test_every_module_keeps_its_class(name, x):
    model = MODELS[name][0]().eval()
    classes, keys, text = [type(module) for module in model.modules()], list(model.state_dict()), repr(model)
    attnkernels.patch(model)
    with torch.no_grad():
        model(x)
    model(x).sum().backward()
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert repr(model) == text


def test_sequences_are_counted_as_before():
    model = torchvision.models.mobilenet_v3_small()
    before = sum(type(module) is nn.Sequential for module in model.modules())
    attnkernels.patch(model)
    assert sum(type(module) is nn.Sequential for module in model.modules()) == before > 9


def test_fx_quantisation_keeps_modules_by_type(model, x):
    attnkernels.patch(model)
    config = PrepareCustomConfig().set_non_traceable_module_classes([SEModule])
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,), prepare_custom_config=config)
    assert sum(isinstance(module, SEModule) for module in prepared.modules()) == FUSED


def test_eager_quantisation_finds_modules_by_type(model):
    class Quantised(nn.Module):
        @classmethod
        def from_float(cls, module, **_):
            return cls()

    attnkernels.patch(model)
    model = quantize_dynamic(model, {SEModule: default_dynamic_qconfig}, mapping={SEModule: Quantised})
    assert sum(type(module) is Quantised for module in model.modules()) == FUSED


def test_wrapping_by_type(model, x, calls):
    expected = model(x)
    attnkernels.patch(model)
    apply_activation_checkpointing(model, checkpoint_wrapper, check_fn=lambda module: type(module) is BasicBlock)
    assert sum(isinstance(module, CheckpointWrapper) for module in model.modules()) == FUSED
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == FUSED


def _globals(pickled: bytes) -> set[str]:
    """The modules whose names a pickle refers to."""
    strings, found = [], set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(argument.split()[0])
        elif opcode.name == "STACK_GLOBAL":
            found.add(strings[-2])
        elif isinstance(argument, str):
            strings.append(argument)
    return found


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("unpatched", [False, True])
def test_pickles_do_not_name_the_library(model, x, unpatched, protocol):
    attnkernels.patch(model)
    with torch.no_grad():
        model(x)
    if unpatched:
        attnkernels.unpatch(model)
    pickled = pickle.dumps(model, protocol=protocol)
    named = _globals(pickled)
    assert "timm.layers.squeeze_excite" in named
    assert not any(name.startswith("attnkernels") for name in named)
    assert (b"attnkernels" in pickled) is not unpatched  # the flag


def test_saved_models_load_with_weights_only(model, x):
    attnkernels.patch(model)
    with torch.no_grad():
        expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    classes = [getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    assert SEModule in classes
    buffer.seek(0)
    with torch.serialization.safe_globals(classes):
        loaded = torch.load(buffer, weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected)


def test_saved_models_load_where_the_library_is_not_installed(model, x, tmp_path):
    attnkernels.patch(model)
    with torch.no_grad():
        expected = model(x)
    torch.save((model, x, expected), tmp_path / "model.pt")
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'attnkernels':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "model, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad():\n"
        "    torch.testing.assert_close(model(x), expected)\n"
        "torch.save(model, sys.argv[1])\n"
    )
    path = str(tmp_path / "model.pt")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    attnkernels.patch(loaded := torch.load(path, weights_only=False))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected)


def test_other_instances_run_the_original(se, feature, calls):
    attnkernels.patch(se)
    other = SEModule(8, rd_channels=4)
    other.load_state_dict(se.state_dict())
    torch.testing.assert_close(other(feature), se(feature))
    assert len(calls) == 1


def test_the_class_shows_its_own_source_and_signature(se, own_forwards):
    source, signature = inspect.getsource(SEModule.forward), inspect.signature(SEModule.forward)
    names = SEModule.forward.__qualname__, SEModule.forward.__module__, SEModule.forward.__annotations__
    attnkernels.patch(se)
    forward = SEModule.forward
    assert inspect.getsource(forward) == source
    assert inspect.signature(forward) == signature
    assert (forward.__qualname__, forward.__module__, forward.__annotations__) == names
    with pytest.raises(TypeError, match="forward"):
        se()
    assert torch.equal(se(x=torch.ones(1, 8, 1, 1)), se(torch.ones(1, 8, 1, 1)))


def test_a_forward_put_on_the_class_later_wins(se, feature, monkeypatch):
    attnkernels.patch(se)
    with torch.no_grad():
        se(feature)
    monkeypatch.setattr(SEModule, "forward", lambda self, x: 0 * x)
    assert not se(feature).any()
    with torch.no_grad():
        assert not se(feature).any()


def test_a_forward_put_on_the_instance_wins(se, feature):
    attnkernels.patch(se)
    with torch.no_grad():
        se(feature)
        se.forward = lambda x: 0 * x
        assert not se(feature).any()


def test_a_subclass_that_calls_super(se, feature, calls):
    class Doubled(SEModule):
        def forward(self, x):
            return 2 * super().forward(x)

    attnkernels.patch(se)
    doubled = Doubled(8, rd_channels=4)
    doubled.load_state_dict(se.state_dict())
    torch.testing.assert_close(doubled(feature), 2 * attnkernels.unpatch(se)(feature))
    assert not calls
    attnkernels.patch(se)
    doubled.__dict__[_dispatch.FLAG] = "auto"
    torch.testing.assert_close(doubled(feature), 2 * se(feature))
    assert len(calls) == 2


@pytest.mark.parametrize("parametrize", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm])
def test_weight_norm_inside(model, x, calls, parametrize):
    expected = model(x)
    attnkernels.patch(model)
    parametrize(model.layer1[0].se.fc1)
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == FUSED - 1


def test_scripting_finds_the_names_of_the_forwards_module(tmp_path, monkeypatch):
    (tmp_path / "a_users_module.py").write_text(
        "import torch.nn as nn\nimport torch.nn.functional as F\n\n\n"
        "class Gate(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Conv2d(4, 4, 1)\n\n"
        "    def forward(self, x):\n        return x * F.hardsigmoid(self.a(x.mean((2, 3), keepdim=True)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    gate = importlib.import_module("a_users_module").Gate()
    x = torch.ones(1, 4, 2, 2)
    expected = gate(x)
    _dispatch.serve([(gate, lambda self, original, x: 0 * original(self, x), "auto")])
    assert not gate(x).any()
    assert torch.equal(torch.jit.script(nn.Sequential(gate))(x), expected)
    assert not gate(x).any()


def test_scripting_leaves_the_eager_model_patched(model, x, calls):
    attnkernels.patch(model)
    expected = model(x)
    modules = list(model.modules())
    calls.clear()
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    assert not calls
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert torch.equal(model(x), expected)
    assert len(calls) == FUSED
