"""layers.SqueezeExcite: what it computes, what it loads, what it refuses."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers.squeeze_excite import SEModule, SqueezeExciteCl
from timm.models._efficientnet_blocks import SqueezeExcite as EfficientNetSE
from torch import nn
from torchvision.ops.misc import SqueezeExcitation

import attnkernels
from attnkernels.layers import SqueezeExcite

C, RD = 24, 6
FUNCTIONS = {
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": nn.functional.hardsigmoid,
    nn.ReLU: torch.relu,
    nn.SiLU: nn.functional.silu,
    nn.GELU: nn.functional.gelu,
    nn.Sigmoid: torch.sigmoid,
    nn.Hardsigmoid: nn.functional.hardsigmoid,
    nn.Softsign: nn.functional.softsign,
}


@pytest.fixture
def x():
    return torch.randn(3, C, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", nn.Sigmoid, nn.Hardsigmoid, nn.Softsign])
@pytest.mark.parametrize("act", ["relu", "silu", nn.ReLU, nn.SiLU, nn.GELU])
def test_the_formula(act, gate, bias, x, calls):
    torch.manual_seed(0)
    layer = SqueezeExcite(C, rd_channels=RD, bias=bias, act=act, gate=gate).double()
    y = layer(x)
    hidden = x.mean((2, 3)) @ layer.fc1.weight[:, :, 0, 0].T + (layer.fc1.bias if bias else 0)
    logits = FUNCTIONS[act](hidden) @ layer.fc2.weight[:, :, 0, 0].T + (layer.fc2.bias if bias else 0)
    torch.testing.assert_close(y, x * FUNCTIONS[gate](logits)[:, :, None, None])
    assert len(calls) == 1
    fused_act, fused_gate = {nn.ReLU: "relu", nn.SiLU: "silu"}.get(act, act), gate
    fused_gate = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hard_sigmoid"}.get(gate, gate)
    assert calls[0]["activation"] == (layer.act if fused_act is nn.GELU else fused_act)
    assert calls[0]["gate"] == (layer.gate if fused_gate is nn.Softsign else fused_gate)
    assert list(layer.state_dict()) == (
        ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"] if bias else ["fc1.weight", "fc2.weight"]
    )


@pytest.mark.parametrize(("ratio", "channels", "expected"), [(1 / 16, 64, 4), (0.25, 10, 2), (1 / 16, 4, 1)])
def test_reduced_width(ratio, channels, expected):
    assert SqueezeExcite(channels, ratio).fc1.out_channels == expected


def _sequential_se() -> nn.Module:
    """The layout of moskomule's SELayer: Linear layers without biases in a Sequential."""
    module = nn.Module()
    module.fc = nn.Sequential(nn.Linear(C, RD, bias=False), nn.ReLU(), nn.Linear(RD, C, bias=False), nn.Sigmoid())
    return module


def _named(first: str, second: str, layer=lambda i, o: nn.Conv2d(i, o, 1)) -> nn.Module:
    """Two layers under dotted names."""
    module = nn.Module()
    for name, child in ((first, layer(C, RD)), (second, layer(RD, C))):
        *path, last = name.split(".")
        parent = module
        for part in path:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, child)
    return module


UPSTREAM = {
    "timm SEModule": lambda: SEModule(C, rd_channels=RD),
    "timm SEModule without biases": lambda: SEModule(C, rd_channels=RD, bias=False),
    "timm SqueezeExciteCl": lambda: SqueezeExciteCl(C, rd_channels=RD),
    "timm EfficientNet": lambda: EfficientNetSE(C, rd_channels=RD),
    "timm SENet": lambda: timm.models.senet.SEModule(C, C // RD),
    "torchvision": lambda: SqueezeExcitation(C, RD),
    "moskomule": _sequential_se,
    "NVIDIA": lambda: _named("squeeze", "expand", nn.Linear),
    "NVIDIA convolutions": lambda: _named("squeeze", "expand"),
    "lukemelas": lambda: _named("_se_reduce", "_se_expand"),
    "mmseg": lambda: _named("conv1.conv", "conv2.conv"),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", UPSTREAM)
def test_loads_upstream_state_dicts(name, nested, x):
    torch.manual_seed(0)
    upstream = UPSTREAM[name]().double()
    weights = list(upstream.parameters())
    bias = len(weights) == 4
    layer = SqueezeExcite(C, rd_channels=RD, bias=bias).double()
    source, target = upstream, layer
    if nested:
        source = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"se": upstream})).double()
        target = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"se": layer})).double()
    state = source.state_dict()
    keys = list(state)
    target.load_state_dict(state, strict=True)
    assert list(state) == keys, "the caller's dict stays as it was"
    for own, theirs in zip(layer.parameters(), weights, strict=True):
        assert torch.equal(own.flatten(), theirs.flatten())
    assert set(layer.state_dict()) == {f"fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")[: 1 + bias]}
    if type(upstream) is not nn.Module and not isinstance(upstream, SqueezeExciteCl):
        torch.testing.assert_close(layer(x), upstream(x))


