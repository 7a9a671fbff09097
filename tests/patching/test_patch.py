"""patch and unpatch themselves: what is chosen, what is reported, what is undone, what happens when it fails."""

from __future__ import annotations

import copy
import dataclasses
import types

import pytest
import timm
import torch
from timm.layers.squeeze_excite import SEModule
from timm.models.resnet import BasicBlock
from torch import nn

import attnkernels
from attnkernels import backends
from attnkernels.patching import Replaced, Report, Skipped, _patch
from attnkernels.patching._dispatch import FLAG, is_flagged


def _classes(model):
    return {name: type(module) for name, module in model.named_modules()}


def _state(model):
    """All that instances hold: attribute names, and the identity of everything in them."""
    return {
        name: {
            key: [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else value
            for key, value in module.__dict__.items()
        }
        for name, module in model.named_modules()
    }


def _state_without_flags(model):
    return {name: {k: v for k, v in values.items() if k != FLAG} for name, values in _state(model).items()}


def test_report_is_data(model):
    with attnkernels.use_backend("auto"):  # whatever ATTNKERNELS_BACKEND says
        report = attnkernels.patch(model)
    assert isinstance(report, Report)
    by_name = {record.name: record for record in report.replaced}
    backend = backends.best_backend(torch.device("cpu"))
    assert by_name["layer1.0.se"] == Replaced(
        "layer1.0.se", "timm.layers.squeeze_excite.SEModule", "squeeze_excite", backend, "the module"
    )
    assert by_name["layer1.0"].original == "timm.models.resnet.BasicBlock"
    assert by_name["layer1.0"].fuses.startswith("se, residual sum, act2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.replaced = ()


def test_nothing_to_replace():
    report = attnkernels.patch(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    assert report.replaced == report.skipped == ()
    assert str(report).startswith("nothing to replace")
    assert "timm.layers.squeeze_excite.SEModule" in report.recognised
    assert "timm: CbamModule, CecaModule, ChannelAttn, EcaModule, EffectiveSEModule, SEModule" in str(report)
    # blocks without attention are no attention modules
    assert attnkernels.patch(timm.create_model("resnet18", channels=(8, 8, 8, 8))).skipped == ()


def test_dry_run_changes_nothing(model, own_forwards):
    before, forward = _state(model), SEModule.forward
    report = attnkernels.patch(model, dry_run=True)
    assert _state(model) == before
    assert SEModule.forward is forward
    assert str(report).startswith("5 attention modules would be replaced, and 5 blocks around them; 0 left alone\n")
    assert report.replaced == attnkernels.patch(model).replaced


def test_the_model_itself(x, calls):
    module = SEModule(32).double()
    feature = torch.randn(2, 32, 5, 5, dtype=torch.float64)
    expected = module(feature)
    report = attnkernels.patch(module)
    assert [record.name for record in report.replaced] == [""]
    assert "(the model)" in str(report)
    torch.testing.assert_close(module(feature), expected)
    assert len(calls) == 1
    assert type(attnkernels.unpatch(module)) is SEModule


def test_instances_keep_their_type_and_state(model):
    classes, state, text = _classes(model), _state(model), repr(model)
    report = attnkernels.patch(model)
    assert _classes(model) == classes
    assert type(model.layer1[0].se) is SEModule
    flags = {name: values.pop(FLAG, None) for name, values in _state(model).items()}
    assert {name for name, flag in flags.items() if flag} == {record.name for record in report.replaced}
    assert set(flags.values()) == {"auto", None}
    assert _state_without_flags(model) == state
    assert repr(model) == text


def test_unpatch_restores_exactly(model, x, own_forwards):
    classes, state, expected = _classes(model), _state(model), model(x)
    forwards = {cls: cls.__dict__.get("forward") for cls in classes.values()}
    attnkernels.patch(model)
    with torch.no_grad():
        model(x)
    assert attnkernels.unpatch(model) is model
    assert {cls: cls.__dict__.get("forward") for cls in classes.values()} == forwards
    assert _classes(model) == classes
    assert _state(model) == state
    assert torch.equal(model(x), expected)
    assert attnkernels.unpatch(model) is model
    assert _classes(model) == classes


def test_patch_is_idempotent(model, x):
    first = attnkernels.patch(model)
    with torch.no_grad():
        model(x)
    state, forward = _state(model), SEModule.forward
    assert attnkernels.patch(model).replaced == first.replaced
    assert _state(model) == state
    assert SEModule.forward is forward
    attnkernels.patch(model, backend="reference")
    assert attnkernels.patch(model, backend="reference", dry_run=True).replaced[0].backend == "reference"
    before = _classes(attnkernels.unpatch(model))
    assert before["layer1.0.se"] is SEModule


def test_patch_again_changes_the_backend(model, x, calls):
    attnkernels.patch(model)
    attnkernels.patch(model, backend="reference", include=SEModule)
    model.layer1[0].se(torch.randn(1, 8, 3, 3, dtype=torch.float64))
    assert calls[-1]["backend"] == "reference"
    model(x)
    assert calls[-1]["backend"] == "auto"
    report = attnkernels.patch(model, exclude="layer1.0*")
    assert {s.name: s.reason for s in report.skipped}["layer1.0.se"].endswith("(it stays as an earlier patch left it)")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": "layer1.0.se"}, {"layer1.0.se"}),
        ({"include": "layer1.*"}, {"layer1.0", "layer1.0.se"}),
        ({"include": ["layer1.0.se", "layer3.*"]}, {"layer1.0.se", "layer3.0", "layer3.0.se"}),
        ({"include": SEModule, "exclude": "layer[234].*"}, {"layer1.0.se"}),
        ({"include": "layer1.*", "exclude": SEModule}, set()),
        ({"include": [], "exclude": None}, set()),
        ({"include": nn.Conv2d}, set()),
        ({"include": "layer2.*", "exclude": ("layer2.1", "layer2.0.se")}, {"layer2.1.se"}),
    ],
)
def test_include_and_exclude(model, options, names):
    report = attnkernels.patch(model, **options)
    assert {record.name for record in report.replaced} == names
    assert {name for name, module in model.named_modules() if is_flagged(module)} == names


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "layer9.*"}, ValueError, "include: expected a pattern that matches some module, got 'layer9.*'"),
        ({"exclude": ["layer1.*", "typo"]}, ValueError, "exclude: .* got 'typo'"),
        ({"include": 3}, TypeError, "include: expected names or module classes, got 3"),
        ({"exclude": [nn.ReLU()]}, TypeError, "exclude: expected names or module classes"),
        ({"include": int}, TypeError, "include: .*int"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of 'auto', 'cpu', .* got 'gpu'"),
        ({"backend": "cuda"}, ValueError, "one that can run layer1.0, got 'cuda': it takes CUDA tensors"),
        ({"backend": "triton"}, ValueError, "one that can run layer1.0, got 'triton': it takes CUDA tensors"),
        ({"backend": ["cpu"]}, TypeError, "backend: expected one of 'auto', 'cpu', .* got .'cpu'."),
        (
            {"include": nn.Sequential(nn.ReLU())},
            TypeError,
            "include: .* got module Sequential: give its name or its class",
        ),
    ],
)
def test_bad_arguments_change_nothing(model, options, error, message, own_forwards):
    before, forward = _state(model), SEModule.forward
    with pytest.raises(error, match=message):
        attnkernels.patch(model, **options)
    assert _state(model) == before
    assert SEModule.forward is forward


