"""timm's blocks around a squeeze-and-excitation module.

In the residual blocks of ResNet and SENet the excitation is followed by the residual sum and a ReLU: the op does both
in the pass over the feature map that it makes anyway. In those of EfficientNet, MobileNetV3 and RegNet a convolution
comes after it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._guard import Guard
from .._modules import is_bare, pointwise_name, qualified_name
from ..layers._excitation import OP, Excitation
from ._adapter import Adapter, fingerprint
from ._blocks import Pattern, block_adapter, excite_over, match, pattern, through, to_convolution
from ._dispatch import backend_of, is_served
from ._excitation import excitation_inside, excite, fusable
from ._weights import unusual

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

    def passed(block: nn.Module) -> tuple[nn.Module, ...]:
        return block._modules[se], block._modules[act], *_drop_path(block)

    def pattern_of(block: nn.Module) -> Pattern | str:
        obstacle = arguments(block)
        if isinstance(obstacle, str):
            return obstacle
        head = [block._modules[step] for step in steps]
        return pattern(head, block, se, around=(block._modules[act], *_drop_path(block)))

    def fuses(block: nn.Module) -> str:
        found = pattern_of(block)
        alone = isinstance(found, str) or unusual(block, found)
        return f"{se}, residual sum, {act}" + ("" if alone else "; in inference on a CPU the normalisation as well")

    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        children = self._modules
        guard = match(self, x, pattern_of, "relu", _drop_path)
        if guard is not None:
            rest = guard.extra.fused
            branch, is_ours = to_convolution(guard.extra, x)
        else:
            found = fusable(self, x, arguments, passed)
            if found is None or not is_served(children[se]) or _drops(children.get("drop_path")):
                return original(self, x)
            rest = [children[se]]
            branch = x
            for step in steps:
                branch = children[step](branch)
        shortcut = x if self.downsample is None else self.downsample(x)
        if guard is not None:
            if is_ours and excite_over(guard, branch, shortcut):
                return branch
        elif shortcut.shape == branch.shape and shortcut.dtype == branch.dtype:
            return excite(branch, found, backend_of(self), residual=shortcut, output_activation="relu")
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
        fuses=fuses,
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

    def pattern_of(block: nn.Module) -> Pattern | str:
        def named(names: str) -> list[nn.Module]:
            return [child for name in names.split() if (child := block._modules.get(name)) is not None]

        return pattern(named(head), block, "se", named(after))

    def forward(block: nn.Module, x: Tensor, guard: Guard) -> Tensor:
        result = through(guard, x)
        return block.drop_path(result) + x if block.has_skip else result

    return block_adapter(original, fingerprints, pattern_of, forward, _se)


def _regnet_pattern(block: nn.Module) -> Pattern | str:
    inner = block.conv2
    if qualified_name(inner.__class__) != _CONV_NORM_ACT or fingerprint(inner.__class__) not in _CONV_NORM_ACT_FORWARDS:
        return f"its conv2 is not the {_CONV_NORM_ACT} this was written for"
    steps = (block.conv1, *(inner._modules.get(name) for name in ("conv", "bn", "aa")))
    return pattern([step for step in steps if step is not None], block, "se", (block.conv3,), (inner,))


def _regnet(block: nn.Module, x: Tensor, guard: Guard) -> Tensor:
    result = through(guard, x)
    if block.downsample is not None:
        result = block.drop_path(result) + block.downsample(x)
    return block.act3(result)


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
    block_adapter("timm.models.regnet.Bottleneck", {"e43c705d3ddaefeb"}, _regnet_pattern, _regnet, _se),
)
