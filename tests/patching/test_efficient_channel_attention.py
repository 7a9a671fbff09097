"""timm's EcaModule and CecaModule, alone and in the blocks of a ResNet."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers.eca import CecaModule, EcaModule
from torch import nn

import attnkernels

from .blocks import operators
from .conftest import exact, randomized

OP = "efficient_channel_attention"
C = 16
MODULES = {
    "eca": lambda: EcaModule(C),
    "eca, one tap": lambda: EcaModule(kernel_size=1),
    "eca, more taps than channels": lambda: EcaModule(kernel_size=35),
    "eca, hard sigmoid": lambda: EcaModule(C, gate_layer="hard_sigmoid"),
    "ceca": lambda: CecaModule(C),
    "ceca, around all channels": lambda: CecaModule(kernel_size=2 * C + 1),
    "ceca, hard sigmoid": lambda: CecaModule(C, gate_layer=nn.Hardsigmoid),
}
NETWORKS = {
    "bottleneck, eca": ("ecaresnet50d", "eca"),
    "basic, eca": ("seresnet18", "eca"),
    "bottleneck, ceca": ("ecaresnet50d", "ceca"),
}


def tiny_network(name="bottleneck, eca"):
    kind, attention = NETWORKS[name]
    model = timm.create_model(
        kind, layers=(1, 2, 1, 1), channels=(8, 16, 24, 32), num_classes=10, block_args={"attn_layer": attention}
    )
    return randomized(model.double())


def network_input():
    return torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def x():
    return 4 * torch.randn(3, C, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def results(model, x):
    """Output, gradients and buffers of one step."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])
    return y.detach(), grads, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same(name, training, calls):
    torch.manual_seed(0)
    unpatched = tiny_network(name).train(training)
    model, x = copy.deepcopy(unpatched), network_input()
    want = results(unpatched, x)
    report = attnkernels.patch(model)
    cls = {"eca": EcaModule, "ceca": CecaModule}[NETWORKS[name][1]]
    modules = [path for path, module in model.named_modules() if type(module) is cls]
    assert not report.skipped
    assert {record.op for record in report.replaced} == {OP}
    assert [record.name for record in report.replaced if not record.is_block] == modules
    assert [f"{record.name}.se" for record in report.replaced if record.is_block] == modules
    got = results(model, x)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
    assert [call["op"] for call in calls] == [OP] * 5
    assert [call["output_activation"] for call in calls] == ["relu"] * 5
    assert all(call["residual"] is not None for call in calls)
    assert {call["circular"] for call in calls} == {cls is CecaModule}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inference_on_a_cpu(layout, calls):
    """The op for squeeze and excitation writes over a convolution's result there; this one does not."""
    torch.manual_seed(0)
    model = tiny_network().eval().to(memory_format=layout)
    x = network_input().contiguous(memory_format=layout)
    with torch.no_grad():
        want = model(x)
        attnkernels.patch(model)
        for _ in range(3):
            torch.testing.assert_close(model(x), want)
        with operators() as seen:
            model(x)
    assert len(calls) == 20
    assert all(call["residual"] is not None for call in calls)
    if "cpu" in attnkernels.available_backends():
        assert seen == [OP] * 5


def test_unpatch_restores(calls):
    torch.manual_seed(0)
    model, x = tiny_network().eval(), network_input()
    want, keys = model(x), list(model.state_dict())
    attnkernels.patch(model)
    model(x)
    assert list(model.state_dict()) == keys
    calls.clear()
    assert torch.equal(attnkernels.unpatch(model)(x), want)
    assert not calls
    state = {name: value for module in model.modules() for name, value in module.__dict__.items()}
    assert not any(name.startswith("_attnkernels") for name in state)


