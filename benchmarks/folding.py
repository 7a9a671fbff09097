"""Batch normalisation folded into the convolutions before it, which every user of inference can do first."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a model in evaluation, without the batch normalisations that follow a convolution in a call on images.

    Each becomes an Identity. timm's BatchNormAct2d, which is a normalisation and an activation, becomes its activation.
    """
    model = copy.deepcopy(model).eval()
    replaced: dict[nn.Module, nn.Module] = {}
    for norm, convolution in _followed(model, images).items():
        replaced[convolution] = fuse_conv_bn_eval(convolution, norm)
        replaced[norm] = getattr(norm, "act", None) or nn.Identity()
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    return model


def _followed(model: nn.Module, images: Tensor) -> dict[nn.Module, nn.Module]:
    """The convolution that each batch normalisation follows; only where both are called once, on each other's map."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    found: dict[nn.Module, nn.Module] = {}
    called: list[nn.Module] = []

    def after(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        called.append(module)
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output  # which is kept, so that no other tensor gets its identity
        elif id(inputs[0]) in made:
            found[module] = made[id(inputs[0])][0]

    kinds = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    handles = [module.register_forward_hook(after) for module in kinds]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return {norm: conv for norm, conv in found.items() if called.count(norm) == called.count(conv) == 1}
