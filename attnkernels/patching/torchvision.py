"""torchvision: SqueezeExcitation (MobileNetV3, EfficientNet, RegNet), and the Sequential around one."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers._fusing import is_bare, qualified_name
from ._adapter import Adapter
from ._blocks import Chain, chain, through
from ._excitation import OP, Excitation, excitation, excitation_adapter, forward_input, is_excitation
from ._swap import stock

_CONVOLUTION_NORM_ACTIVATION = "torchvision.ops.misc.Conv2dNormActivation"  # a Sequential, with Sequential's forward


def _excitation(module: nn.Module) -> Excitation | str:
    squeeze = module._modules.get("avgpool")
    if squeeze.__class__ is not nn.AdaptiveAvgPool2d or squeeze.output_size not in (1, (1, 1)) or not is_bare(squeeze):
        return "its avgpool is not a bare AdaptiveAvgPool2d(1)"
    return excitation(module, "fc1", "activation", "fc2", "scale_activation")


def _excitation_in_sequence(sequence: nn.Module) -> str:
    """The name of a Sequential's first squeeze-and-excitation; empty where it has none."""
    return next((name for name, child in sequence._modules.items() if is_excitation(child)), "")


def _chain(sequence: nn.Module) -> Chain | str:
    name = _excitation_in_sequence(sequence)
    if not name:
        return "it has no squeeze-and-excitation module"
    names, children = list(sequence._modules), list(sequence._modules.values())
    position = names.index(name)
    head, container = children[:position], ()
    if head and qualified_name(head[-1].__class__) == _CONVOLUTION_NORM_ACTIVATION:
        container = (head[-1],)
        head[-1:] = head[-1]._modules.values()
    return chain(head, sequence, name, children[position + 1 :], container)


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
    Adapter(
        op=OP,
        originals=("torch.nn.modules.container.Sequential",),
        fingerprints=frozenset({"e171bb8fd24ef696"}),
        arguments=_chain,
        forward=_forward_sequence,
        fuses="normalisation, activation, excitation (inference on a CPU)",
        within=lambda sequence: sequence._modules.get(_excitation_in_sequence(sequence)),
    ),
)
