"""Squeeze-and-excitation as a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import affine, are_ordinary, is_bare, pointwise_name
from ..ops import _checks, squeeze_excite
from ._excitation import excitation
from ._gated import GatedLayer, cache_gated
from ._upstream_keys import as_convolutions, rename

_NAME = "SqueezeExcite"
_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
_GATES = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}

# timm's EfficientNet, moskomule's senet.pytorch, NVIDIA's examples, lukemelas' EfficientNet, mmseg and mmpretrain, and
# fvcore
_ALIASES = {
    "fc1": ("conv_reduce", "fc.0", "squeeze", "_se_reduce", "conv1.conv", "block.0"),
    "fc2": ("conv_expand", "fc.2", "expand", "_se_expand", "conv2.conv", "block.2"),
}


class SqueezeExcite(GatedLayer):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): y = x * gate(fc2(act(fc1(mean_hw(x))))).

    `load_state_dict(strict=True)` takes this layer's own keys (`fc1`, `fc2`: also those of timm's `SEModule` and
    torchvision's `SqueezeExcitation`) and those of timm's EfficientNet (`conv_reduce`, `conv_expand`), moskomule's
    `SELayer` (`fc.0`, `fc.2`), NVIDIA's examples (`squeeze`, `expand`), lukemelas' EfficientNet (`_se_reduce`,
    `_se_expand`), mmseg (`conv1.conv`, `conv2.conv`) and fvcore (`block.0`, `block.2`), with weights of convolutions
    [rd, C, 1, 1] or of fully connected layers [rd, C]; also where the layer is a part of a bigger model.
    Implementations without biases (moskomule's) need `bias=False`, those with another reduced width its number as
    `rd_channels`.

    `fc1` and `fc2` are ordinary `nn.Conv2d`; where they (or `act` and `gate`) carry hooks or were replaced by modules
    of other classes, the children are called one by one instead of the fused op.

    Shapes:
        x: [N, C, H, W] with C = channels, any strides; result: the same shape, dtype and memory format.
        fc1.weight: [rd, C, 1, 1], fc1.bias: [rd], fc2.weight: [C, rd, 1, 1], fc2.bias: [C].

    Args:
        channels: C.
        rd_ratio: the reduced width is round(C * rd_ratio), at least 1.
        rd_channels: the reduced width rd itself; wins over `rd_ratio`.
        bias: whether fc1 and fc2 have biases.
        act: "relu", "silu", or a module class, made without arguments; classes other than nn.ReLU and nn.SiLU run in
            plain PyTorch, with the whole op (slower).
        gate: "sigmoid", "hard_sigmoid", or a module class; others than nn.Sigmoid and nn.Hardsigmoid as for `act`.

    Raises:
        TypeError: a width is no integer; rd_ratio is no number, bias no bool, act or gate neither a name nor a module
            class.
        ValueError: a width below 1, a ratio that is not above 0 and up to 1, or an unknown name.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        bias: bool = True,
        act: str | type[nn.Module] = "relu",
        gate: str | type[nn.Module] = "sigmoid",
    ):
        super().__init__()
        channels = _checks.integer(_NAME, "channels", channels)
        if rd_channels is None:
            rd_channels = max(1, round(channels * _checks.ratio(_NAME, "rd_ratio", rd_ratio)))
        else:
            rd_channels = _checks.integer(_NAME, "rd_channels", rd_channels)
        bias = _checks.flag(_NAME, "bias", bias)
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias)
        self.act = _made("act", act, _ACTIVATIONS)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias)
        self.gate = _made("gate", gate, _GATES)

    def _considered(self, x: Tensor) -> Tensor:
        if not is_ordinary(x, PASSES_MODULES):
            return self._children_in_turn(x)
        found = excitation(self, "fc1", "act", "fc2", "gate")
        if not isinstance(found, str) and are_ordinary(*found.weights):
            cache_gated(self, x, found)
            return found(x)
        act, gate = self.act, self.gate
        reduce, expand = affine(self.fc1), affine(self.fc2)
        if reduce is None or expand is None or not is_bare(act) or not is_bare(gate):
            return self._children_in_turn(x)
        if not are_ordinary(*reduce, *expand):
            return self._children_in_turn(x)
        activation_name, gate_name = pointwise_name(act.__class__), pointwise_name(gate.__class__)
        return squeeze_excite(
            x,
            *reduce,
            *expand,
            activation=activation_name if activation_name in _ACTIVATIONS else act,
            gate=gate_name if gate_name in _GATES else gate,
        )

    def _first(self) -> tuple[nn.Module, int]:
        return self.fc1, 1

    def _children_in_turn(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename(state_dict, prefix, _ALIASES)
        as_convolutions(state_dict, prefix, _ALIASES)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _made(argument: str, value: str | type[nn.Module], names: dict[str, type[nn.Module]]) -> nn.Module:
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        _checks.choice(_NAME, argument, value, names, "a module class")
        return names[value]()
    try:
        return value()
    except TypeError:
        _checks.fail(
            _NAME, argument, "a module class that can be made without arguments", _checks.shown(value), TypeError
        )
