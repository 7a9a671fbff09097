"""timm: its squeeze-and-excitation modules, and the residual blocks that end in one.

In the residual blocks of ResNet and SENet the excitation is followed by the residual sum and a ReLU: the op does both
in the pass over the feature map that it makes anyway. (In RegNet's blocks a convolution comes after the excitation.)
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from ..layers._fusing import is_bare, pointwise_name, qualified_name
from ._adapter import Adapter
from ._excitation import Excitation, arguments_for, excitation, excite, forward_x
from ._swap import stock, swap_of

_ADD_MAXPOOL = "add_maxpool: the op's squeeze is the mean alone"
_DROP_PATH = "timm.layers.drop.DropPath"


def _se_module(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    norm = module._modules.get("bn")
    if norm.__class__ is not nn.Identity or not is_bare(norm):
        return f"it has a normalisation between the fully connected layers ({qualified_name(norm.__class__)})"
    return excitation(module, "fc1", "act", "fc2", "gate")


def _effective_se_module(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    return excitation(module, None, None, "fc", "gate")


def _efficientnet_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "conv_reduce", "act1", "conv_expand", "gate")


def _channels_last_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "fc1", "act", "fc2", "gate")


def _senet_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "fc1", "relu", "fc2", "sigmoid")


def _forward_channels_last(self: nn.Module, x: Tensor) -> Tensor:
    found = arguments_for(self, x)
    if found is None:
        return stock(self, x)
    # [N, H, W, C] as a channels_last view [N, C, H, W] and back: nothing is copied
    return excite(x.permute(0, 3, 1, 2), found, self._attnkernels.backend).permute(0, 2, 3, 1)


_EXCITATIONS = (
    Adapter(
        op="squeeze_excite",
        originals=("timm.layers.squeeze_excite.SEModule",),
        fingerprints=frozenset({"fb190f1b910feddb"}),
        arguments=_se_module,
        forward=forward_x,
    ),
    Adapter(
        op="squeeze_excite",
        originals=("timm.layers.squeeze_excite.EffectiveSEModule",),
        fingerprints=frozenset({"75c2f97745a738e5"}),
        arguments=_effective_se_module,
        forward=forward_x,
    ),
    Adapter(
        op="squeeze_excite",
        originals=("timm.models._efficientnet_blocks.SqueezeExcite",),
        fingerprints=frozenset({"3fc7ecc9056e103b"}),
        arguments=_efficientnet_se,
        forward=forward_x,
    ),
    Adapter(
        op="squeeze_excite",
        originals=("timm.layers.squeeze_excite.SqueezeExciteCl",),
        fingerprints=frozenset({"a16402619df6b4c4"}),
        arguments=_channels_last_se,
        forward=_forward_channels_last,
    ),
    Adapter(
        op="squeeze_excite",
        originals=("timm.models.senet.SEModule",),
        fingerprints=frozenset({"fe10b030028ce324"}),
        arguments=_senet_se,
        forward=forward_x,
    ),
)

# Swapped classes keep the original's name: one table serves a block before and after its excitation is swapped.
_ARGUMENTS = {
    name: adapter.arguments
    for adapter in _EXCITATIONS
    if adapter.forward is forward_x  # the blocks' maps are [N, C, H, W]
    for name in adapter.originals
}


@functools.cache
def _arguments_of(cls: type):
    return _ARGUMENTS.get(qualified_name(cls))


def _residual_block(originals: tuple[str, ...], fingerprints: frozenset[str], trunk: str, se: str, act: str) -> Adapter:
    """The adapter of a block that computes act(drop_path(se(trunk(x))) + downsample(x)).

    Args:
        originals: as in Adapter.
        fingerprints: as in Adapter.
        trunk: names of the children called one after the other before the excitation, in order.
        se: the excitation's name.
        act: the name of what is called last; the op does only ReLU.
    """
    steps = trunk.split()

    def arguments(block: nn.Module) -> Excitation | str:
        children = block._modules
        last, drop_path, excitation_module = children.get(act), children.get("drop_path"), children.get(se)
        if last is None or not is_bare(last) or pointwise_name(last.__class__) != "relu":
            return f"its {act} is not a bare ReLU, the excitation alone is replaced"
        if drop_path is not None and not _is_drop_path(drop_path):
            return f"its drop_path is a {qualified_name(drop_path.__class__)}, the excitation alone is replaced"
        excitation_arguments = _arguments_of(excitation_module.__class__)
        if excitation_arguments is None or not is_bare(excitation_module):
            return f"its {se} is not a bare squeeze-and-excitation module"
        return excitation_arguments(excitation_module)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        found = arguments_for(self, x)
        children = self._modules
        if found is None or swap_of(children[se]) is None or _drops(children.get("drop_path")):
            return stock(self, x)
        branch = x
        for step in steps:
            branch = children[step](branch)
        shortcut = x if self.downsample is None else self.downsample(x)
        if shortcut.shape != branch.shape or shortcut.dtype != branch.dtype:
            branch = children[se](branch)
            branch += shortcut
            return children[act](branch)
        # What a bare batch normalisation returns is new, and nobody else has it.
        last = children[steps[-1]]
        overwrite = last.__class__ is nn.BatchNorm2d and is_bare(last)
        return excite(
            branch, found, self._attnkernels.backend,
            overwrite=overwrite, residual=shortcut, output_activation="relu",
        )  # fmt: skip

    return Adapter(
        op="squeeze_excite",
        originals=originals,
        fingerprints=fingerprints,
        arguments=arguments,
        forward=forward,
        fuses=f"{se}, residual sum, {act}",
        children=(se,),
    )


def _is_drop_path(module: nn.Module) -> bool:
    return is_bare(module) and (module.__class__ is nn.Identity or qualified_name(module.__class__) == _DROP_PATH)


def _drops(drop_path: nn.Module | None) -> bool:
    """Whether a DropPath (or Identity) drops anything at this call."""
    return drop_path is not None and drop_path.training and getattr(drop_path, "drop_prob", 0) > 0


ADAPTERS = (
    *_EXCITATIONS,
    _residual_block(
        ("timm.models.resnet.BasicBlock",),
        frozenset({"3288850d8df1a42e"}),
        trunk="conv1 bn1 drop_block act1 aa conv2 bn2",
        se="se",
        act="act2",
    ),
    _residual_block(
        ("timm.models.resnet.Bottleneck",),
        frozenset({"6d54488cae3d17f7"}),
        trunk="conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3",
        se="se",
        act="act3",
    ),
    _residual_block(
        ("timm.models.senet.Bottleneck",),
        frozenset({"04b621b538d5f49b"}),
        trunk="conv1 bn1 relu conv2 bn2 relu conv3 bn3",
        se="se_module",
        act="relu",
    ),
    _residual_block(
        ("timm.models.senet.SEResNetBlock",),
        frozenset({"08ab28d12193cd93"}),
        trunk="conv1 bn1 relu conv2 bn2 relu",
        se="se_module",
        act="relu",
    ),
)
