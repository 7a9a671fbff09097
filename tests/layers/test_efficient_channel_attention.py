"""layers.EfficientChannelAttention: what it computes, what it loads, what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.layers.eca import CecaModule, EcaModule
from torch import nn

from attnkernels import _guard
from attnkernels.layers import EfficientChannelAttention

C = 24
CIRCULAR = pytest.mark.parametrize("circular", [False, True])


@pytest.fixture
def x():
    return torch.randn(3, C, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(circular=False, **options):
    torch.manual_seed(0)
    return EfficientChannelAttention(C, circular=circular, **options).double()


def plain(layer, x):
    """The formula with the layer's weight, a tap after another."""
    (weight,), means = layer.conv.weight[0], x.mean((2, 3))
    half = weight.numel() // 2
    ends = (means[:, -half:], means[:, :half]) if layer.circular else (means.new_zeros(len(x), half),) * 2
    padded = torch.cat([ends[0], means, ends[1]], 1)
    logits = sum(w * padded[:, j : j + x.shape[1]] for j, w in enumerate(weight))
    return x * torch.sigmoid(logits)[:, :, None, None]


def results(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel_size", [None, 1, 3, 9])
@pytest.mark.parametrize("upstream", [EcaModule, CecaModule])
def test_same_as_timm_with_its_weights(upstream, kernel_size, layout, x, calls):
    torch.manual_seed(0)
    theirs = (upstream(C) if kernel_size is None else upstream(kernel_size=kernel_size)).double()
    ours = made(upstream is CecaModule, kernel_size=kernel_size)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["conv.weight"]
    x = x.contiguous(memory_format=layout)
    (y, grads), (want, want_grads) = results(ours, x), results(theirs, x)
    assert [call["op"] for call in calls] == ["efficient_channel_attention"]
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(grads, want_grads)
    torch.testing.assert_close(results(ours, x), (want, want_grads))  # by the guard


def test_loads_as_a_part_of_a_bigger_model():
    theirs = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"eca": EcaModule(C)}))
    ours = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"eca": EfficientChannelAttention(C)}))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours[1]["eca"].conv.weight, theirs[1]["eca"].conv.weight)


@pytest.mark.parametrize("options", [{}, {"gamma": 1}, {"gamma": 0.3, "beta": -2.5}, {"beta": 0}], ids=str)
def test_kernel_size_follows_of_the_channels_as_timm_s_does(options):
    for channels in (*(2**i for i in range(13)), 3, 5, 24, 33, 96, 255, 257, 513, 1000, 1999, 4095):
        ours, theirs = EfficientChannelAttention(channels, **options), EcaModule(channels, **options)
        assert ours.conv.kernel_size == theirs.conv.kernel_size, channels
        assert ours.conv.weight.shape == theirs.conv.weight.shape


def test_kernel_size_wins_over_channels():
    assert EfficientChannelAttention(4096, 11).conv.weight.shape == (1, 1, 11)
    assert EfficientChannelAttention(4096, 255).conv.padding == (127,)
    assert EfficientChannelAttention(4096, 255, circular=True).conv.padding == (0,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels: expected at least 1, got 0"),
        ({"channels": 4.0}, TypeError, r"channels: expected an integer, got 4\.0"),
        ({"channels": None, "kernel_size": 3}, TypeError, "channels: expected an integer, got None"),
        ({"channels": 4, "kernel_size": 4}, ValueError, "kernel_size: expected an odd number, got 4"),
        ({"channels": 4, "kernel_size": 0}, ValueError, "kernel_size: expected 1 to 255, got 0"),
        ({"channels": 4, "kernel_size": 257}, ValueError, "kernel_size: expected 1 to 255, got 257"),
        ({"channels": 4, "kernel_size": (3,)}, TypeError, r"kernel_size: expected an integer, got \(3,\)"),
        ({"channels": 4, "gamma": 0}, ValueError, "gamma: expected a number above 0, got 0"),
        ({"channels": 4, "gamma": float("nan")}, ValueError, "gamma: expected a number above 0, got nan"),
        ({"channels": 4, "gamma": "2"}, TypeError, "gamma: expected a number, got '2'"),
        ({"channels": 4, "beta": None}, TypeError, "beta: expected a number, got None"),
        ({"channels": 4, "circular": "yes"}, TypeError, "circular: expected True or False, got 'yes'"),
    ],
    ids=lambda value: ", ".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=f"^EfficientChannelAttention: {message}$"):
        EfficientChannelAttention(**options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x: expected a tensor, got None"),
        ([1.0], TypeError, r"x: expected a tensor, got \[1.0\]"),
        (torch.ones(2, C, 3), ValueError, r"x: expected a tensor \[N, C, H, W\], got .*\[2, 24, 3\]"),
        (torch.ones(2, C, 3, 3, dtype=torch.int64), TypeError, "x: expected float32, .*, got .*int64"),
        (torch.ones(2, C, 3, 3).double(), TypeError, "expected dtype torch.float.* as .*, got torch.float"),
    ],
    ids=["None", "list", "three dimensions", "integers", "another dtype"],
)
@pytest.mark.parametrize("by_guard", [False, True])
def test_bad_input(x, error, message, by_guard):
    """By name or by its guard; what only the op can tell is said in the op's name."""
    layer, right = EfficientChannelAttention(C), torch.ones(2, C, 3, 3)
    if by_guard:
        layer(right)
    with pytest.raises(error, match=f"^(EfficientChannelAttention|efficient_channel_attention): .*{message}"):
        layer(x)
    layer(right)


