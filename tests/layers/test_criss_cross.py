"""layers.CrissCrossAttention: what it computes, what it loads, what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import attnkernels
from attnkernels.layers import CrissCrossAttention


def made(*args, **kwargs) -> CrissCrossAttention:
    torch.manual_seed(0)
    layer = CrissCrossAttention(*args, **kwargs).double()
    nn.init.constant_(layer.gamma, 0.7)
    return layer


def once(layer, x):
    attend = attnkernels.reference.criss_cross_attention
    return layer.gamma * attend(layer.query_conv(x), layer.key_conv(x), layer.value_conv(x)) + x


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("space", [(5, 7), (3, 4, 5)])
def test_the_formula(space, recurrence):
    layer = made(16, reduction=4, recurrence=recurrence, dim=len(space))
    x = torch.randn(2, 16, *space, dtype=torch.float64, requires_grad=True)
    want = x
    for _ in range(recurrence):
        want = once(layer, want)
    got = layer(x)
    torch.testing.assert_close(got, want)
    inputs = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_starts_as_the_identity():
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(CrissCrossAttention(16)(x), x)


def test_widths():
    layer = CrissCrossAttention(512)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "gamma": (1,),
        "query_conv.weight": (64, 512, 1, 1), "query_conv.bias": (64,),
        "key_conv.weight": (64, 512, 1, 1), "key_conv.bias": (64,),
        "value_conv.weight": (512, 512, 1, 1), "value_conv.bias": (512,),
    }  # fmt: skip
    assert CrissCrossAttention(4).query_conv.out_channels == 1


def test_loads_the_keys_of_mmcv_also_inside_a_model():
    source = made(16)
    state = {f"head.{name}": value for name, value in source.state_dict().items()}
    state["head.gamma.scale"] = state.pop("head.gamma").reshape(())
    model = nn.ModuleDict({"head": CrissCrossAttention(16).double()})
    before = dict(state)
    model.load_state_dict(state, strict=True)
    assert state == before
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    assert torch.equal(model["head"](x), source(x))
    model.load_state_dict({f"head.{name}": value for name, value in source.state_dict().items()}, strict=True)


def test_hooks_and_replaced_children_count():
    layer = made(16)
    layer.value_conv = nn.Sequential(layer.value_conv, nn.Tanh())
    seen = []
    layer.key_conv.register_forward_hook(lambda module, inputs, output: seen.append(1))
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), once(layer, x))
    assert len(seen) == 2


def test_copies_and_pickles():
    layer = made(16)
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    assert "recurrence=1" in repr(layer)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic):
    torch._dynamo.reset()
    layer = made(16, recurrence=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((3, 4), (5, 6)):
        x = torch.randn(2, 16, *size, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), layer(x))


def test_tracing_and_transforms_take_the_plain_formula():
    layer = made(16)
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    traced = torch.jit.trace(layer, x)
    assert "attnkernels::" not in str(traced.graph)
    torch.testing.assert_close(traced(x), layer(x))
    y, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(y, layer(x))
    assert tangent.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(channels=0), "channels: expected at least 1, got 0"),
        (dict(channels=8, reduction=0), "reduction: expected at least 1"),
        (dict(channels=8, recurrence=0), "recurrence: expected at least 1"),
        (dict(channels=8, dim=1), "dim: expected 2 or 3, got 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrissCrossAttention(**arguments)
