"""Nothing that a module caches keeps it alive: `del model` frees it at once, without the garbage collector."""

from __future__ import annotations

import gc
import weakref

import pytest
import timm
import torch
import torchvision
from patching.blocks import BLOCKS, made
from patching.conftest import MODELS
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from torch import nn
from torchvision.ops.misc import SqueezeExcitation

import attnkernels
from attnkernels.patching import _adapter

IMAGE = (2, 3, 48, 48)
CASES = {name: (make, IMAGE) for name, (make, _, _) in MODELS.items()}
CASES |= {
    "skresnet18": (lambda: timm.create_model("skresnet18"), IMAGE),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(), IMAGE),
    "timm SEModule": (lambda: SEModule(16), (2, 16, 5, 5)),
    "timm EffectiveSEModule": (lambda: EffectiveSEModule(16), (2, 16, 5, 5)),
    "torchvision SqueezeExcitation": (lambda: SqueezeExcitation(16, 4), (2, 16, 5, 5)),
    "own layer": (lambda: attnkernels.layers.SqueezeExcite(16), (2, 16, 5, 5)),
    "block": (lambda: made("resnet basic", torch.float32), (2, 16, 5, 5)),
}


@pytest.fixture
def uncollected():
    gc.disable()  # what others left for it may stay: the tests look at modules of their own
    yield
    gc.enable()


def _called(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    model.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            model(x)
            model(x)
    model.train()
    model(x).sum().backward()
    model.eval()
    with torch.no_grad():
        model(x)


@pytest.mark.parametrize("unpatched", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_model_dies_with_its_last_name(name, unpatched, uncollected):
    make, shape = CASES[name]
    model = make()
    attnkernels.patch(model)
    _called(model, shape)
    if unpatched:
        attnkernels.unpatch(model)
    alive = [weakref.ref(module) for module in model.modules()]
    del model
    assert not [ref() for ref in alive if ref() is not None]


@pytest.mark.parametrize("name", BLOCKS)
def test_guards_hold_no_module_above_them(name, uncollected):
    block = made(name)
    attnkernels.patch(block)
    with torch.no_grad():
        block(torch.randn(2, 16, 9, 7, dtype=torch.float64))
    children, alive = list(block.children()), weakref.ref(block)
    del block
    assert alive() is None
    assert children


def test_replaced_forwards_and_masks_are_not_kept_by_their_fingerprints(uncollected):
    class Masked(nn.Module):
        def mask(self):
            return 1

    def fingerprinted() -> list[weakref.ref]:
        module, held = Masked(), torch.ones(1)

        def forward(self, x):
            return held + module.mask()

        assert _adapter.source_fingerprint(module.mask) == _adapter.source_fingerprint(Masked.mask)
        assert _adapter.source_fingerprint(forward)
        return [weakref.ref(module), weakref.ref(held)]

    assert [ref() for ref in fingerprinted()] == [None, None]
