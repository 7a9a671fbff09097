"""layers.CBAM, ChannelSE, SpatialSE and ChannelSpatialSE: what they compute, what they load, what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.layers.cbam import CbamModule
from torch import nn

from attnkernels import _guard
from attnkernels.layers import CBAM, ChannelSE, ChannelSpatialSE, SpatialSE

from . import upstream_gates as upstream
from .upstream_gates import with_ties

C = 32
TIMM = {"spatial_order": ("mean", "max"), "ties": "share", "bias": False, "bn_momentum": 0.1}
ULTRALYTICS = {"spatial_order": ("mean", "max"), "spatial_norm": False, "channel_mlp": False}
COPIED = {"spatial_order": ("mean", "max"), "spatial_norm": False, "bias": False}
FOUR_POOLS = ("max", "avg", "lp", "lse")
# A module of another project, and the layer that takes its weights; the op that serves it.
PAIRS = {
    "official": (lambda: upstream.official.CBAM(C), lambda: CBAM(C)),
    "official, four pools": (lambda: upstream.official.CBAM(C, 8, FOUR_POOLS), lambda: CBAM(C, 8, FOUR_POOLS)),
    "official, channels alone": (
        lambda: upstream.official.CBAM(C, 4, no_spatial=True),
        lambda: CBAM(C, 4, spatial=False),
    ),
    "timm": (lambda: CbamModule(C), lambda: CBAM(C, **TIMM)),
    "timm, other sizes": (
        lambda: CbamModule(C, rd_channels=5, spatial_kernel_size=3, mlp_bias=True),
        lambda: CBAM(C, rd_channels=5, kernel_size=3, **{**TIMM, "bias": True}),
    ),
    "ultralytics": (lambda: upstream.ultralytics.CBAM(C), lambda: CBAM(C, **ULTRALYTICS)),
    "ultralytics, 3": (lambda: upstream.ultralytics.CBAM(C, 3), lambda: CBAM(C, kernel_size=3, **ULTRALYTICS)),
    "copied": (lambda: upstream.copied.CBAM(C), lambda: CBAM(C, **COPIED)),
    "ai-med": (lambda: upstream.ai_med.ChannelSpatialSELayer(C), lambda: ChannelSpatialSE(C)),
    "ai-med, channels": (lambda: upstream.ai_med.ChannelSELayer(C), lambda: ChannelSE(C)),
    "ai-med, pixels": (lambda: upstream.ai_med.SpatialSELayer(C), lambda: SpatialSE(C)),
    "smp": (lambda: upstream.smp.SCSEModule(C), lambda: ChannelSpatialSE(C, 16, "add")),
    "fvcore": (lambda: upstream.fvcore.ChannelSpatialSqueezeExcitation(C), lambda: ChannelSpatialSE(C, 16)),
    "fvcore, channels": (lambda: upstream.fvcore.SqueezeExcitation(C), lambda: ChannelSE(C, 16)),
    "fvcore, pixels": (lambda: upstream.fvcore.SpatialSqueezeExcitation(C), lambda: SpatialSE(C)),
    "monai": (lambda: upstream.monai.ChannelSELayer(C), lambda: ChannelSE(C)),
}
OPS = {CBAM: "cbam", ChannelSE: "squeeze_excite", SpatialSE: "scse", ChannelSpatialSE: "scse"}
LAYERS = {
    "cbam": lambda: CBAM(C),
    "cbam, single layer": lambda: CBAM(C, **ULTRALYTICS),
    "cbam, channels": lambda: CBAM(C, spatial=False),
    "cbam, four pools": lambda: CBAM(C, pool_types=FOUR_POOLS, ties="share"),
    "channels": lambda: ChannelSE(C),
    "pixels": lambda: SpatialSE(C),
    "both": lambda: ChannelSpatialSE(C),
    "both, added": lambda: ChannelSpatialSE(C, merge="add"),
}
NORMED = {name for name in PAIRS if name.startswith(("official", "timm"))} - {"official, channels alone"}


@pytest.fixture
def x():
    return torch.randn(3, C, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(make):
    """A layer whose every number counts."""
    torch.manual_seed(0)
    module = make().double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 1.5)
    return module


def pair(name):
    make_theirs, make_ours = PAIRS[name]
    theirs, ours = made(make_theirs), make_ours().double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def results(module, x):
    """Output, gradients of x and of each parameter by its name's end, buffers."""
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grad, *grads = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
    return y.detach(), grad, [g.flatten() for g in grads], [buffer.clone() for buffer in module.buffers()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_same_as_another_project_s_with_its_weights(name, training, layout, x, calls):
    theirs, ours = pair(name)
    theirs.train(training)
    ours.train(training)
    x = x.contiguous(memory_format=layout)
    for _ in range(2):  # by name, then by the guard
        got, want = results(ours, x), results(theirs, x)
        torch.testing.assert_close(got, want)
        assert got[0].is_contiguous(memory_format=layout)
    assert [call["op"] for call in calls] == [OPS[type(ours)]]
    if name in NORMED:
        assert ours.bn.num_batches_tracked == (2 if training else 0)


# The gradient of a pool by powers is not a number where all pixels are zero.
@pytest.mark.parametrize("name", [name for name in PAIRS if "four pools" not in name])
def test_ties_are_resolved_as_theirs(name):
    theirs, ours = pair(name)
    x = with_ties(2, C, 6, 5)
    want = results(theirs, x)
    torch.testing.assert_close(results(ours, x), want)
    torch.testing.assert_close(results(_unfused(ours), x)[:3], want[:3])


class _unfused(nn.Module):
    """A layer whose children are called one by one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer._children_in_turn(x)


@pytest.mark.parametrize("name", PAIRS)
def test_the_children_in_turn_compute_the_same(name, x):
    theirs, ours = pair(name)
    torch.testing.assert_close(results(_unfused(ours), x), results(theirs, x))


@pytest.mark.parametrize("name", PAIRS)
def test_loads_as_a_part_of_a_bigger_model_and_its_own_keys(name):
    make_theirs, make_ours = PAIRS[name]
    theirs = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"gate": made(make_theirs)}))
    ours = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"gate": make_ours()}))
    keys = list(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == keys
    again = nn.Sequential(nn.Conv2d(3, C, 1), nn.ModuleDict({"gate": make_ours()}))
    again.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("official", {"spatial_order": ("mean", "max")}),
        ("timm", {**TIMM, "spatial_order": ("max", "mean")}),
        ("ultralytics", {**ULTRALYTICS, "spatial_order": ["max", "mean"]}),
    ],
)
def test_the_statistics_that_their_keys_name_meet_the_right_weights(name, options, x):
    theirs, ours = made(PAIRS[name][0]).eval(), CBAM(C, **options).double().eval()
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x))
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("fc", [("fc1", "fc2"), ("fc.0", "fc.2")])
@pytest.mark.parametrize("names", [("ca", "sa.conv"), ("channel_attention", "spatial_attention.conv1")])
def test_keys_of_copies(names, fc):
    ours, own = CBAM(C, **COPIED), CBAM(C, **COPIED).state_dict()
    renamed = {
        f"{names[0]}.{fc[0]}.weight": own["fc1.weight"].flatten(1),
        f"{names[0]}.{fc[1]}.weight": own["fc2.weight"],
        f"{names[1]}.weight": own["conv.weight"],
    }
    ours.load_state_dict(renamed, strict=True)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in own.items())


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"bias": False}, "Unexpected"),
        ({"spatial_norm": False}, "Unexpected"),
        ({"channel_mlp": False}, "size mismatch"),
    ],
)
def test_weights_of_another_form_are_refused(options, missing):
    with pytest.raises(RuntimeError, match=missing):
        CBAM(C, **options).load_state_dict(made(PAIRS["official"][0]).state_dict(), strict=True)


def test_children_are_what_optimizers_and_wrappers_expect():
    layer = CBAM(C)
    assert {name: type(child) for name, child in layer.named_children()} == {
        "fc1": nn.Conv2d, "fc2": nn.Conv2d, "conv": nn.Conv2d, "bn": nn.BatchNorm2d,
    }  # fmt: skip
    assert layer.bn.momentum == 0.01
    assert layer.fc1.out_channels == C // 16
    assert CBAM(8).fc1.out_channels == 1
    assert [name for name, _ in CBAM(C, spatial=False).named_children()] == ["fc1", "fc2"]
    assert [name for name, _ in CBAM(C, **ULTRALYTICS).named_children()] == ["fc2", "conv"]
    assert CBAM(C, channel_mlp=False).pool_types == ("avg",)
    assert ChannelSpatialSE(C, 4).fc1.out_channels == ChannelSE(C, 4).fc1.out_channels == 8


def test_another_normalisation_is_called(x, calls):
    """As SyncBatchNorm, which takes the place of `bn`."""
    layer = made(LAYERS["cbam"])
    layer(x)
    seen = []

    class Sync(nn.BatchNorm2d):
        def forward(self, given):
            seen.append(given.shape)
            return super().forward(given)

    layer.bn, bn = Sync(1).double(), layer.bn
    layer.bn.load_state_dict(bn.state_dict())
    want = results(_unfused(copy.deepcopy(layer)), x)
    seen.clear()
    for _ in range(2):
        torch.testing.assert_close(results(layer, x)[0], want[0])
    assert seen == [(3, 1, 5, 7)] * 2
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(layer).bn, nn.SyncBatchNorm)
    layer.bn = None
    torch.testing.assert_close(results(layer, x)[:3], results(_unfused(layer), x)[:3])
    assert {call["op"] for call in calls} == {"cbam"}


def test_hooks_on_the_normalisation_run_with_the_op(x, calls):
    layer = made(LAYERS["cbam"])
    want = layer.eval()(x)
    layer(x)
    calls.clear()
    seen = []
    layer.bn.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(layer(x), want)
    assert seen == [(3, 1, 5, 7)]
    layer.bn.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(layer(x), _unfused(layer)(x))
    assert not calls  # by the guard


@pytest.mark.parametrize(("name", "child"), [
    *((name, child) for name in ("cbam", "both") for child in ("fc1", "fc2", "conv")), ("pixels", "conv"),
])  # fmt: skip
def test_hooks_on_children_run(name, child, x, calls):
    layer = made(LAYERS[name]).eval()
    want = layer(x)
    layer(x)
    calls.clear()
    seen = []
    handle = layer.get_submodule(child).register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), want)
    assert len(seen) == (2 if name == "cbam" and child != "conv" else 1)
    layer.get_submodule(child).register_full_backward_hook(lambda *_: seen.append(2))
    layer(x).sum().backward()
    assert 2 in seen
    assert not calls
    handle.remove()


@pytest.mark.parametrize("name", LAYERS)
def test_replaced_and_parametrised_children_run_one_after_the_other(name, x, calls):
    layer = made(LAYERS[name]).eval()
    layer(x)
    calls.clear()
    last = "conv" if getattr(layer, "conv", None) is not None else "fc2"
    setattr(layer, last, nn.Sequential(layer.get_submodule(last), nn.Tanh()))
    torch.testing.assert_close(layer(x), _unfused(layer)(x))
    layer = made(LAYERS[name]).eval()
    torch.nn.utils.parametrizations.weight_norm(layer.get_submodule(last))
    torch.testing.assert_close(layer(x), _unfused(layer)(x))
    assert not calls


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(2, 1, 4, padding="same", bias=False),
        nn.Conv2d(2, 1, 3, padding=2, dilation=2),
        nn.Conv2d(2, 1, (3, 5), padding=(1, 2)),
        nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 1, 17, padding=8),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_that_the_op_does_not_know_are_called(convolution, x, calls):
    layer = made(LAYERS["cbam"])
    layer.conv = convolution.double()
    torch.testing.assert_close(results(layer, x)[:3], results(_unfused(copy.deepcopy(layer)), x)[:3])
    assert not calls


def test_a_convolution_with_a_bias_and_same_padding_is_the_op_s(x, calls):
    layer = made(LAYERS["cbam"])
    layer.conv = nn.Conv2d(2, 1, 3, padding="same").double()
    torch.testing.assert_close(results(layer, x)[:3], results(_unfused(copy.deepcopy(layer)), x)[:3])
    assert len(calls) == 1


def test_options_may_be_changed(x, calls):
    layer = made(LAYERS["cbam"]).eval()
    layer(x)
    guard = layer.__dict__[_guard.NAME]
    for name, value in (("pool_types", ("max",)), ("spatial_order", ("mean", "max")), ("ties", "share")):
        setattr(layer, name, value)
        torch.testing.assert_close(
            results(layer, with_ties(2, C, 4, 4)), results(_unfused(layer), with_ties(2, C, 4, 4))
        )
        assert layer.__dict__[_guard.NAME] is not guard
        guard = layer.__dict__[_guard.NAME]
    layer = made(LAYERS["both"])
    layer(x)
    layer.merge = "add"
    torch.testing.assert_close(layer(x), _unfused(layer)(x))
    assert calls[-1]["merge"] == "add"


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_change_in_place_count(name, x):
    layer = made(LAYERS[name]).eval()
    layer(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(-2)
        torch.testing.assert_close(layer(x), _unfused(layer)(x))
    layer.float()
    torch.testing.assert_close(layer(x.float()), _unfused(layer)(x.float()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("name", LAYERS)
def test_copies_compute_the_same_with_children_of_their_own(name, copied, x):
    layer = made(LAYERS[name]).eval()
    want = layer(x)  # has a guard
    other = copied(layer)
    assert torch.equal(other(x), want)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.neg_()
    torch.testing.assert_close(other(x), _unfused(other)(x))
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize("name", ["cbam", "cbam, four pools", "both"])
def test_compiled_exported_and_scripted(name, x):
    layer = made(LAYERS[name]).eval()
    want = layer(x)
    torch._dynamo.reset()
    for captured in (
        torch.jit.script(layer),
        torch.jit.trace(layer, x),
        torch.fx.symbolic_trace(layer),
        torch.export.export(layer, (x,)).module(),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
    ):
        torch.testing.assert_close(captured(x), want)


@pytest.mark.parametrize("name", LAYERS)
def test_training_under_autocast(name):
    layer = LAYERS[name]().eval()
    x = torch.randn(2, C, 4, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), rtol=2e-2, atol=1e-2)
    assert {x.grad.dtype, *(parameter.grad.dtype for parameter in layer.parameters())} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CBAM(0), ValueError, "CBAM: channels: expected at least 1, got 0"),
        (lambda: CBAM(C, 4.0), TypeError, r"CBAM: reduction: expected an integer, got 4\.0"),
        (lambda: CBAM(C, pool_types="avg"), TypeError, "CBAM: pool_types: expected a sequence of names, got 'avg'"),
        (
            lambda: CBAM(C, pool_types=("avg", "mean")),
            ValueError,
            "CBAM: pool_types: expected .*'avg', 'max', 'lp'.*'lse'.*, got 'mean'",
        ),
        (
            lambda: CBAM(C, pool_types=()),
            ValueError,
            r"CBAM: pool_types: expected one or more different names, got \(\)",
        ),
        (
            lambda: CBAM(C, pool_types=("max",), channel_mlp=False),
            ValueError,
            r"CBAM: pool_types: expected the average alone, as channel_mlp is False, got \('max',\)",
        ),
        (
            lambda: CBAM(C, kernel_size=6),
            ValueError,
            "CBAM: kernel_size: expected an odd number, which keeps .*, got 6",
        ),
        (lambda: CBAM(C, kernel_size=17), ValueError, "CBAM: kernel_size: expected 1 to 15, got 17"),
        (
            lambda: CBAM(C, spatial_order=("max", "avg")),
            ValueError,
            r'CBAM: spatial_order: expected \("max", "mean"\) or \("mean", "max"\), got \(.*\)',
        ),
        (lambda: CBAM(C, ties="last"), ValueError, "CBAM: ties: expected .*'first' or 'share', got 'last'"),
        (lambda: CBAM(C, bn_momentum=0), ValueError, "CBAM: bn_momentum: expected a number above 0 .*, got 0"),
        (lambda: CBAM(C, spatial_norm=None), TypeError, "CBAM: spatial_norm: expected True or False, got None"),
        (lambda: ChannelSE(C, 0), ValueError, "ChannelSE: reduction: expected at least 1, got 0"),
        (lambda: SpatialSE("8"), TypeError, "SpatialSE: channels: expected an integer, got '8'"),
        (
            lambda: ChannelSpatialSE(C, merge="mul"),
            ValueError,
            "ChannelSpatialSE: merge: expected .*'max' or 'add', got 'mul'",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        make()


@pytest.mark.parametrize("name", LAYERS)
def test_bad_input(name):
    layer = LAYERS[name]()
    title = type(layer).__name__
    for x, error, message in (
        (None, TypeError, "x: expected a tensor, got None"),
        (torch.ones(2, C + 1, 3, 3), ValueError, r"x: expected a tensor \[N, 32, H, W\], got \[2, 33, 3, 3\]"),
        (
            torch.ones(2, C, 3, 3).double(),
            TypeError,
            "x: expected dtype torch.float32 as the weights, got torch.float64",
        ),
    ):
        for _ in range(2):
            with pytest.raises(error, match=f"^{title}: {message}$"):
                layer(x)
            layer(torch.ones(2, C, 3, 3))


def test_representation():
    assert "pool_types=('avg', 'max'), spatial_order=('max', 'mean'), ties='first'" in repr(CBAM(C))
    assert "merge='add'" in repr(ChannelSpatialSE(C, merge="add"))
