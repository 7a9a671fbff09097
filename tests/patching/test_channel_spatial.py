"""The adapters of cbam and scse: timm's modules, and stand-ins for those of other projects."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from layers import upstream_gates as upstream
from layers.test_channel_spatial import made
from layers.upstream_gates import with_ties
from timm.layers.cbam import CbamModule, ChannelAttn, LightCbamModule, SpatialAttn
from torch import nn

import attnkernels
from attnkernels.patching import _adapter, _fingerprints

C = 32
ULTRALYTICS, FVCORE = "ultralytics.nn.modules.conv", "fvcore.nn.squeeze_excitation"
OFFICIAL = ("CBAM", "ChannelGate", "SpatialGate", "ChannelPool", "BasicConv", "Flatten")
AI_MED = ("ChannelSpatialSELayer", "ChannelSELayer", "SpatialSELayer")
# The classes of stand-ins by the names under which the table of fingerprints has them.
STAND_INS = {
    **{f"*.{name}": getattr(upstream.official, name) for name in OFFICIAL},
    **{f"*.{name}": getattr(upstream.ai_med, name) for name in AI_MED},
    **{
        f"{module.__name__}.{name}": cls
        for module in (upstream.ultralytics, upstream.fvcore, upstream.smp, upstream.monai)
        for name, cls in vars(module).items()
        if isinstance(cls, type)
    },
}
# A module, the op that serves it, and whether it has a batch normalisation.
MODULES = {
    "timm": (lambda: CbamModule(C), "cbam", True),
    "timm, other sizes": (lambda: CbamModule(C, rd_channels=5, spatial_kernel_size=3, mlp_bias=True), "cbam", True),
    "timm, channels": (lambda: ChannelAttn(C), "cbam", False),
    "timm, pixels": (lambda: SpatialAttn(3), "cbam", True),
    "ultralytics": (lambda: upstream.ultralytics.CBAM(C), "cbam", False),
    "ultralytics, channels": (lambda: upstream.ultralytics.ChannelAttention(C), "squeeze_excite", False),
    "ultralytics, pixels": (lambda: upstream.ultralytics.SpatialAttention(3), "cbam", False),
    "official": (lambda: upstream.official.CBAM(C), "cbam", True),
    "official, maximum alone": (lambda: upstream.official.CBAM(C, 8, ["max"]), "cbam", True),
    "official, channels": (lambda: upstream.official.CBAM(C, no_spatial=True), "cbam", False),
    "ai-med": (lambda: upstream.ai_med.ChannelSpatialSELayer(C), "scse", False),
    "ai-med, channels": (lambda: upstream.ai_med.ChannelSELayer(C), "squeeze_excite", False),
    "smp": (lambda: upstream.smp.SCSEModule(C), "scse", False),
    "fvcore": (lambda: upstream.fvcore.ChannelSpatialSqueezeExcitation(C), "scse", False),
    "fvcore, channels": (lambda: upstream.fvcore.SqueezeExcitation(C), "squeeze_excite", False),
    "fvcore, pixels": (lambda: upstream.fvcore.SpatialSqueezeExcitation(C), "scse", False),
    "monai": (lambda: upstream.monai.ChannelSELayer(C), "squeeze_excite", False),
}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """The fingerprints of the stand-ins in place of the upstream ones."""
    for name, cls in STAND_INS.items():
        assert _fingerprints.known(name)
        monkeypatch.setitem(_fingerprints._known, (name, "forward"), {_adapter.fingerprint(cls)})


@pytest.fixture
def x():
    return torch.randn(3, C, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def results(model, x):
    """Output, gradients and buffers of one step."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])
    return y.detach(), grads, [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_the_same(name, training, layout, x, calls):
    make, op, has_norm = MODULES[name]
    module = made(make).train(training)
    original = copy.deepcopy(module)
    report = attnkernels.patch(module)
    assert [(record.name, record.op) for record in report.replaced] == [("", op)]
    assert not report.skipped
    x = x.contiguous(memory_format=layout)
    for given in (x, x, with_ties(*x.shape)):  # by name, then by the guard
        got, want = results(module, given), results(original, given)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        assert module(x).is_contiguous(memory_format=layout)
        original(x)
    assert [call["op"] for call in calls] == [op]
    assert bool(list(module.buffers())) is has_norm
    torch.testing.assert_close(list(module.buffers()), list(original.buffers()))


@pytest.mark.parametrize("name", ["timm", "ultralytics", "official", "ai-med", "smp", "fvcore"])
def test_unpatch_restores(name, x, calls):
    module = made(MODULES[name][0]).eval()
    want, keys = module(x), list(module.state_dict())
    attnkernels.patch(module)
    module(x)
    assert list(module.state_dict()) == keys
    calls.clear()
    assert torch.equal(attnkernels.unpatch(module)(x), want)
    assert not calls
    names = {name for part in module.modules() for name in part.__dict__}
    assert not any(name.startswith("_attnkernels") for name in names)


@pytest.mark.parametrize("training", [True, False])
def test_a_network(training, calls):
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18", layers=(1, 1, 1, 1), channels=(8, 16, 24, 32), num_classes=5, block_args={"attn_layer": "cbam"}
    )
    model = model.double().train(training)
    original, x = copy.deepcopy(model), torch.randn(2, 3, 48, 48, dtype=torch.float64)
    report = attnkernels.patch(model)
    assert [record.name for record in report.replaced] == [f"layer{i}.0.se" for i in range(1, 5)]
    assert {record.reason for record in report.skipped} == {
        "its se is no squeeze-and-excitation module, it alone is replaced"
    }
    assert "4 x timm CbamModule -> cbam" in str(report)
    assert all(record.is_block for record in report.skipped)
    torch.testing.assert_close(results(model, x), results(original, x), rtol=1e-7, atol=1e-8)
    assert [call["op"] for call in calls] == ["cbam"] * 4