@pytest.mark.parametrize("function", [attnkernels.patch, attnkernels.unpatch])
def test_not_a_module(function):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        function({})


class _Stubborn(type):
    """Of classes whose forward cannot be replaced."""

    def __setattr__(cls, name, value):
        if name == "forward" and not cls.yields:
            raise TypeError("no")
        super().__setattr__(name, value)


def _stubborn_excitation(yields):
    """An excitation of a class under SEModule's name, and with its forward."""
    namespace = {"yields": yields, "__module__": SEModule.__module__, "__qualname__": "SEModule"}
    module = SEModule(24).double()
    module.__class__ = _Stubborn("SEModule", (SEModule,), {**namespace, "forward": _copied_forward_of(SEModule)})
    return module


def _copied_forward_of(cls):
    forward = cls.__dict__["forward"]
    return types.FunctionType(forward.__code__, forward.__globals__, "forward")


def test_a_failure_midway_changes_nothing(model, own_forwards):
    model.layer3[0].se = _stubborn_excitation(yields=False)
    before, forwards = _state(model), (SEModule.forward, BasicBlock.forward)
    with pytest.raises(TypeError, match="no"):
        attnkernels.patch(model)
    assert _state(model) == before
    assert (SEModule.forward, BasicBlock.forward) == forwards


def test_a_class_that_refuses_its_own_forward_keeps_a_dispatcher_that_serves_nobody(model, x, calls, own_forwards):
    model.layer3[0].se = _stubborn_excitation(yields=True)
    before, expected = _state(model), model(x)
    assert len(attnkernels.patch(model).replaced) == 10
    model(x)
    assert len(calls) == 5
    stubborn = type(model.layer3[0].se)
    stubborn.yields = False
    attnkernels.unpatch(model)
    assert _state(model) == before
    assert torch.equal(model(x), expected)
    assert len(calls) == 5
    assert not hasattr(SEModule.forward, "__wrapped__")
    stubborn.yields = True
    attnkernels.patch(model)
    attnkernels.unpatch(model)
    assert not hasattr(stubborn.forward, "__wrapped__")


def test_a_failing_adapter_changes_nothing(model, monkeypatch):
    before, seen = _state(model), []
    find = _patch.find_adapter

    def fails_later(cls, adapters):
        seen.append(cls)
        if len(seen) == 20:
            raise RuntimeError("no")
        return find(cls, adapters)

    monkeypatch.setattr(_patch, "find_adapter", fails_later)
    with pytest.raises(RuntimeError, match="no"):
        attnkernels.patch(model)
    assert _state(model) == before


def test_forced_backend_runs_and_is_reported(model, x, calls):
    report = attnkernels.patch(model, backend="reference")
    assert {record.backend for record in report.replaced} == {"reference"}
    model(x)
    assert {call["backend"] for call in calls} == {"reference"}


def test_use_backend_counts(model):
    with attnkernels.use_backend("reference"):
        assert {record.backend for record in attnkernels.patch(model, dry_run=True).replaced} == {"reference"}


def test_a_module_under_two_names(x):
    shared = SEModule(16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [record.name for record in attnkernels.patch(model).replaced] == ["0"]
    copied = copy.deepcopy(model)
    assert copied[0] is copied[2]


def test_reasons_are_records(model):
    report = attnkernels.patch(model, include="layer1.0.se")
    assert Skipped("layer2.0.se", "timm.layers.squeeze_excite.SEModule", "not among those to include") in report.skipped
