"""What each adapter accepts, and when a patched module steps back behind the original forward."""

from __future__ import annotations

import copy
import importlib
import re

import pytest
import timm
import torch
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule, SqueezeExciteCl
from timm.models import resnet
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torchvision.ops.misc import SqueezeExcitation

import attnkernels
from attnkernels.patching._adapter import find_adapter
from attnkernels.patching._registry import ADAPTERS

from .conftest import exact, tiny_seresnet

VARIANTS = {
    "timm": lambda: SEModule(16, rd_channels=4),
    "timm without biases": lambda: SEModule(16, rd_channels=4, bias=False),
    "timm silu": lambda: SEModule(16, rd_channels=4, act_layer=nn.SiLU),
    "timm named silu": lambda: SEModule(16, rd_channels=4, act_layer="swish", gate_layer="hard_sigmoid"),
    "timm hard sigmoid": lambda: SEModule(16, rd_channels=4, gate_layer=nn.Hardsigmoid),
    "timm effective": lambda: EffectiveSEModule(16),
    "timm effective sigmoid": lambda: EffectiveSEModule(16, gate_layer="sigmoid"),
    "timm efficientnet": lambda: SqueezeExcite(16, act_layer=nn.SiLU),
    "timm efficientnet rd 3": lambda: SqueezeExcite(16, rd_channels=3, gate_layer="hard_sigmoid"),
    "timm senet": lambda: timm.models.senet.SEModule(16, 4),
    "torchvision": lambda: SqueezeExcitation(16, 4),
    "torchvision v3": lambda: SqueezeExcitation(16, 4, nn.ReLU, nn.Hardsigmoid),
    "torchvision silu": lambda: SqueezeExcitation(16, 4, nn.SiLU),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, calls):
    torch.manual_seed(0)
    module = VARIANTS[name]().double()
    x = 4 * torch.randn(3, 16, 5, 7, dtype=torch.float64)
    expected, expected_grads = _with_gradients(exact(module), x)
    assert not attnkernels.patch(module).skipped
    got, grads = _with_gradients(module, x)
    assert len(calls) == 1
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-11)


def _with_gradients(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), [x, *module.parameters()])


@pytest.mark.parametrize("bias", [True, False])
def test_channels_last_linear(bias, calls):
    module = SqueezeExciteCl(16, rd_channels=4, bias=bias).double()
    x = torch.randn(3, 5, 7, 16, dtype=torch.float64)
    expected, expected_grads = _with_gradients(module, x)
    attnkernels.patch(module)
    got, grads = _with_gradients(module, x)
    assert len(calls) == 1
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(grads, expected_grads)


class _OwnForward(SEModule):
    def forward(self, x):
        return super().forward(x) + 1


class _OwnScale(SqueezeExcitation):
    def _scale(self, input):
        return super()._scale(input) + 1


class _Inherited(SEModule):
    def extra_repr(self):
        return "inherited"


UNCOVERED = {
    "norm": (lambda: SEModule(16, norm_layer=nn.BatchNorm2d), "normalisation .*BatchNorm2d"),
    "maxpool": (lambda: SEModule(16, add_maxpool=True), "add_maxpool"),
    "effective maxpool": (lambda: EffectiveSEModule(16, add_maxpool=True), "add_maxpool"),
    "activation": (lambda: SEModule(16, act_layer=nn.GELU), "its act is not ReLU or SiLU .*GELU"),
    "gate": (lambda: SEModule(16, gate_layer=nn.Tanh), "its gate is not a sigmoid or hard sigmoid .*Tanh"),
    "torchvision gate": (lambda: SqueezeExcitation(16, 4, scale_activation=nn.Softplus), "its scale_activation .*"),
    "subclass": (lambda: _OwnForward(16), "a subclass of timm.*SEModule with a forward of its own"),
    "helper": (lambda: _OwnScale(16, 4), "a subclass of torchvision.* with a _scale of its own"),
    "replaced layer": (lambda: _with(SEModule(16), fc1=nn.Sequential(nn.Conv2d(16, 4, 1))), "its fc1 .*Sequential"),
    "dilated pool": (lambda: _with(SqueezeExcitation(16, 4), avgpool=nn.AdaptiveMaxPool2d(1)), "its avgpool"),
    "hook": (lambda: _hooked(SEModule(16), "fc2"), "its fc2 carries hooks"),
    "instance forward": (lambda: _with_forward(SEModule(16)), "replaced on the instance"),
}


def _with(module, **children):
    for name, child in children.items():
        setattr(module, name, child)
    return module


def _hooked(module, name):
    getattr(module, name).register_forward_hook(lambda module, inputs, output: output * 2)
    return module


def _with_forward(module):
    module.forward = module.forward
    return module


@pytest.mark.parametrize("name", UNCOVERED)
def test_uncovered_variants_are_left_alone_with_the_reason(name):
    make, reason = UNCOVERED[name]
    model = nn.Sequential(make())
    cls = type(model[0])
    report = attnkernels.patch(model)
    assert not report.replaced
    (skipped,) = report.skipped
    assert re.search(reason, skipped.reason), skipped.reason
    assert skipped.name == "0"
    assert type(model[0]) is cls


def test_subclass_with_the_inherited_forward(calls):
    module = _Inherited(16)
    report = attnkernels.patch(module)
    assert report.replaced[0].original.endswith("_Inherited")
    module(torch.randn(1, 16, 3, 3))
    assert len(calls) == 1
    assert isinstance(module, _Inherited)


def test_another_version_of_the_forward_is_left_alone(monkeypatch):
    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True)))))

    monkeypatch.setattr(SEModule, "forward", forward)
    report = attnkernels.patch(SEModule(16))
    assert "its forward is not the one this was written for" in report.skipped[0].reason


