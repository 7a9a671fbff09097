"""squeeze_excite in the blocks of timm and torchvision around a squeeze-and-excitation module, as data.

torchvision's are Sequentials inside a parent. The parent is served: a forward on nn.Sequential itself would be on
everybody's way.
"""

from __future__ import annotations

from functools import partial

from ._blocks import Block
from ._registry import register

_residual = partial(Block, shortcut="downsample", drop="drop_path", in_place=True)
_senet = partial(Block, gate="se_module", shortcut="downsample", act="relu")
_inverted = partial(Block, drop="drop_path", sums="has_skip")

for _block in (
    _residual("timm.models.resnet.BasicBlock", before="conv1 bn1 drop_block act1 aa conv2 bn2", act="act2"),
    _residual(
        "timm.models.resnet.Bottleneck", before="conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3", act="act3"
    ),
    _senet("timm.models.senet.Bottleneck", before="conv1 bn1 relu conv2 bn2 relu conv3 bn3"),
    _senet("timm.models.senet.SEResNetBlock", before="conv1 bn1 relu conv2 bn2 relu"),
    _inverted(
        "timm.models._efficientnet_blocks.InvertedResidual",
        before="conv_s2d? bn_s2d? conv_pw bn1 conv_dw bn2 aa?",
        after="conv_pwl bn3",
    ),
    _inverted(
        "timm.models._efficientnet_blocks.DepthwiseSeparableConv",
        before="conv_s2d? bn_s2d? conv_dw bn1 aa?",
        after="conv_pw bn2",
    ),
    Block(
        "timm.models.regnet.Bottleneck",
        before="conv1 conv2",
        after="conv3",
        drop="drop_path",
        shortcut="downsample",
        sums="downsample",
        act="act3",
    ),
    Block("torchvision.models.mobilenetv3.InvertedResidual", inside="block", sums="use_res_connect", in_place=True),
    Block(
        "torchvision.models.efficientnet.MBConv",
        inside="block",
        drop="stochastic_depth",
        sums="use_res_connect",
        in_place=True,
    ),
    Block("torchvision.models.regnet.ResBottleneckBlock", inside="f", shortcut="proj", act="activation"),
):
    register(_block.adapter())
