"""The forwards that the adapters were written for, by the fingerprints of their methods.

`python -m tools.fingerprints` compares this table with the installed libraries and adds to it. Projects copy CCNet's
code, so its classes have no versions; "*" stands for any module.
"""

from __future__ import annotations

# ruff: noqa: E501
# fmt: off
# class, first and last version of its library in which this was seen, methods, fingerprints of the methods
TABLE: tuple[tuple[str, str, str, str, str], ...] = (
    ("timm.layers.squeeze_excite.SEModule", "0.9.16", "1.0.31", "forward", "fb190f1b910feddb"),
    ("timm.layers.squeeze_excite.EffectiveSEModule", "0.9.16", "1.0.31", "forward", "75c2f97745a738e5"),
    ("timm.layers.squeeze_excite.SqueezeExciteCl", "0.9.16", "1.0.31", "forward", "a16402619df6b4c4"),
    ("timm.models._efficientnet_blocks.SqueezeExcite", "0.9.16", "1.0.31", "forward", "3fc7ecc9056e103b"),
    ("timm.models.senet.SEModule", "0.9.16", "1.0.31", "forward", "fe10b030028ce324"),
    ("timm.models.resnet.BasicBlock", "0.9.16", "1.0.31", "forward", "3288850d8df1a42e"),
    ("timm.models.resnet.Bottleneck", "0.9.16", "1.0.31", "forward", "6d54488cae3d17f7"),
    ("timm.models.senet.Bottleneck", "0.9.16", "1.0.31", "forward", "04b621b538d5f49b"),
    ("timm.models.senet.SEResNetBlock", "0.9.16", "1.0.31", "forward", "08ab28d12193cd93"),
    ("timm.models._efficientnet_blocks.InvertedResidual", "1.0.9", "1.0.31", "forward", "b36de969f121dfad"),
    ("timm.models._efficientnet_blocks.InvertedResidual", "0.9.16", "1.0.3", "forward", "e18dc9ef41449010"),
    ("timm.models._efficientnet_blocks.DepthwiseSeparableConv", "1.0.9", "1.0.31", "forward", "3183d052e9dc88a1"),
    ("timm.models._efficientnet_blocks.DepthwiseSeparableConv", "0.9.16", "1.0.3", "forward", "5a062770c89218a3"),
    ("timm.models.regnet.Bottleneck", "0.9.16", "1.0.31", "forward", "e43c705d3ddaefeb"),
    ("timm.layers.norm_act.BatchNormAct2d", "0.9.16", "1.0.31", "forward", "0d7e1b90863ee56a"),
    ("timm.layers.conv_bn_act.ConvNormAct", "1.0.15", "1.0.31", "forward", "7c6a68737994e02e"),
    ("timm.layers.conv_bn_act.ConvNormAct", "1.0.9", "1.0.9", "forward", "c51dcfda133ec980"),
    ("timm.layers.conv_bn_act.ConvNormAct", "0.9.16", "1.0.3", "forward", "fdcdbb24fe1797de"),
    ("timm.layers.eca.EcaModule", "0.9.16", "1.0.31", "forward", "3b8929678c0d9ddd"),
    ("timm.layers.eca.CecaModule", "0.9.16", "1.0.31", "forward", "f1faf1062ec3a1fd"),
    ("timm.layers.selective_kernel.SelectiveKernel", "0.9.16", "1.0.31", "forward", "e0258011d5f74cf2"),
    ("timm.layers.selective_kernel.SelectiveKernelAttn", "0.9.16", "1.0.31", "forward", "1195856e8cf7c26a"),
    ("timm.layers.split_attn.SplitAttn", "0.9.16", "1.0.31", "forward", "da8369c5b743839a"),
    ("timm.layers.split_attn.RadixSoftmax", "0.9.16", "1.0.31", "forward", "bb22ba58254fb17c"),
    ("torchvision.ops.misc.SqueezeExcitation", "0.29.1", "0.29.1", "forward _scale", "626e2d738f67db18 88d633a715bdf28b"),
    ("torchvision.models.mobilenetv3.InvertedResidual", "0.29.1", "0.29.1", "forward", "dad34d6a3f767788"),
    ("torchvision.models.efficientnet.MBConv", "0.29.1", "0.29.1", "forward", "f9df31e4a0f85b5c"),
    ("torchvision.models.regnet.ResBottleneckBlock", "0.29.1", "0.29.1", "forward", "bbf23f11e30fbdec"),
    ("torch.nn.modules.container.Sequential", "2.14.1", "2.14.1", "forward", "e171bb8fd24ef696"),
    ("mmcv.ops.cc_attention.CrissCrossAttention", "", "", "forward", "19e0c4b51ccbf536"),
    ("*.CrissCrossAttention", "", "", "forward", "942befffc61a1ca1"),
    ("*.CC_module", "", "", "forward", "942befffc61a1ca1"),
    ("*.CrissCross", "", "", "forward", "942befffc61a1ca1"),
    ("*.INF", "", "", "INF", "430a40ddec5c3193"),
    ("*.INF", "", "", "INF", "335d54287b8bd140"),
)
# fmt: on

_known: dict[tuple[str, str], set[str]] = {}
for _name, _, _, _methods, _fingerprint in TABLE:
    _known.setdefault((_name, _methods), set()).add(_fingerprint)


def known(name: str, methods: tuple[str, ...] = ("forward",)) -> frozenset[str]:
    """The fingerprints of a class's methods for which there is an adapter, or of which one makes use."""
    return frozenset(_known.get((name, " ".join(methods)), ()))