def test_a_forward_without_source_is_left_alone(monkeypatch):
    scope: dict = {}
    exec("def forward(self, x):\n    return x", scope)
    monkeypatch.setattr(SEModule, "forward", scope["forward"])
    assert not attnkernels.patch(SEModule(16)).replaced


@pytest.mark.parametrize("name", sorted(n for n in ADAPTERS if n.startswith(("timm.", "torchvision."))))
def test_installed_libraries_are_recognised(name):
    module, _, cls = name.rpartition(".")
    adapter, obstacle = find_adapter(getattr(importlib.import_module(module), cls), ADAPTERS)
    assert adapter is ADAPTERS[name]
    assert obstacle == ""


CHANGES = {
    "forward hook": lambda se: _hooked(se, "fc1"),
    "hook on the gate": lambda se: _hooked(se, "gate"),
    "activation": lambda se: _with(se, act=nn.Tanh()),
    "gate": lambda se: _with(se, gate=nn.Softsign()),
    "norm": lambda se: _with(se, bn=nn.GroupNorm(1, 8)),
    "layer": lambda se: _with(se, fc1=nn.Sequential(se.fc1, nn.Tanh())),
    "maxpool": lambda se: _with(se, add_maxpool=True),
}


@pytest.mark.parametrize("whole_block", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_patching_are_honoured(change, whole_block, calls):
    torch.manual_seed(0)
    block = tiny_seresnet().layer1[0].eval()  # [N, 64, H, W] -> [N, 8, H, W]
    attnkernels.patch(block, include="*" if whole_block else "se")
    CHANGES[change](block.se)
    unpatched = attnkernels.unpatch(copy.deepcopy(block))
    x = torch.randn(2, 64, 6, 6)
    assert torch.equal(block(x), unpatched(x))
    assert not calls


def test_supported_change_after_patching(calls):
    module = SEModule(16).double()
    attnkernels.patch(module)
    module.gate = nn.Hardsigmoid()
    x = 9 * torch.randn(2, 16, 3, 3, dtype=torch.float64)
    got = module(x)
    assert calls[0]["gate"] == "hard_sigmoid"
    torch.testing.assert_close(got, attnkernels.unpatch(module)(x))


def test_unbatched_input_runs_the_original_forward(calls):
    module = SqueezeExcitation(8, 4)
    x = torch.randn(8, 5, 5)
    expected = module(x)
    attnkernels.patch(module)
    assert torch.equal(module(input=x), expected)
    assert not calls


def test_hooks_on_the_module_itself_run(model, x, calls):
    attnkernels.patch(model)
    seen = []
    model.layer1[0].register_forward_hook(lambda module, inputs, output: seen.append(output.min().item()))
    model(x)
    assert seen[0] >= 0
    assert len(calls) == 5


@pytest.mark.parametrize("child", ["se", "act2", "se.fc1", "se.gate"])
def test_hooks_inside_a_block_run(model, x, calls, child):
    expected = model(x)
    attnkernels.patch(model)
    seen = []
    model.layer1[0].get_submodule(child).register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model(x), expected)
    assert seen
    assert sum(call.get("residual") is not None for call in calls) == 4
    assert len(calls) == (4 if "." in child else 5)


def test_global_hooks_see_every_module(model, x, calls):
    attnkernels.patch(model)
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        model(x)
    finally:
        handle.remove()
    assert model.layer1[0].se.fc1 in seen
    assert not calls


def test_drop_path_in_training_runs_the_original_block(x, calls):
    model = tiny_seresnet(drop_path_rate=0.5).double()
    report = attnkernels.patch(model)
    assert len(report.replaced) == 10
    model.eval()(x)
    assert [call.get("residual") is not None for call in calls] == [True] * 5
    calls.clear()
    model.train()(x)
    # the first block's rate is 0; the others leave their excitation to itself
    assert [call.get("residual") is not None for call in calls] == [True] + [False] * 4


def test_other_last_activation_leaves_the_block(x, calls):
    model = tiny_seresnet(act_layer=nn.SiLU).double().eval()
    expected = model(x)
    report = attnkernels.patch(model)
    assert [record.original for record in report.replaced] == ["timm.layers.squeeze_excite.SEModule"] * 5
    assert {record.reason for record in report.skipped} == {
        "its act2 is not a bare ReLU, the excitation alone is replaced"
    }
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == 5


def test_block_without_its_excitation_patched_runs_its_own_forward(model, x, calls):
    report = attnkernels.patch(model, exclude=SEModule)
    assert not report.replaced
    attnkernels.patch(model)
    attnkernels.unpatch(model.layer1[0].se)
    expected = attnkernels.unpatch(copy.deepcopy(model))(x)
    calls.clear()
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == 4


def test_shortcut_of_another_dtype(calls):
    class Widened(nn.Module):
        def forward(self, x):
            return x.double()

    torch.manual_seed(0)
    block = resnet.BasicBlock(8, 8, attn_layer="se", downsample=Widened()).eval()
    x = torch.randn(2, 8, 5, 5)
    expected = block(x)
    attnkernels.patch(block)
    torch.testing.assert_close(block(x), expected)
    assert calls[-1].get("residual") is None


def test_antialiased_and_dropped_blocks(x):
    model = tiny_seresnet("bottleneck", aa_layer=timm.layers.BlurPool2d, drop_block_rate=0.1).double()
    unpatched = copy.deepcopy(model)
    attnkernels.patch(model)
    torch.manual_seed(3)
    expected = unpatched(x)
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), expected)
