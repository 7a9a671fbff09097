"""The adapters of criss-cross attention, on stand-ins that compute what the upstream classes do in other words."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import attnkernels
from attnkernels.patching import _adapter, _fingerprints, criss_cross
from attnkernels.patching._registry import ADAPTERS

from .conftest import MISSING

MMCV, OFFICIAL = ADAPTERS["mmcv.ops.cc_attention.CrissCrossAttention"], ADAPTERS["*.CrissCrossAttention"]


def mask(height):
    return torch.diag(torch.tensor(-torch.inf).repeat(height), 0)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.6))

    def forward(self, x):
        return x * self.scale


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 2, 1)
        self.value_conv = nn.Conv2d(16, 16, 1)
        self.gamma = Scale()

    def attend(self, x, diagonal):
        height = x.shape[2]
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        column = torch.einsum("nchw,ncjw->nhwj", query, key) + diagonal[None, :, None, :].to(x.dtype)
        row = torch.einsum("nchw,nchj->nhwj", query, key)
        weights = torch.cat((column, row), -1).softmax(-1)
        out = torch.einsum("nhwj,ncjw->nchw", weights[..., :height], value)
        return out + torch.einsum("nhwj,nchj->nchw", weights[..., height:], value)


class OpenMMLab(Base):
    def forward(self, x):
        return self.gamma(self.attend(x, mask(x.shape[2]))) + x


OpenMMLab.__module__, OpenMMLab.__qualname__ = "mmcv.ops.cc_attention", "CrissCrossAttention"


class CrissCrossAttention(Base):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1,), 0.6))
        self.softmax = nn.Softmax(dim=3)
        self.INF = mask

    def forward(self, x):
        return self.gamma * self.attend(x, self.INF(x.shape[2])) + x


class TopK(CrissCrossAttention):
    def forward(self, x):
        return super().forward(x).relu()


TopK.__name__ = "CC_module"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """The fingerprints of the stand-ins in place of the upstream ones."""
    known = {("*.INF", "INF"): {_adapter.source_fingerprint(mask)}}
    for adapter, cls in {MMCV: OpenMMLab, OFFICIAL: CrissCrossAttention}.items():
        known |= {(name, "forward"): {_adapter.fingerprint(cls)} for name in adapter.originals}
    for key, value in known.items():
        monkeypatch.setitem(_fingerprints._known, key, value)


@pytest.fixture
def calls(monkeypatch):
    made = []
    op = criss_cross.criss_cross_attention

    def recorded(*args, **kwargs):
        made.append(kwargs)
        return op(*args, **kwargs)

    monkeypatch.setattr(criss_cross, "criss_cross_attention", recorded)
    return made


@pytest.mark.parametrize("cls", [OpenMMLab, CrissCrossAttention])
def test_same_outputs_and_gradients(cls, calls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), cls()).double()
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, *model.parameters()]
    want = model(x)
    want_grads = torch.autograd.grad(want.square().sum(), inputs)
    report = attnkernels.patch(model)
    assert [(r.name, r.op) for r in report.replaced] == [("1", "criss_cross_attention")]
    got = model(x)
    assert len(calls) == 1
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), inputs), want_grads)
    attnkernels.unpatch(model)
    assert type(model[1]) is cls
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("cls", [OpenMMLab, CrissCrossAttention])
def test_the_own_forward_runs_where_nothing_faster_could(cls, calls, elsewhere):
    torch.manual_seed(0)
    module, x = cls(), torch.randn(2, 16, 5, 7)
    want = module(x)
    assert attnkernels.patch(module).replaced
    assert torch.equal(module(x), want)
    assert not calls
    with attnkernels.use_backend("reference"):
        torch.testing.assert_close(module(x), want)
    assert len(calls) == 1
    # the mask is on the CPU, and would not let the own forward run
    assert module.to("meta")(x.to("meta")).shape == want.shape


@pytest.mark.parametrize("cls", [OpenMMLab, CrissCrossAttention])
def test_left_alone_without_libraries(cls, calls, no_libraries):
    module, x = cls(), torch.randn(2, 16, 5, 7)
    want = module(x)
    (skipped,) = attnkernels.patch(module).skipped
    assert MISSING in skipped.reason
    assert torch.equal(module(x), want)
    assert not calls


def test_compiled_models_take_the_op_too():
    torch._dynamo.reset()
    module = CrissCrossAttention().double()
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    want = module(x)
    attnkernels.patch(module)
    targets = []

    def seen_by(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend=seen_by)(x), want)
    if "cpu" in attnkernels.available_backends():
        assert any("criss_cross_attention" in target for target in targets)


def changed(**attributes):
    module = CrissCrossAttention()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def without(name):
    module = CrissCrossAttention()
    delattr(module, name)
    return module


UNCOVERED = {
    "variant": (TopK, "a subclass of .*CrissCrossAttention with a forward of its own|not the one this was written for"),
    "mask": (lambda: changed(INF=lambda height: torch.zeros(height, height)), r"its mask \(INF\) is not"),
    "softmax": (lambda: changed(softmax=nn.Softmax(dim=1)), "its softmax is not"),
    "gamma per channel": (lambda: changed(gamma=nn.Parameter(torch.ones(16))), "its gamma is not a single number"),
    "no key": (lambda: without("key_conv"), "it has no key_conv"),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_variants_under_the_same_name_are_left_alone(name):
    make, reason = UNCOVERED[name]
    model = nn.Sequential(make())
    cls = type(model[0])
    report = attnkernels.patch(model)
    assert not report.replaced
    assert re.search(reason, report.skipped[0].reason), report.skipped[0].reason
    assert type(model[0]) is cls


def test_mmcv_scale_of_another_kind_is_left_alone():
    module = OpenMMLab()
    module.gamma = nn.Identity()
    assert "its gamma is not a Scale module" in attnkernels.patch(module).skipped[0].reason


def test_changes_after_patching_are_honoured(calls):
    module = CrissCrossAttention()
    attnkernels.patch(module)
    module.softmax = nn.Softmax(dim=1)
    module(torch.randn(1, 16, 3, 4))
    assert not calls


def test_own_layer_is_not_mistaken_for_a_copy():
    report = attnkernels.patch(nn.Sequential(attnkernels.layers.CrissCrossAttention(16)))
    assert not report.replaced
    assert not report.skipped


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("kind", [OpenMMLab, CrissCrossAttention])
def test_onnx_export(kind, dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, x = kind().eval(), torch.randn(1, 16, 5, 7)
    want = module(x)
    assert attnkernels.patch(module).replaced
    path = str(tmp_path / "module.onnx")
    torch.onnx.export(module, (x,), path, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-5)
