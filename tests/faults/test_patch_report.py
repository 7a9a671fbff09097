"""What patch reports is what a call will do; every name of a module counts."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from patching.blocks import MODULE, made, run
from patching.conftest import tiny_seresnet
from timm.layers.split_attn import SplitAttn
from timm.layers.squeeze_excite import SEModule, SqueezeExciteCl
from torch import nn
from torchvision.ops.misc import SqueezeExcitation

import attnkernels
from attnkernels.patching._dispatch import is_flagged

ON_CPU = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")


class Subclass(torch.Tensor):
    pass


def _parameter(tensor):
    return nn.Parameter(tensor, requires_grad=False)


# What becomes of a weight, and what the report says of it.
WEIGHTS = {
    "sparse": (lambda w: _parameter(w.flatten(1).to_sparse()), "of layout torch.sparse_coo"),
    "compressed": (lambda w: _parameter(w.flatten(1).to_sparse_csr()), "of layout torch.sparse_csr"),
    "integer": (lambda w: _parameter(w.to(torch.int8)), "of dtype torch.int8"),
    "quantised": (
        lambda w: _parameter(torch.quantize_per_tensor(w.float(), 0.1, 0, torch.qint8)),
        "of dtype torch.qint8",
    ),
    "complex": (lambda w: _parameter(w.to(torch.complex64)), "of dtype torch.complex64"),
    "float8": (lambda w: _parameter(w.to(torch.float8_e4m3fn)), "of dtype torch.float8_e4m3fn"),
    "subclass": (lambda w: _parameter(w.as_subclass(Subclass)), "a .*Subclass"),
    "uninitialised": (lambda w: nn.UninitializedParameter(), "a .*UninitializedParameter"),
    "meta": (lambda w: _parameter(w.to("meta")), "device meta|its .* meta"),
    "of another dtype": (lambda w: _parameter(w.bfloat16()), "dtype torch"),
}
MODULES = {
    "timm": (lambda: SEModule(16), "fc1"),
    "timm, linear": (lambda: SqueezeExciteCl(16), "fc2"),
    "torchvision": (lambda: SqueezeExcitation(16, 4), "fc2"),
}


@pytest.mark.parametrize("what", WEIGHTS)
@pytest.mark.parametrize("kind", MODULES)
def test_weights_that_no_op_takes(kind, what):
    (make, layer), (change, reason) = MODULES[kind], WEIGHTS[what]
    module = make()
    module.get_submodule(layer).weight = change(module.get_submodule(layer).weight.detach())
    for dry_run in (True, False):
        report = attnkernels.patch(module, dry_run=dry_run)
        assert not report.replaced
        (skipped,) = report.skipped
        assert f"{layer}.weight" in skipped.reason
        assert re.search(reason, skipped.reason), skipped.reason
    assert not is_flagged(module)


@pytest.mark.parametrize("kind", MODULES)
def test_a_whole_module_of_another_kind(kind):
    make, _ = MODULES[kind]
    assert attnkernels.patch(make().to("meta")).replaced[0].backend == "reference", "until it has weights elsewhere"
    assert "complex" in attnkernels.patch(make().to(torch.complex64)).skipped[0].reason
    assert attnkernels.patch(make().to(torch.bfloat16)).replaced


def test_weights_that_become_sparse_after_patch_run_the_original():
    torch.manual_seed(0)
    module = SqueezeExciteCl(16, bias=False).requires_grad_(False)
    attnkernels.patch(module)
    x = torch.randn(2, 3, 3, 16)
    module(x)
    expected = attnkernels.unpatch(copy.deepcopy(module))(x)
    module.fc1.weight = _parameter(module.fc1.weight.detach().to_sparse_csr())
    for _ in range(2):
        torch.testing.assert_close(module(x), expected)


def test_branches_of_another_kind():
    assert attnkernels.patch(SplitAttn(8)).replaced
    assert "complex64" in attnkernels.patch(SplitAttn(8).to(torch.complex64)).skipped[0].reason
    mixed = SplitAttn(8, norm_layer=nn.BatchNorm2d).bfloat16()
    mixed.bn0.float()
    assert attnkernels.patch(mixed).replaced, "the op takes what the branches return"


@ON_CPU
@pytest.mark.parametrize("tensor", ["weight", "running_var"])
@pytest.mark.parametrize("name", ["inverted residual", "torchvision MBConv", "resnet basic", "regnet"])
def test_blocks_whose_normalisation_no_op_takes(name, tensor):
    block = made(name, torch.bfloat16)
    norm = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norm:
        if tensor == "weight":
            module.float()
        else:
            module.running_var = module.running_var.float()
            module.running_mean = module.running_mean.float()
    report = attnkernels.patch(block)
    x = torch.randn(2, 16, 9, 7, dtype=torch.bfloat16)
    by_name = {record.name: record for record in report.replaced}
    if name == "resnet basic":
        assert by_name[""].fuses == "se, residual sum, act2"
    else:
        assert "" not in by_name
        assert "dtype torch.float32" in report.skipped[0].reason or "dtype torch.bfloat16" in report.skipped[0].reason
    if tensor == "weight":  # which PyTorch's own normalisation takes
        for _ in range(2):
            assert run(block, x)[1][-1] == MODULE


def _shared() -> nn.Module:
    shared = SEModule(16)
    return nn.ModuleDict({"a": nn.Sequential(shared), "b": shared, "c": SEModule(16)})


@pytest.mark.parametrize("alias", ["a.0", "b", "a.*", "[ab]*"])
def test_every_name_of_a_shared_module_counts(alias):
    model = _shared()
    assert [record.name for record in attnkernels.patch(model, include=alias, dry_run=True).replaced] == ["a.0"]
    report = attnkernels.patch(model, exclude=alias)
    assert [record.name for record in report.replaced] == ["c"]
    assert [(record.name, record.reason) for record in report.skipped] == [("a.0", f"excluded by {alias!r}")]
    assert not is_flagged(model["b"])


def test_names_of_shared_blocks_reach_inside():
    model = tiny_seresnet()
    pair = nn.ModuleDict({"first": model, "again": model.layer1})
    report = attnkernels.patch(pair, include="again.0.se")
    assert [record.name for record in report.replaced] == ["first.layer1.0.se"]


def test_modules_in_a_circle():
    module = nn.Sequential(SEModule(16))
    module[0].parent_module = module
    assert [record.name for record in attnkernels.patch(module, include="0").replaced] == ["0"]
    attnkernels.unpatch(module)
