"""torchvision: SqueezeExcitation, and the blocks of MobileNetV3, EfficientNet and RegNet around one.

These blocks are Sequentials inside a parent. The parent is served: a forward on nn.Sequential itself would be on
everybody's way.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._guard import Guard
from .._modules import has_its, is_bare, qualified_name
from ..layers._excitation import Excitation, excitation
from ._adapter import Adapter, fingerprint
from ._blocks import Pattern, block_adapter, pattern, through
from ._excitation import excitation_adapter, is_excitation

_SEQUENTIAL_FORWARDS = frozenset({"e171bb8fd24ef696"})
_CONVOLUTION_NORM_ACTIVATION = "torchvision.ops.misc.Conv2dNormActivation"  # a Sequential, with Sequential's forward


def _excitation(module: nn.Module) -> Excitation | str:
    squeeze = module._modules.get("avgpool")
    if squeeze.__class__ is not nn.AdaptiveAvgPool2d or squeeze.output_size not in (1, (1, 1)) or not is_bare(squeeze):
        return "its avgpool is not a bare AdaptiveAvgPool2d(1)"
    if "_scale" in module.__dict__ or not has_its("_scale", module.__class__):
        return "its _scale is not the one this was written for"
    return excitation(module, "fc1", "activation", "fc2", "scale_activation", own=("_scale",), methods=("_scale",))


def _block(
    original: str, forward_fingerprint: str, name: str, forward: Callable[[nn.Module, Tensor, Guard], Tensor]
) -> Adapter:
    """The adapter of a block around a Sequential.

    Args:
        original: as in Adapter.
        forward_fingerprint: as in Adapter.
        name: of the Sequential in the block.
        forward: as in block_adapter.
    """

    def pattern_of(block: nn.Module) -> Pattern | str:
        sequence = block._modules.get(name)
        if fingerprint(sequence.__class__) not in _SEQUENTIAL_FORWARDS:
            return f"its {name} is no Sequential"
        found = _sequence_pattern(sequence)
        return f"in its {name}, {found}" if isinstance(found, str) else found

    def excitation_of(block: nn.Module) -> nn.Module | None:
        sequence = block._modules.get(name)
        return None if sequence is None else next(filter(is_excitation, sequence._modules.values()), None)

    return block_adapter(original, {forward_fingerprint}, pattern_of, forward, excitation_of)


def _sequence_pattern(sequence: nn.Module) -> Pattern | str:
    """Around the first squeeze-and-excitation of a Sequential."""
    names, children = list(sequence._modules), list(sequence._modules.values())
    position = next((i for i, child in enumerate(children) if is_excitation(child)), None)
    if position is None:
        return "it has no squeeze-and-excitation module"
    head, around = children[:position], [sequence]
    if head and qualified_name(head[-1].__class__) == _CONVOLUTION_NORM_ACTIVATION:
        around.append(head[-1])
        head[-1:] = head[-1]._modules.values()
    return pattern(head, sequence, names[position], children[position + 1 :], around)


def _mobilenet(block: nn.Module, x: Tensor, guard: Guard) -> Tensor:
    result = through(guard, x)
    if block.use_res_connect:
        result += x
    return result


def _efficientnet(block: nn.Module, x: Tensor, guard: Guard) -> Tensor:
    result = through(guard, x)
    if block.use_res_connect:
        result = block.stochastic_depth(result)
        result += x
    return result


def _regnet(block: nn.Module, x: Tensor, guard: Guard) -> Tensor:
    shortcut = x if block.proj is None else block.proj(x)
    return block.activation(shortcut + through(guard, x))


ADAPTERS: tuple[Adapter, ...] = (
    excitation_adapter(
        "torchvision.ops.misc.SqueezeExcitation",
        "626e2d738f67db18 88d633a715bdf28b",
        _excitation,
        methods=("forward", "_scale"),
    ),
    _block("torchvision.models.mobilenetv3.InvertedResidual", "dad34d6a3f767788", "block", _mobilenet),
    _block("torchvision.models.efficientnet.MBConv", "f9df31e4a0f85b5c", "block", _efficientnet),
    _block("torchvision.models.regnet.ResBottleneckBlock", "bbf23f11e30fbdec", "f", _regnet),
)