def test_copies_are_served_and_independent(x, calls):
    module = made(MODULES["timm"][0])
    attnkernels.patch(module)
    module(x)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.channel.fc2.weight.neg_()
        want = attnkernels.unpatch(copy.deepcopy(other))(x)
    calls.clear()
    torch.testing.assert_close(other(x), want)
    assert len(calls) == 1


def changed(module, **attributes):
    """The module with other attributes or children; "__" in a name stands for a dot."""
    for name, value in attributes.items():
        parent, _, child = name.replace("__", ".").rpartition(".")
        setattr(module.get_submodule(parent), child, value)
    return module


class _OwnForward(CbamModule):
    def forward(self, x):
        return super().forward(x) + 1


def _timm_whole(**attributes):
    return changed(CbamModule(C), **attributes)


def _official(**attributes):
    return changed(upstream.official.CBAM(C), **attributes)


CONVOLUTION = "is not of two channels, square, of an odd size up to 15, and padded to the same size"
LEFT_ALONE = {
    "timm, gate": (lambda: CbamModule(C, gate_layer="hard_sigmoid"), "its channel.gate is not a sigmoid (torch.nn"),
    "timm, activation": (lambda: _timm_whole(channel__act=nn.SiLU()), "its channel.act is not a ReLU (torch.nn"),
    "timm, half of another kind": (
        lambda: _timm_whole(channel=LightCbamModule(C).channel),
        "its channel is not the timm.layers.cbam.ChannelAttn this was written for",
    ),
    "timm, norm": (
        lambda: _timm_whole(spatial__conv__bn=nn.GroupNorm(1, 1)),
        "its spatial.conv.bn is no batch normalisation (torch.nn.modules.normalization.GroupNorm)",
    ),
    "timm, filter": (lambda: _timm_whole(spatial__conv__aa=nn.AvgPool2d(1)), "its spatial.conv has a filter (torch.nn"),
    "timm, kernel": (lambda: CbamModule(C, spatial_kernel_size=17), f"its spatial.conv.conv {CONVOLUTION}"),
    "timm, subclass": (lambda: _OwnForward(C), "a subclass of timm.layers.cbam.CbamModule with a forward of its own"),
    "ultralytics, pool": (
        lambda: changed(upstream.ultralytics.CBAM(C), channel_attention__pool=nn.AdaptiveMaxPool2d(1)),
        "its channel_attention.pool is not a bare AdaptiveAvgPool2d(1)",
    ),
    "ultralytics, convolution": (
        lambda: changed(upstream.ultralytics.CBAM(C), spatial_attention__cv1=nn.Conv2d(2, 1, 4, padding=2)),
        f"its spatial_attention.cv1 {CONVOLUTION}",
    ),
    "official, pools": (
        lambda: upstream.official.CBAM(C, pool_types=["avg", "lse"]),
        "its pool_types are ['avg', 'lse'], not avg and max",
    ),
    "official, ReLU": (lambda: _official(SpatialGate__spatial__relu=nn.ReLU()), "its SpatialGate.spatial has a ReLU"),
    "official, other pool": (
        lambda: _official(SpatialGate__compress=nn.Identity()),
        "its SpatialGate.compress is not the ChannelPool this was written for",
    ),
    "official, longer": (
        lambda: _official(
            ChannelGate__mlp=nn.Sequential(
                upstream.official.Flatten(), nn.Linear(C, 2), nn.ReLU(), nn.ReLU(), nn.ReLU()
            )
        ),
        "its ChannelGate.mlp has other than 4 modules",
    ),
    "smp, pool": (
        lambda: changed(upstream.smp.SCSEModule(C), **{"cSE__0": nn.AdaptiveMaxPool2d(1)}),
        "its cSE.0 is not a bare AdaptiveAvgPool2d(1)",
    ),
    "smp, projection": (
        lambda: changed(upstream.smp.SCSEModule(C), **{"sSE__0": nn.Conv2d(C, 1, 3, padding=1)}),
        "its sSE.0 is not a 1x1 convolution to one channel (torch.nn",
    ),
    "fvcore, volumes": (lambda: upstream.fvcore.ChannelSpatialSqueezeExcitation(C, is_3d=True), "is_3d: the op takes"),
    "monai, residual": (
        lambda: upstream.monai.ChannelSELayer(C, add_residual=True),
        "it adds its input to the result (add_residual)",
    ),
    "monai, gate": (
        lambda: upstream.monai.ChannelSELayer(C, gate=nn.ReLU),
        "its fc.3 is not a sigmoid or hard sigmoid",
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone_with_the_reason(name):
    make, reason = LEFT_ALONE[name]
    report = attnkernels.patch(nn.Sequential(make()))
    assert "0" not in {record.name for record in report.replaced}
    skipped = {record.name: record.reason for record in report.skipped}
    assert skipped["0"].startswith(reason)


def test_another_class_of_a_name_is_left_alone():
    class CBAM(nn.Module):
        def forward(self, x):
            return x

    (skipped,) = attnkernels.patch(nn.Sequential(CBAM())).skipped
    assert "not the one this was written for" in skipped.reason


def test_variants_of_other_names_are_not_recognised():
    report = attnkernels.patch(nn.Sequential(upstream.copied.CBAM(C), upstream.ai_med.SpatialSELayer(C)))
    assert [record.name for record in report.skipped] == ["0"]
    assert not report.replaced


@pytest.mark.parametrize("by_guard", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda module: changed(module, channel__gate=nn.Softsign()),
        lambda module: changed(module, channel__act=nn.Tanh()),
        lambda module: changed(module, spatial__conv__conv=nn.Conv2d(2, 1, 3, padding=2, dilation=2)),
        lambda module: changed(module, spatial=nn.Identity()),
        lambda module: changed(module, spatial__conv__aa=nn.Tanh()),
        lambda module: module.channel.fc1.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda module: module.channel.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda module: module.spatial.conv.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda module: module.spatial.conv.bn.register_forward_hook(lambda module, inputs, output: 2 * output),
    ],
    ids=["gate", "act", "convolution", "half", "filter", "hook", "on half", "on convolution", "on normalisation"],
)
def test_changes_after_patching_are_honoured(change, by_guard, x):
    module = made(MODULES["timm"][0]).eval()
    attnkernels.patch(module)
    if by_guard:
        module(x)
    change(module)
    module.double()
    torch.testing.assert_close(module(x), attnkernels.unpatch(copy.deepcopy(module))(x))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("official", {"no_spatial": True}),
        ("official", {"ChannelGate__pool_types": ["max"]}),
        ("official", {"SpatialGate__spatial__relu": nn.ReLU()}),
        ("fvcore", {"spatial__block__1": nn.Tanh()}),
        ("smp", {"cSE__4": nn.Tanh()}),
        ("ai-med", {"sSE__sigmoid": nn.Tanh()}),
        ("ultralytics", {"channel_attention__act": nn.Tanh()}),
    ],
    ids=str,
)
def test_other_changes_after_patching_are_honoured(name, change, x):
    module = made(MODULES[name][0]).eval()
    attnkernels.patch(module)
    module(x)
    changed(module, **change)
    torch.testing.assert_close(module(x), attnkernels.unpatch(copy.deepcopy(module))(x))


