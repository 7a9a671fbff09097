"""Small models of timm and torchvision, and a record of the calls that reach the op."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

import attnkernels
from attnkernels import _load, backends
from attnkernels.patching._dispatch import release

MISSING = "_C_cpu.so was not built (no compiler)"


def tiny_seresnet(block: str = "basic", **options) -> nn.Module:
    """timm's ResNet with squeeze-and-excitation, one narrow block a stage."""
    name = {"basic": "seresnet18", "bottleneck": "seresnet50"}[block]
    return timm.create_model(name, layers=(1, 2, 1, 1), channels=(8, 16, 24, 32), num_classes=10, **options)


def _timm(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **options)


# name: (constructor, attention modules, blocks that do more than their attention module at once)
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet basic": (tiny_seresnet, 5, 5),
    "resnet bottleneck": (lambda: tiny_seresnet("bottleneck"), 5, 5),
    "resnet effective se": (lambda: tiny_seresnet(block_args={"attn_layer": "ese"}), 5, 5),
    "senet basic": (_timm("legacy_seresnet18", layers=(1, 1, 1, 1)), 4, 4),
    "senet bottleneck": (_timm("legacy_seresnext26_32x4d", layers=(1, 1, 1, 1)), 4, 4),
    "timm efficientnet_b0": (_timm("efficientnet_b0"), 16, 16),
    "timm mobilenetv3": (_timm("mobilenetv3_small_050"), 9, 9),
    "timm regnety": (_timm("regnety_002"), 13, 13),
    "timm ese_vovnet": (_timm("ese_vovnet19b_slim_dw"), 4, 0),
    "torchvision mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 9, 9),
    "torchvision efficientnet": (lambda: torchvision.models.efficientnet_b0(num_classes=10), 16, 16),
    "torchvision regnet": (lambda: torchvision.models.regnet_y_400mf(num_classes=10), 16, 16),
}


def randomized(model: nn.Module) -> nn.Module:
    """The model with every parameter random: some start at zero, and would hide what comes before them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.2 * (noise - 0.3) if parameter.dim() == 1 else 0.02 * (noise - 0.5))
    return model


class ExactHardsigmoid(nn.Module):
    """clamp(v/6 + 1/2, 0, 1). PyTorch's own has a float64 gradient with 1/6 rounded to float32, 3e-8 off."""

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return (v / 6 + 0.5).clamp(0, 1)


def exact(model: nn.Module) -> nn.Module:
    """A copy of the model with an exact hard sigmoid: what float64 results are held to."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Hardsigmoid:
                setattr(parent, name, ExactHardsigmoid())
    return model


@pytest.fixture
def own_forwards():
    """Classes run their own forwards when the test starts, whatever tests before it have left patched."""
    kinds = {id(cls) for cls in _subclasses(nn.Module)}
    release([module for module in gc.get_objects() if id(type(module)) in kinds])


def _subclasses(cls: type) -> set[type]:
    direct = type.__subclasses__(cls)
    return {cls}.union(*map(_subclasses, direct)) if direct else {cls}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomized(tiny_seresnet().double()).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def no_libraries(monkeypatch):
    """The process as if no library had been built, and no GPU were there."""
    monkeypatch.setattr(_load, "_loaded", set())
    monkeypatch.setattr(_load, "_missing", {"cpu": MISSING, "cuda": "_C_cuda.so was not built"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backends, "triton_missing", lambda: "torch sees no GPU")
    with attnkernels.use_backend("auto"):  # whatever ATTNKERNELS_BACKEND says
        yield


@pytest.fixture
def elsewhere(no_libraries, monkeypatch):
    """As if Triton could run on a GPU of this machine, which the tests never use."""
    monkeypatch.setattr(backends, "triton_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("CUDA was initialised"))
