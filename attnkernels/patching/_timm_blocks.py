"""timm's blocks around a squeeze-and-excitation module.

In the residual blocks of ResNet and SENet the excitation is followed by the residual sum and a ReLU: the op does both
in the pass over the feature map that it makes anyway. In those of EfficientNet, MobileNetV3 and RegNet a convolution
comes after it.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers._excitation import OP, Excitation
from ..layers._fusing import is_bare, pointwise_name, qualified_name
from ..layers._look import current
from ._adapter import Adapter, fingerprint
from ._blocks import Chain, chain, chain_adapter, excite_over, look_anew, through
from ._excitation import arguments_for, excitation_inside, excite
from ._swap import stock, swap_of

_DROP_PATH = "timm.layers.drop.DropPath"
_CONV_NORM_ACT = "timm.layers.conv_bn_act.ConvNormAct"
_CONV_NORM_ACT_FORWARDS = frozenset({"7c6a68737994e02e", "c51dcfda133ec980", "fdcdbb24fe1797de"})  # the last to 1.0.3


def _residual_block(original: str, forward_fingerprint: str, trunk: str, se: str, act: str) -> Adapter:
    """The adapter of a block that computes act(drop_path(se(trunk(x))) + downsample(x)).

    Args:
        original: as in Adapter.
        forward_fingerprint: as in Adapter.
        trunk: names of the children called one after the other before the excitation, in order.
        se: the excitation's name.
        act: the name of what is called last; the op does only ReLU.
    """
    steps = trunk.split()

    def arguments(block: nn.Module) -> Excitation | str:
        last, drop_path = block._modules.get(act), block._modules.get("drop_path")
        if last is None or not is_bare(last) or pointwise_name(last.__class__) != "relu":
            return f"its {act} is not a bare ReLU, the excitation alone is replaced"
        if drop_path is not None and not _is_drop_path(drop_path):
            return f"its drop_path is a {qualified_name(drop_path.__class__)}, the excitation alone is replaced"
        return excitation_inside(block, se)

    def chain_of(block: nn.Module) -> Chain | str:
        obstacle = arguments(block)
        if isinstance(obstacle, str):
            return obstacle
        head = [block._modules[step] for step in steps]
        return chain(head, block, se, around=(block._modules[act], *_drop_path(block)))

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        children = self._modules
        look = current(self, x) or look_anew(self, x, chain_of, "relu", _drop_path(self))
        if look is not None:
            before, rest = look.extra.before, look.extra.fused
        else:
            found = arguments_for(self, x)
            if found is None or swap_of(children[se]) is None or _drops(children.get("drop_path")):
                return stock(self, x)
            before, rest = [children[step] for step in steps], [children[se]]
        branch = x
        for module in before:
            branch = module(branch)
        shortcut = x if self.downsample is None else self.downsample(x)
        if look is not None:
            if excite_over(look, branch, shortcut):
                return branch
        elif shortcut.shape == branch.shape and shortcut.dtype == branch.dtype:
            return excite(branch, found, self._attnkernels.backend, residual=shortcut, output_activation="relu")
        for module in rest:
            branch = module(branch)
        branch += shortcut
        return children[act](branch)

    return Adapter(
        op=OP,
        originals=(original,),
        fingerprints=frozenset({forward_fingerprint}),
        arguments=arguments,
        forward=forward,
        fuses=f"{se}, residual sum, {act}; in inference on a CPU the normalisation as well",
        within=lambda block: block._modules.get(se),
    )


def _drop_path(block: nn.Module) -> tuple[nn.Module, ...]:
    drop_path = block._modules.get("drop_path")
    return () if drop_path is None else (drop_path,)


def _is_drop_path(module: nn.Module) -> bool:
    return is_bare(module) and (module.__class__ is nn.Identity or qualified_name(module.__class__) == _DROP_PATH)


def _drops(drop_path: nn.Module | None) -> bool:
    """Whether a DropPath (or Identity) drops anything at this call."""
    return drop_path is not None and drop_path.training and getattr(drop_path, "drop_prob", 0) > 0


def _inverted_block(original: str, fingerprints: set[str], head: str, after: str) -> Adapter:
    """The adapter of a block that computes drop_path(after(se(head(x)))) + x, the sum where has_skip.

    Args:
        original: as in Adapter.
        fingerprints: as in Adapter.
        head: names of the children called before the excitation, in order; not all versions have all of them.
        after: names of the children called after it.
    """

    def chain_of(block: nn.Module) -> Chain | str:
        def named(names: str) -> list[nn.Module]:
            return [child for name in names.split() if (child := block._modules.get(name)) is not None]

        return chain(named(head), block, "se", named(after))

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        result = through(self, x, chain_of)
        if result is None:
            return stock(self, x)
        return self.drop_path(result) + x if self.has_skip else result

    return chain_adapter(original, fingerprints, chain_of, forward, _se)


def _regnet_chain(block: nn.Module) -> Chain | str:
    inner = block.conv2
    if qualified_name(inner.__class__) != _CONV_NORM_ACT or fingerprint(inner.__class__) not in _CONV_NORM_ACT_FORWARDS:
        return f"its conv2 is not the {_CONV_NORM_ACT} this was written for"
    steps = (block.conv1, *(inner._modules.get(name) for name in ("conv", "bn", "aa")))
    return chain([step for step in steps if step is not None], block, "se", (block.conv3,), (inner,))


def _forward_regnet(self: nn.Module, x: Tensor) -> Tensor:
    result = through(self, x, _regnet_chain)
    if result is None:
        return stock(self, x)
    if self.downsample is not None:
        result = self.drop_path(result) + self.downsample(x)
    return self.act3(result)


def _se(block: nn.Module) -> nn.Module | None:
    return block._modules.get("se")


ADAPTERS = (
    _residual_block(
        "timm.models.resnet.BasicBlock",
        "3288850d8df1a42e",
        trunk="conv1 bn1 drop_block act1 aa conv2 bn2",
        se="se",
        act="act2",
    ),
    _residual_block(
        "timm.models.resnet.Bottleneck",
        "6d54488cae3d17f7",
        trunk="conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3",
        se="se",
        act="act3",
    ),
    _residual_block(
        "timm.models.senet.Bottleneck",
        "04b621b538d5f49b",
        trunk="conv1 bn1 relu conv2 bn2 relu conv3 bn3",
        se="se_module",
        act="relu",
    ),
    _residual_block(
        "timm.models.senet.SEResNetBlock",
        "08ab28d12193cd93",
        trunk="conv1 bn1 relu conv2 bn2 relu",
        se="se_module",
        act="relu",
    ),
    _inverted_block(
        "timm.models._efficientnet_blocks.InvertedResidual",
        {"b36de969f121dfad", "e18dc9ef41449010"},  # the second to 1.0.3
        head="conv_s2d bn_s2d conv_pw bn1 conv_dw bn2 aa",
        after="conv_pwl bn3",
    ),
    _inverted_block(
        "timm.models._efficientnet_blocks.DepthwiseSeparableConv",
        {"3183d052e9dc88a1", "5a062770c89218a3"},
        head="conv_s2d bn_s2d conv_dw bn1 aa",
        after="conv_pw bn2",
    ),
    chain_adapter("timm.models.regnet.Bottleneck", {"e43c705d3ddaefeb"}, _regnet_chain, _forward_regnet, _se),
)
