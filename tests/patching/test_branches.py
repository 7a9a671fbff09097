"""patch on timm's SKNet and ResNeSt: same numbers, and when the original forward stays."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers.selective_kernel import SelectiveKernel
from timm.layers.split_attn import SplitAttn
from torch import nn

import attnkernels
from attnkernels.patching import selective_kernel

from .conftest import randomized

SMALL = dict(layers=(1, 1, 1, 1), num_classes=10)
MODELS = {
    "skresnet18": (lambda: timm.create_model("skresnet18", **SMALL), 4),
    "skresnext50": (lambda: timm.create_model("skresnext50_32x4d", **SMALL), 4),
    "resnest14d": (lambda: timm.create_model("resnest14d", num_classes=10), 4),
}


@pytest.fixture
def ran(monkeypatch):
    backends = []
    op = selective_kernel.selective_kernel

    def recorded(*args, **kwargs):
        backends.append(attnkernels.backend_of("selective_kernel", *args, **kwargs))
        return op(*args, **kwargs)

    monkeypatch.setattr(selective_kernel, "selective_kernel", recorded)
    return backends


def results(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    found = {"output": y.detach(), "grad x": x.grad}
    found |= {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    return found | {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_gradients_and_state(name, training, layout, ran):
    make, attentions = MODELS[name]
    torch.manual_seed(0)
    unpatched = randomized(make().double()).train(training).to(memory_format=layout)
    model = copy.deepcopy(unpatched)
    report = attnkernels.patch(model)
    assert [record.op for record in report.replaced] == ["selective_kernel"] * attentions
    assert not report.skipped
    x = torch.randn(2, 3, 48, 40, dtype=torch.float64).contiguous(memory_format=layout)
    got, want = results(model, x), results(unpatched, x)
    assert ran == [attnkernels.available_backends()[-2]] * attentions
    for what, value in want.items():
        scale = max(value.abs().max().item(), 1.0 if what.startswith("grad") else 0.0)
        assert torch.allclose(got[what].double(), value.double(), rtol=1e-7, atol=1e-8 * scale), what
    attnkernels.unpatch(model).load_state_dict(unpatched.state_dict())  # running statistics: equal but for rounding
    assert torch.equal(model.eval()(x), unpatched.eval()(x))


def test_one_branch_is_left_alone():
    report = attnkernels.patch(SplitAttn(8, radix=1))
    assert not report.replaced
    assert "radix 1" in report.skipped[0].reason


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("radix", [2, 3])
def test_split_attention_by_groups(radix, groups, ran):
    torch.manual_seed(0)
    module = randomized(SplitAttn(12, groups=groups, radix=radix, norm_layer=nn.BatchNorm2d).double())
    x = torch.randn(3, 12, 6, 5, dtype=torch.float64)
    want = copy.deepcopy(module)(x)
    attnkernels.patch(module)
    torch.testing.assert_close(module(x), want)
    assert len(ran) == 1


@pytest.mark.parametrize("make", [lambda: SelectiveKernel(8), lambda: SplitAttn(8)])
def test_hooks_run_and_hooks_on_what_is_fused_bring_the_original_forward_back(make, ran):
    module = patched(make())
    x, seen = torch.randn(2, 8, 6, 5), []
    inner = module.paths[0].conv if hasattr(module, "paths") else module.fc1
    inner.register_forward_hook(lambda *_: seen.append("inner"))
    module(x)
    assert (len(ran), seen) == (1, ["inner"])
    fused = module.attn if hasattr(module, "attn") else module.rsoftmax
    fused.register_forward_hook(lambda *_: seen.append("fused"))
    module(x)
    assert (len(ran), seen) == (1, ["inner", "inner", "fused"])


def patched(module):
    assert attnkernels.patch(module).replaced
    return module


def test_another_attention_is_left_alone():
    module = SelectiveKernel(8)
    module.attn = nn.Identity()
    report = attnkernels.patch(module)
    assert "its attn is not the" in report.skipped[0].reason


@pytest.mark.parametrize("make", [lambda: SelectiveKernel(8), lambda: SplitAttn(8)])
def test_channels_last_stays_and_flattens_to_the_same_numbers(make, ran):
    module = make().double().eval()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = module(x)
        assert expected.is_contiguous()
        got = patched(module)(x)
    assert len(ran) == 1
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.flatten(1), expected.view(2, -1))
    torch.testing.assert_close(got.reshape(2, -1), expected.view(2, -1))
