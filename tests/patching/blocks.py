"""Blocks that run as one operator in inference on a CPU, and a record of the operators that ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import timm
import torch
from timm.models import regnet, resnet, senet
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import nn
from torchvision.models import mobilenetv3
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.models.regnet import ResBottleneckBlock

from benchmarks.folding import folded

BLOCK, MODULE = "squeeze_excite_", "squeeze_excite"

# Each on [N, 16, H, W].
BLOCKS = {
    "resnet basic": lambda: resnet.BasicBlock(16, 16, attn_layer="se"),
    "resnet bottleneck": lambda: resnet.Bottleneck(16, 4, attn_layer="se", drop_path=timm.layers.DropPath(0.2)),
    "senet basic": lambda: senet.SEResNetBlock(16, 16, 1, 4),
    "senet bottleneck": lambda: senet.SEBottleneck(16, 4, 1, 4),
    "inverted residual": lambda: InvertedResidual(16, 16, se_layer=SqueezeExcite, act_layer=nn.SiLU),
    "inverted residual, same padding": lambda: InvertedResidual(
        16,
        8,
        stride=2,
        pad_type="same",
        act_layer=nn.Hardswish,
        se_layer=partial(SqueezeExcite, force_act_layer=nn.ReLU, gate_layer="hard_sigmoid"),
    ),
    "depthwise separable": lambda: DepthwiseSeparableConv(16, 16, se_layer=SqueezeExcite),
    "regnet": lambda: regnet.Bottleneck(16, 16, group_size=8, downsample=None),
    "regnet, projected": lambda: regnet.Bottleneck(16, 32, stride=2, group_size=8),
    "torchvision MBConv": lambda: MBConv(
        MBConvConfig(4, 3, 1, 16, 16, 1), stochastic_depth_prob=0.2, norm_layer=nn.BatchNorm2d
    ),
    "torchvision mobilenet": lambda: mobilenetv3.InvertedResidual(
        mobilenetv3.InvertedResidualConfig(16, 3, 24, 16, True, "HS", 1, 1, 1.0), nn.BatchNorm2d
    ),
    "torchvision mobilenet, no residual": lambda: mobilenetv3.InvertedResidual(
        mobilenetv3.InvertedResidualConfig(16, 5, 16, 24, True, "RE", 2, 1, 1.0), nn.BatchNorm2d
    ),
    "torchvision regnet": lambda: ResBottleneckBlock(16, 16, 1, nn.BatchNorm2d, nn.ReLU, 8, 1.0, 0.25),
    "torchvision regnet, projected": lambda: ResBottleneckBlock(16, 32, 2, nn.BatchNorm2d, nn.ReLU, 8, 1.0, 0.25),
}

FOLDED = [f"{name}, folded" for name in BLOCKS]  # their batch normalisations are in the convolutions


@contextmanager
def operators() -> Iterator[list[str]]:
    """The names of this library's operators that run; complete when the context ends.

    Taken by the profiler, because a dispatch mode, which could also tell, keeps blocks from running as one operator.
    """
    names: list[str] = []
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        yield names
    namespace = "attnkernels::"
    # Of the results as they are: function_events takes a hundred times as long as the block to make of a thousand calls.
    for event in sorted(profile.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name().startswith(namespace):
            names.append(event.name().removeprefix(namespace))


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A block whose every number counts."""
    torch.manual_seed(0)
    block = BLOCKS[name.removesuffix(", folded")]().eval().to(dtype)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return folded(block, torch.randn(1, 16, 9, 7, dtype=dtype)) if name in FOLDED else block


def run(block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """A block's result in inference, and the operators that ran; its input is as it was."""
    kept = x.clone()
    with torch.no_grad(), operators() as seen:
        y = block(x)
    assert torch.equal(x, kept)
    return y, seen


def hook(module: nn.Module) -> list:
    """A forward hook that keeps what it sees, and a copy of it."""
    seen: list = []
    module.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    return seen