def test_a_synchronised_batch_normalisation_is_called():
    module = nn.SyncBatchNorm.convert_sync_batchnorm(_official())
    (record,) = attnkernels.patch(module).replaced
    assert record.op == "cbam"
    assert isinstance(module.SpatialGate.spatial.bn, nn.SyncBatchNorm)


@pytest.mark.parametrize("half", ["channel", "spatial"])
def test_a_half_is_served_where_the_whole_is_not(half, x, calls):
    other = {"channel": "spatial", "spatial": "channel"}[half]
    model = made(lambda: nn.Sequential(CbamModule(C))).eval()
    changed(model, **{f"0__{other}__gate": nn.Softsign()})
    want = model(x)
    report = attnkernels.patch(model)
    assert [record.name for record in report.replaced] == [f"0.{half}"]
    assert [record.name for record in report.skipped] == ["0", f"0.{other}"]
    torch.testing.assert_close(model(x), want)
    assert len(calls) == 1


def test_an_excluded_half_keeps_the_whole_from_being_replaced(x, calls):
    model = made(lambda: nn.Sequential(CbamModule(C))).eval()
    want = model(x)
    for exclude in ("0.spatial", SpatialAttn):
        report = attnkernels.patch(model, exclude=exclude)
        assert [record.name for record in report.replaced] == ["0.channel"]
        reasons = {record.name: record.reason for record in report.skipped}
        named = "'0.spatial'" if isinstance(exclude, str) else "SpatialAttn"
        assert reasons == {
            "0": "its part 0.spatial is excluded",
            "0.spatial": f"excluded by {named}",
        }
        torch.testing.assert_close(model(x), want)
    assert {call["spatial_norm"] for call in calls} == {None}
    report = attnkernels.patch(model, include="0.spatial")
    assert [record.name for record in report.replaced] == ["0.spatial"]


@pytest.mark.parametrize("name", ["timm", "official", "smp"])
def test_other_inputs_run_the_original_forward(name, calls):
    module = MODULES[name][0]().eval()
    attnkernels.patch(module)
    with pytest.raises((RuntimeError, IndexError, ValueError)):  # PyTorch's own
        module(torch.ones(C, 5, 5, 5, 5))
    assert not calls
