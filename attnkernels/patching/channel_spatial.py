"""cbam and scse in the place of modules with channel and spatial gates.

Those are timm's, ultralytics', fvcore's and segmentation_models_pytorch's, and the official ones of either paper. The
official code is not in a package: its classes are known by their names together with the fingerprints of their
forwards, wherever they were copied to.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from .._modules import descendant, is_bare, pointwise_name, qualified_name
from ..layers._channel_spatial import Layers, attention, concurrent_excitation
from ..layers._gated import Gated
from ._adapter import not_replaceable
from ._gates import not_averages, not_sequential, serve

_TIMM = "timm.layers.cbam."
_CONV_NORM_ACT = "timm.layers.conv_bn_act.ConvNormAct"
_ULTRALYTICS = "ultralytics.nn.modules.conv."
_FVCORE = "fvcore.nn.squeeze_excitation."


def _replaceable(module: nn.Module, originals: dict[str, str]) -> str:
    """The first reason why the modules at these paths, of these classes, cannot be passed by; empty for none."""
    return next(filter(None, (not_replaceable(module, path, name) for path, name in originals.items())), "")


def _no_norm(module: nn.Module, path: str) -> str:
    """Why what stands at the place of a batch normalisation is none; empty where it is one, or nothing."""
    norm = descendant(module, path)
    if norm is None or isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.__class__ is nn.Identity:
        return ""
    return f"its {path} is no batch normalisation ({qualified_name(norm.__class__)})"


def _timm(module: nn.Module, channel: str | None, spatial: str | None) -> Gated | str:
    """Of CbamModule or of a half of it, given where the paths to the children of either half begin."""
    layers, convolution, norm, gates = None, None, None, []
    if channel is not None:
        layers = Layers(f"{channel}fc1", f"{channel}act", f"{channel}fc2")
        gates.append(f"{channel}gate")
    if spatial is not None:
        convolution, norm = f"{spatial}conv.conv", f"{spatial}conv.bn"
        gates.append(f"{spatial}gate")
        filtered = descendant(module, f"{spatial}conv.aa")
        if obstacle := not_replaceable(module, f"{spatial}conv", _CONV_NORM_ACT) or _no_norm(module, norm):
            return obstacle
        if filtered is not None and (not is_bare(filtered) or pointwise_name(filtered.__class__) != "identity"):
            return f"its {spatial}conv has a filter ({qualified_name(filtered.__class__)})"
    order = ("mean", "max")
    return attention(module, layers, convolution, norm, spatial_order=order, ties="share", gates=gates)


def _timm_whole(module: nn.Module) -> Gated | str:
    halves = {"channel": f"{_TIMM}ChannelAttn", "spatial": f"{_TIMM}SpatialAttn"}
    return _replaceable(module, halves) or _timm(module, "channel.", "spatial.")


_ultralytics = partial(attention, pool_types=("avg",), spatial_order=("mean", "max"))


def _ultralytics_whole(module: nn.Module) -> Gated | str:
    channel, spatial = "channel_attention", "spatial_attention"
    halves = {channel: f"{_ULTRALYTICS}ChannelAttention", spatial: f"{_ULTRALYTICS}SpatialAttention"}
    return (
        _replaceable(module, halves)
        or not_averages(module, f"{channel}.pool")
        or _ultralytics(
            module,
            Layers(None, None, f"{channel}.fc"),
            f"{spatial}.cv1",
            gates=(f"{channel}.act", f"{spatial}.act"),
        )
    )


def _official(module: nn.Module) -> Gated | str:
    channel, spatial = "ChannelGate", "SpatialGate"
    originals = {channel: "*.ChannelGate", f"{channel}.mlp.0": "*.Flatten"}
    convolution = norm = None
    if not module.no_spatial:
        originals |= {spatial: "*.SpatialGate", f"{spatial}.compress": "*.ChannelPool"}
        originals[f"{spatial}.spatial"] = "*.BasicConv"
        convolution, norm = f"{spatial}.spatial.conv", f"{spatial}.spatial.bn"
        if descendant(module, f"{spatial}.spatial.relu") is not None:
            return f"its {spatial}.spatial has a ReLU"
    if obstacle := _replaceable(module, originals) or not_sequential(module, f"{channel}.mlp", 4):
        return obstacle
    if norm is not None and (obstacle := _no_norm(module, norm)):
        return obstacle
    state = module._modules[channel].__dict__
    pool_types = state["pool_types"]
    if list(pool_types) not in (["avg"], ["max"], ["avg", "max"], ["max", "avg"]):
        return f"its pool_types are {pool_types}, not avg and max"
    layers = Layers(f"{channel}.mlp.1", f"{channel}.mlp.2", f"{channel}.mlp.3")
    return attention(
        module, layers, convolution, norm, pool_types=pool_types, own=("no_spatial",), settings=((state, "pool_types"),)
    )


def _ai_med(module: nn.Module) -> Gated | str:
    return _replaceable(module, {"cSE": "*.ChannelSELayer", "sSE": "*.SpatialSELayer"}) or concurrent_excitation(
        module, Layers("cSE.fc1", "cSE.relu", "cSE.fc2"), "sSE.conv", gates=("cSE.sigmoid", "sSE.sigmoid")
    )


def _smp(module: nn.Module) -> Gated | str:
    return (
        not_sequential(module, "cSE", 5)
        or not_sequential(module, "sSE", 2)
        or not_averages(module, "cSE.0")
        or concurrent_excitation(module, Layers("cSE.1", "cSE.2", "cSE.3"), "sSE.0", "add", gates=("cSE.4", "sSE.1"))
    )


def _fvcore_spatial(module: nn.Module) -> Gated | str:
    return not_sequential(module, "block", 2) or concurrent_excitation(module, None, "block.0", gates=("block.1",))


def _fvcore_whole(module: nn.Module) -> Gated | str:
    halves = {"channel": f"{_FVCORE}SqueezeExcitation", "spatial": f"{_FVCORE}SpatialSqueezeExcitation"}
    if obstacle := _replaceable(module, halves):
        return obstacle
    state = module._modules["channel"].__dict__
    if state["is_3d"]:
        return "is_3d: the op takes maps of two dimensions"
    layers = Layers("channel.block.0", "channel.block.1", "channel.block.2")
    return (
        not_sequential(module, "channel.block", 4)
        or not_sequential(module, "spatial.block", 2)
        or concurrent_excitation(
            module,
            layers,
            "spatial.block.0",
            gates=("channel.block.3", "spatial.block.1"),
            settings=((state, "is_3d"),),
        )
    )


for _op, _original, _arguments in (
    ("cbam", f"{_TIMM}CbamModule", _timm_whole),
    ("cbam", f"{_TIMM}ChannelAttn", partial(_timm, channel="", spatial=None)),
    ("cbam", f"{_TIMM}SpatialAttn", partial(_timm, channel=None, spatial="")),
    ("cbam", f"{_ULTRALYTICS}CBAM", _ultralytics_whole),
    ("cbam", f"{_ULTRALYTICS}SpatialAttention", partial(_ultralytics, layers=None, convolution="cv1", gates=("act",))),
    ("cbam", "*.CBAM", _official),
    ("scse", "*.ChannelSpatialSELayer", _ai_med),
    ("scse", "segmentation_models_pytorch.base.modules.SCSEModule", _smp),
    ("scse", f"{_FVCORE}ChannelSpatialSqueezeExcitation", _fvcore_whole),
    ("scse", f"{_FVCORE}SpatialSqueezeExcitation", _fvcore_spatial),
):
    # Blocks fuse the residual sum with the gate, which these ops do not.
    serve(_op, _original, _arguments, in_blocks=False)