@CIRCULAR
def test_any_number_of_channels_will_do(circular):
    layer = made(circular)
    for channels in (1, 2, C, 2 * C):
        x = torch.randn(2, channels, 4, 3, dtype=torch.float64)
        torch.testing.assert_close(layer(x), plain(layer, x))


def test_circular_taps_that_reach_around_all_channels_are_refused():
    layer = EfficientChannelAttention(C, 7, circular=True)
    assert layer(torch.ones(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="expected at most 5 taps around 2 channels, got 7"):
        layer(torch.ones(2, 2, 4, 4))


@CIRCULAR
@pytest.mark.parametrize("child", ["conv", "gate"])
def test_hooks_on_children_run(child, circular, x, calls):
    layer = made(circular)
    expected = layer(x)
    layer(x)
    calls.clear()
    seen = []
    handle = layer.get_submodule(child).register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), expected)
    assert seen == [1]
    assert not calls
    handle.remove()
    assert torch.equal(layer(x), expected)
    assert [call["op"] for call in calls] == ["efficient_channel_attention"]


@pytest.mark.parametrize("child", ["conv", "gate"])
def test_backward_hooks_on_children_run(child, x, calls):
    layer, seen = made(), []
    layer(x)
    layer.get_submodule(child).register_full_backward_hook(lambda *_: seen.append(1))
    layer(x).sum().backward()
    assert seen == [1]
    assert len(calls) == 1


@CIRCULAR
def test_replaced_children_run_one_after_the_other(circular, x, calls):
    layer = made(circular)
    layer(x)
    calls.clear()
    layer.gate = nn.Tanh()
    means = plain(layer, torch.ones_like(x) * x.mean((2, 3), keepdim=True)) / x.mean((2, 3), keepdim=True)
    gates = torch.tanh(torch.logit(means[:, :, :1, :1]))
    torch.testing.assert_close(layer(x), x * gates)
    layer.gate, layer.conv = nn.Sigmoid(), nn.Sequential(layer.conv, nn.Identity())
    torch.testing.assert_close(layer(x), x * torch.sigmoid(torch.logit(means[:, :, :1, :1])))
    assert not calls


def test_parametrized_convolution(x, calls):
    layer = made()
    torch.nn.utils.parametrizations.weight_norm(layer.conv)
    torch.testing.assert_close(layer(x), plain(layer, x))
    assert not calls


@pytest.mark.parametrize("recorded", [True, False])
def test_another_convolution_ends_the_guard(recorded, x):
    layer = made()
    with torch.set_grad_enabled(recorded):
        layer(x)
        guard = layer.__dict__[_guard.NAME]
        torch.testing.assert_close(layer(x), plain(layer, x))
        assert layer.__dict__[_guard.NAME] is guard
        for size in (3, 5):
            layer.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False).double()
            torch.testing.assert_close(layer(x), plain(layer, x))
            assert layer.__dict__[_guard.NAME] is not guard
            guard = layer.__dict__[_guard.NAME]
        layer.conv.weight = nn.Parameter(torch.ones_like(layer.conv.weight))
        torch.testing.assert_close(layer(x), plain(layer, x))
        layer.conv = nn.Conv1d(1, 1, 3, padding=1, bias=True).double()  # which the op cannot take
        logits = layer.conv(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None]
        torch.testing.assert_close(layer(x), x * torch.sigmoid(logits))
        assert _guard.NAME not in layer.__dict__


def test_weights_that_change_in_place_count(x):
    layer = made().eval()
    layer(x)
    with torch.no_grad():
        layer.conv.weight.mul_(-2)
    torch.testing.assert_close(layer(x), plain(layer, x))
    layer.float()
    torch.testing.assert_close(layer(x.float()), plain(layer, x.float()))


@CIRCULAR
def test_scripted_traced_and_compiled(circular, x):
    layer = made(circular)
    want = layer(x)
    torch.testing.assert_close(want, plain(layer, x))
    torch._dynamo.reset()
    for captured in (
        torch.jit.script(layer),
        torch.jit.trace(layer, x),
        torch.fx.symbolic_trace(layer),
        torch.export.export(layer, (x,)).module(),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
    ):
        torch.testing.assert_close(captured(x), want)
    assert torch.equal(layer(x), want)


@CIRCULAR
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_with_children_of_their_own(copied, circular, x):
    layer = made(circular)
    layer(x)  # has a guard
    other = copied(layer)
    assert torch.equal(other(x), layer(x))
    assert other.circular is circular
    if copied is not copy.copy:
        with torch.no_grad():
            other.conv.weight.neg_()
        torch.testing.assert_close(other(x), plain(other, x))
        torch.testing.assert_close(layer(x), plain(layer, x))


def test_training_under_autocast():
    layer = EfficientChannelAttention(C)
    x = torch.randn(2, C, 4, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), rtol=2e-2, atol=1e-2)
    assert x.grad.dtype is layer.conv.weight.grad.dtype is torch.float32


def test_representation():
    assert "circular" not in repr(EfficientChannelAttention(C))
    assert "circular=True" in repr(EfficientChannelAttention(C, circular=True))