def test_loads_by_assignment():
    upstream = EfficientNetSE(C, rd_channels=RD)
    with torch.device("meta"):
        layer = SqueezeExcite(C, rd_channels=RD)
    layer.load_state_dict(upstream.state_dict(), assign=True)
    assert torch.equal(layer.fc1.weight, upstream.conv_reduce.weight)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: _sequential_se().state_dict(), 'Missing key.*"fc1.bias", "fc2.bias"'),
        (lambda: SEModule(C, rd_channels=RD, norm_layer=nn.BatchNorm2d).state_dict(), "Unexpected key.*bn.weight"),
        (lambda: SEModule(C, rd_channels=RD + 1).state_dict(), "size mismatch for fc1.weight"),
        (
            lambda: {**SEModule(C, rd_channels=RD).state_dict(), "squeeze.weight": torch.ones(RD, C)},
            "Unexpected.*squeeze",
        ),
        (lambda: {}, "Missing key"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "0."])
def test_what_does_not_fit_is_a_strict_error(state, message, prefix):
    layer = SqueezeExcite(C, rd_channels=RD)
    target = nn.Sequential(layer) if prefix else layer
    with pytest.raises(
        RuntimeError, match=message.replace('"fc', f'"{prefix}fc').replace("for fc1", f"for {prefix}fc1")
    ):
        target.load_state_dict({prefix + key: value for key, value in state().items()})


def test_patched_modules_keep_their_upstream_keys():
    module = EfficientNetSE(C, rd_channels=RD)
    attnkernels.patch(module)
    SqueezeExcite(C, rd_channels=RD).load_state_dict(module.state_dict())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels: expected at least 1, got 0"),
        ({"channels": 4, "rd_channels": 0}, ValueError, "rd_channels: expected at least 1, got 0"),
        ({"channels": 4, "act": "gelu"}, ValueError, "act: expected 'relu' or 'silu', or a module class, got 'gelu'$"),
        (
            {"channels": 4, "gate": "tanh"},
            ValueError,
            "gate: expected 'sigmoid' or 'hard_sigmoid', or a module class, got 'tanh'",
        ),
        ({"channels": 4, "act": torch.relu}, TypeError, "act: expected 'relu' or 'silu', or a module class"),
        ({"channels": 4, "gate": int}, TypeError, "gate: expected .* or a module class"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        SqueezeExcite(**options)


@pytest.mark.parametrize("x", [None, torch.ones(2, C, 3), torch.ones(2, C, 3, 3, dtype=torch.int64)])
def test_bad_input(x):
    with pytest.raises((TypeError, ValueError), match="SqueezeExcite: x: expected"):
        SqueezeExcite(C)(x)


@pytest.mark.parametrize("child", ["fc1", "act", "fc2", "gate"])
def test_hooks_on_children_run(child, x, calls):
    layer = SqueezeExcite(C, rd_channels=RD).double()
    expected = layer(x)
    seen = []
    handle = layer.get_submodule(child).register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), expected)
    assert seen == [1]
    assert len(calls) == 1
    handle.remove()
    layer(x)
    assert len(calls) == 2


def test_replaced_and_parametrized_children(x, calls):
    layer = SqueezeExcite(C, rd_channels=RD).double()
    layer.fc1 = nn.Sequential(layer.fc1, nn.Tanh())
    torch.nn.utils.parametrizations.weight_norm(layer.fc2)
    hidden = torch.relu(layer.fc1(x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(layer(x), x * torch.sigmoid(layer.fc2(hidden)))
    assert not calls


def _compiled(layer, x):
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager", fullgraph=True)(x)


@pytest.mark.parametrize(
    "capture",
    [
        _compiled,
        lambda layer, x: torch.export.export(layer, (x,)).module()(x),
        lambda layer, x: torch.fx.symbolic_trace(layer)(x),
        lambda layer, x: torch.jit.trace(layer, x)(x),
        lambda layer, x: torch.func.vmap(layer)(x[None])[0],
    ],
    ids=["compile", "export", "fx", "jit.trace", "vmap"],
)
def test_capture(capture, x):
    layer = SqueezeExcite(C, rd_channels=RD).double()
    torch.testing.assert_close(capture(layer, x), layer(x))


def test_training_and_autocast(x):
    layer = SqueezeExcite(C, rd_channels=RD)
    x = x.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, layer(x), rtol=2e-2, atol=1e-2)
    assert all(parameter.grad is not None for parameter in [x, *layer.parameters()])
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
