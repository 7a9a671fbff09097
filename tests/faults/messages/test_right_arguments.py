"""What is right stays right: numbers of other libraries, kinds of tensors and tracers that the checks have to let pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from faults.messages.functions import FORMULAS
from torch import nn

import attnkernels
from attnkernels import reference, testing
from attnkernels.layers import (
    CBAM,
    ChannelSE,
    ChannelSpatialSE,
    CrissCrossAttention,
    EfficientChannelAttention,
    SelectiveKernel,
    SKConv,
    SpatialSE,
    SqueezeExcite,
)

C = 16
X = torch.randn(2, C, 5, 4, generator=torch.Generator().manual_seed(0))
LAYERS = [
    pytest.param(make, id=name)
    for name, make in (
        ("SqueezeExcite", lambda: SqueezeExcite(C)),
        ("SqueezeExcite(act=GELU)", lambda: SqueezeExcite(C, act=nn.GELU)),
        ("CrissCrossAttention", lambda: CrissCrossAttention(C)),
        ("EfficientChannelAttention", lambda: EfficientChannelAttention(C)),
        ("EfficientChannelAttention(circular)", lambda: EfficientChannelAttention(C, circular=True)),
        ("SelectiveKernel", lambda: SelectiveKernel(C)),
        ("SelectiveKernel(split_input)", lambda: SelectiveKernel(C, split_input=True)),
        ("SKConv", lambda: SKConv(C, groups=2)),
        ("CBAM", lambda: CBAM(C)),
        ("CBAM(share)", lambda: CBAM(C, pool_types=("lp", "max", "lse"), ties="share", spatial_norm=False)),
        ("CBAM(single layer)", lambda: CBAM(C, channel_mlp=False, spatial=False)),
        ("ChannelSE", lambda: ChannelSE(C)),
        ("SpatialSE", lambda: SpatialSE(C)),
        ("ChannelSpatialSE", lambda: ChannelSpatialSE(C)),
        ("ChannelSpatialSE(add)", lambda: ChannelSpatialSE(C, merge="add")),
    )
]


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, lambda value: torch.tensor(value)])
def test_integers_of_other_libraries(integer):
    SqueezeExcite(integer(C), rd_channels=integer(4))
    CrissCrossAttention(integer(C), integer(4), integer(2), integer(2))
    SelectiveKernel(integer(C), integer(C), [integer(3), 5], integer(2), stride=integer(2), rd_divisor=integer(4))
    SelectiveKernel(C, kernel_size=integer(3), rd_channels=integer(8), dilation=integer(2))
    SKConv(integer(C), integer(3), integer(4), integer(8), stride=integer(1))
    CBAM(integer(C), integer(4), rd_channels=integer(8), kernel_size=integer(3))
    ChannelSpatialSE(integer(C), integer(4))
    testing.placed(X, integer(1))


def test_other_ratios_and_flags():
    assert SqueezeExcite(C, np.float32(0.25), bias=np.bool_(False)).fc1.weight.shape[0] == 4
    assert SqueezeExcite(C, 1).fc1.weight.shape[0] == C
    assert SqueezeExcite(C, None, 4).fc1.weight.shape[0] == 4  # rd_channels wins
    assert SelectiveKernel(C, rd_ratio=None, rd_channels=4).attn.fc_reduce.weight.shape[0] == 4
    assert SelectiveKernel(C, split_input=np.True_).split_input is True


@pytest.mark.parametrize("make", LAYERS)
def test_layers_with_no_samples(make):
    layer = make().eval()
    assert layer(X[:0]).shape == X[:0].shape


@pytest.mark.parametrize("make", LAYERS)
def test_layers_under_autocast_take_other_dtypes(make):
    with torch.autocast("cpu", torch.bfloat16):
        assert make()(X.bfloat16()).shape == X.shape
        assert make()(X).shape == X.shape


@pytest.mark.parametrize("make", LAYERS)
def test_layers_export_with_any_batch(make):
    layer = make().eval()
    exported = torch.export.export(layer, (X,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    wide = torch.cat([X] * 3)
    torch.testing.assert_close(exported.module()(wide), layer(wide), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", LAYERS)
def test_layers_are_scripted_and_traced(make):
    layer = make().eval()
    want = layer(X)
    torch.testing.assert_close(torch.jit.script(layer)(X), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(layer, X)(X), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(X), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", LAYERS)
def test_errors_of_others_pass(make):
    """What a hook raises is no matter of the input."""
    layer = make()
    error = RuntimeError("a hook's own")

    def fail(*_):
        raise error

    next(child for child in layer.modules() if not list(child.children())).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError) as caught:
        layer(X)
    assert caught.value is error


@pytest.mark.parametrize("make", LAYERS)
def test_errors_of_other_children_pass(make):
    """Where something else has the place of the first children, nothing is known of the input."""

    class Refusing(nn.Module):
        def forward(self, x):
            raise KeyError("not mine")

    layer = make()
    for name, child in list(layer.named_children()):
        if isinstance(child, nn.ModuleList):
            child[0] = Refusing()
        else:
            setattr(layer, name, Refusing())
    with pytest.raises(KeyError, match="not mine"):
        layer(X)


class Tagged(torch.Tensor):
    """A subclass that adds nothing."""


def _calls(subject):
    return getattr(attnkernels, subject.name), getattr(reference, subject.name)


@pytest.mark.parametrize("subject", FORMULAS, ids=lambda subject: subject.name)
def test_subclasses_and_fake_tensors(subject):
    from torch._subclasses.fake_tensor import FakeTensorMode

    right = subject.right()
    for function in _calls(subject):
        want = function(**right)
        if subject.name != "selective_kernel":  # whose attention makes a plain tensor
            tagged = testing.map_tensors(right, lambda x: x.as_subclass(Tagged))
            torch.testing.assert_close(function(**tagged).as_subclass(torch.Tensor), want)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = function(**testing.map_tensors(right, mode.from_tensor))
        assert fake.shape == want.shape


@pytest.mark.parametrize("subject", FORMULAS, ids=lambda subject: subject.name)
def test_references_under_autocast_cast_as_pytorch_does(subject):
    right = subject.right()
    if subject.name == "selective_kernel":
        pytest.skip("its attention makes float32")
    mixed = {}
    for position, (name, value) in enumerate(right.items()):
        mixed[name] = testing.map_tensors(value, lambda x: x.bfloat16()) if position == 0 else value
    with torch.autocast("cpu", torch.bfloat16):
        assert getattr(reference, subject.name)(**mixed).isfinite().all()


@pytest.mark.parametrize("subject", FORMULAS, ids=lambda subject: subject.name)
def test_references_are_compiled_for_any_size(subject):
    right = subject.right()
    torch._dynamo.reset()
    compiled = torch.compile(getattr(reference, subject.name), fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(**right), getattr(reference, subject.name)(**right))


def test_callables_of_every_kind_are_activations():
    x, weight = X, torch.randn(C, C)
    want = attnkernels.squeeze_excite(x, weight, None, weight, None, activation="silu")
    for activation in (nn.SiLU(), nn.functional.silu, lambda hidden: hidden * hidden.sigmoid()):
        for function in (attnkernels.squeeze_excite, reference.squeeze_excite):
            got = function(x, weight, None, weight, None, activation=activation)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
