"""torchvision: SqueezeExcitation (MobileNetV3, EfficientNet, RegNet), and the Sequential around one."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers._excitation import Excitation, excitation
from ..layers._fusing import is_bare, qualified_name
from ._blocks import Chain, chain, chain_adapter, through
from ._excitation import excitation_adapter, forward_input, is_excitation
from ._swap import stock

_CONVOLUTION_NORM_ACTIVATION = "torchvision.ops.misc.Conv2dNormActivation"  # a Sequential, with Sequential's forward


def _excitation(module: nn.Module) -> Excitation | str:
    squeeze = module._modules.get("avgpool")
    if squeeze.__class__ is not nn.AdaptiveAvgPool2d or squeeze.output_size not in (1, (1, 1)) or not is_bare(squeeze):
        return "its avgpool is not a bare AdaptiveAvgPool2d(1)"
    return excitation(module, "fc1", "activation", "fc2", "scale_activation")


def _chain(sequence: nn.Module) -> Chain | str:
    """Around the first squeeze-and-excitation of a Sequential."""
    names, children = list(sequence._modules), list(sequence._modules.values())
    position = next((i for i, child in enumerate(children) if is_excitation(child)), None)
    if position is None:
        return "it has no squeeze-and-excitation module"
    head, container = children[:position], ()
    if head and qualified_name(head[-1].__class__) == _CONVOLUTION_NORM_ACTIVATION:
        container = (head[-1],)
        head[-1:] = head[-1]._modules.values()
    return chain(head, sequence, names[position], children[position + 1 :], container)


def _excitation_of(sequence: nn.Module) -> nn.Module | None:
    """The excitation of a Sequential that can be served; any other Sequential is none of the report's business."""
    found = _chain(sequence)
    return None if isinstance(found, str) else found.fused[-1]


def _forward_sequence(self: nn.Module, input: Tensor) -> Tensor:
    result = through(self, input, _chain)
    return stock(self, input) if result is None else result


ADAPTERS = (
    excitation_adapter(
        "torchvision.ops.misc.SqueezeExcitation",
        "626e2d738f67db18 88d633a715bdf28b",
        _excitation,
        forward_input,
        methods=("forward", "_scale"),
    ),
    chain_adapter(
        "torch.nn.modules.container.Sequential", {"e171bb8fd24ef696"}, _chain, _forward_sequence, _excitation_of
    ),
)