@pytest.mark.parametrize("child", ["act3", "se", "se.conv", "se.gate"])
def test_hooks_inside_a_block_run(child, calls):
    torch.manual_seed(0)
    model, x = tiny_network().eval(), network_input()
    want = model(x)
    attnkernels.patch(model)
    model(x)
    calls.clear()
    seen = []
    model.layer2[1].get_submodule(child).register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model(x), want)
    assert seen == [1]
    assert sum(call["residual"] is not None for call in calls) == 4
    assert len(calls) == (4 if "." in child else 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_the_same(name, layout, x, calls):
    torch.manual_seed(0)
    module, x = MODULES[name]().double(), x.contiguous(memory_format=layout)
    want = results(exact(module), x)
    (record,) = attnkernels.patch(module).replaced
    assert (record.op, record.original) == (OP, f"timm.layers.eca.{type(module).__name__}")
    for _ in range(2):  # by name, then by the guard
        torch.testing.assert_close(results(module, x), want, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        y = module(x)
    assert torch.equal(y, results(module, x)[0])
    assert y.is_contiguous(memory_format=layout)
    assert [call["op"] for call in calls] == [OP]


def changed(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


CONVOLUTION = "its conv is not of one channel, an odd size, without a bias, and padded to the same length"
LEFT_ALONE = {
    "mlp": (lambda: EcaModule(C, use_mlp=True), "it has two convolutions (use_mlp)"),
    "bias": (lambda: CecaModule(C, act_layer=nn.ReLU), CONVOLUTION),
    "a bias of one's own": (lambda: changed(EcaModule(C), conv=nn.Conv1d(1, 1, 3, padding=1)), CONVOLUTION),
    "even size": (lambda: changed(EcaModule(C), conv=nn.Conv1d(1, 1, 4, padding=2, bias=False)), CONVOLUTION),
    "too many taps": (lambda: EcaModule(kernel_size=257), CONVOLUTION),
    "no padding": (lambda: changed(EcaModule(C), conv=nn.Conv1d(1, 1, 3, bias=False)), CONVOLUTION),
    "two paddings": (lambda: changed(CecaModule(C), conv=nn.Conv1d(1, 1, 3, padding=1, bias=False)), CONVOLUTION),
    "other padding": (lambda: changed(CecaModule(C), padding=2), "its padding is not half of its kernel size"),
    "dilation": (
        lambda: changed(EcaModule(C), conv=nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)),
        CONVOLUTION,
    ),
    "reflection": (
        lambda: changed(EcaModule(C), conv=nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect", bias=False)),
        CONVOLUTION,
    ),
    "gate": (lambda: EcaModule(C, gate_layer=nn.Softsign), "its gate is not a sigmoid or hard sigmoid"),
    "another module": (lambda: changed(EcaModule(C), conv=nn.Identity()), "its conv is not a Conv1d"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone_with_the_reason(name):
    make, reason = LEFT_ALONE[name]
    model = nn.Sequential(make())
    report = attnkernels.patch(model)
    assert not report.replaced
    (skipped,) = report.skipped
    assert skipped.reason.startswith(reason)
    assert skipped.name == "0"


@pytest.mark.parametrize("by_guard", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda module: changed(module, gate=nn.Softsign()),
        lambda module: changed(module, conv=nn.Conv1d(1, 1, 3, padding=module.conv.padding).double()),
        lambda module: module.conv.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda module: module.gate.register_forward_hook(lambda module, inputs, output: 2 * output),
    ],
    ids=["gate", "bias", "hook on the convolution", "hook on the gate"],
)
@pytest.mark.parametrize("cls", [EcaModule, CecaModule])
def test_changes_after_patching_are_honoured(cls, change, by_guard, x, calls):
    module = cls(C).double()
    attnkernels.patch(module)
    if by_guard:
        module(x)
        calls.clear()
    change(module)
    assert torch.equal(module(x), attnkernels.unpatch(copy.deepcopy(module))(x))
    assert not calls


def test_another_padding_after_patching_is_honoured(x, calls):
    module = CecaModule(C).double()
    attnkernels.patch(module)
    module(x)
    module.padding, module.conv = 2, nn.Conv1d(1, 1, 5, bias=False).double()
    assert torch.allclose(module(x), attnkernels.unpatch(copy.deepcopy(module))(x))
    assert [call["op"] for call in calls] == [OP] * 2
    module.padding = 3
    with pytest.raises(RuntimeError, match="size"):  # as the original, which then has two channels too many
        module(x)


def test_a_second_convolution_after_patching_is_honoured(x, calls):
    module = EcaModule(C).double()
    attnkernels.patch(module)
    module(x)
    module.act, module.conv2 = nn.ReLU(), nn.Conv1d(1, 1, 3, padding=1).double()
    assert torch.equal(module(x), attnkernels.unpatch(copy.deepcopy(module))(x))
    assert len(calls) == 1


def test_unbatched_input_runs_the_original_forward(calls):
    module = EcaModule(C).double()
    attnkernels.patch(module)
    with pytest.raises(IndexError):  # PyTorch's own
        module(torch.ones(C, 5, 5, dtype=torch.float64))
    assert not calls
