"""The forwards that the adapters were written for, by the fingerprints of their methods.

`python -m tools.fingerprints` compares this table with the installed libraries and adds to it. Projects copy the code of
CCNet, CBAM and scSE, so its classes have no versions; "*" stands for any module.
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
    ("timm.layers.cbam.CbamModule", "0.9.16", "1.0.31", "forward", "67960163a33a6d70"),
    ("timm.layers.cbam.ChannelAttn", "0.9.16", "1.0.31", "forward", "2d5246ef2af91041"),
    ("timm.layers.cbam.SpatialAttn", "0.9.16", "1.0.31", "forward", "69076c9e3abee837"),
    ("ultralytics.nn.modules.conv.CBAM", "8.0.100", "8.4.190", "forward", "e0f29a002e8ae316"),
    ("ultralytics.nn.modules.conv.ChannelAttention", "8.0.100", "8.4.190", "forward", "38dd6613a4f70f11"),
    ("ultralytics.nn.modules.conv.SpatialAttention", "8.0.100", "8.4.190", "forward", "e46562e804b14b61"),
    ("segmentation_models_pytorch.base.modules.SCSEModule", "0.2.0", "0.6.0", "forward", "a5787e1432a3a533"),
    ("monai.networks.blocks.squeeze_and_excitation.ChannelSELayer", "0.9.0", "1.6.1", "forward", "a2d606145078949c"),
    ("fvcore.nn.squeeze_excitation.ChannelSpatialSqueezeExcitation", "0.1.5.post20221221", "0.1.5.post20221221", "forward", "31f7a6b76f376f24"),
    ("fvcore.nn.squeeze_excitation.SqueezeExcitation", "0.1.5.post20221221", "0.1.5.post20221221", "forward", "ed4f217c2ae346a8"),
    ("fvcore.nn.squeeze_excitation.SpatialSqueezeExcitation", "0.1.5.post20221221", "0.1.5.post20221221", "forward", "bd2ee8b18e48c026"),
    ("*.CBAM", "", "", "forward", "52be08f33b914ae2"),
    ("*.ChannelGate", "", "", "forward", "884f287c8f9db7ca"),
    ("*.ChannelGate", "", "", "forward", "ea83660b04c7b5ce"),
    ("*.SpatialGate", "", "", "forward", "8c67f6b459628bc7"),
    ("*.SpatialGate", "", "", "forward", "fea0571673192c63"),
    ("*.ChannelPool", "", "", "forward", "25ba2fd70656f388"),
    ("*.BasicConv", "", "", "forward", "1121aa5b3d8808e1"),
    ("*.Flatten", "", "", "forward", "604244d27883c0de"),
    ("*.ChannelSpatialSELayer", "", "", "forward", "c1960c20f349071d"),
    ("*.ChannelSELayer", "", "", "forward", "fba1ca200d672d13"),
    ("*.SpatialSELayer", "", "", "forward", "48a18ff967c42c8a"),
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
