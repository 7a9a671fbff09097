"""Channel and spatial gates as cbam and scse take them: what the layers and the adapters of other libraries share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from .._modules import affine, descendant, is_bare, parameter
from ..ops.channel_spatial.checks import MOST_TAPS
from ..ops.channel_spatial.schema import CBAM, SCSE
from ._excitation import Excitation, fully_connected
from ._gated import Gated, not_bare, pointwise_child

_TENSORS = ("weight", "bias")
_NO_GATE = Excitation(((None, _TENSORS), (None, _TENSORS)), (None,) * 4, "relu")


class Layers(NamedTuple):
    """The paths of a channel gate's layers in a module; `reduce` and `activation` as of `fully_connected`."""

    reduce: str | None
    activation: str | None
    expand: str


def attention(
    module: nn.Module,
    layers: Layers | None,
    convolution: str | None,
    norm: str | None = None,
    *,
    pool_types: Sequence[str] = ("avg", "max"),
    spatial_order: Sequence[str] = ("max", "mean"),
    ties: str = "first",
    gates: Sequence[str] = (),
    own: tuple[str, ...] = (),
    settings: tuple[tuple[Mapping[str, Any], str], ...] = (),
) -> Gated | str:
    """What cbam takes of a module; a reason where it cannot run.

    Args:
        module: the upstream module.
        layers: those of the channel gate; None where it has none.
        convolution: the path of the convolution of the statistics; None where there is no spatial gate.
        norm: the path of the module that is called on the convolution's result, if there is one.
        pool_types, spatial_order, ties: as of cbam.
        gates: the paths of modules that have to be sigmoids.
        own, settings: as in Gated.
    """
    channel = _channel(module, layers)
    if isinstance(channel, str):
        return channel
    spatial_layer = None
    spatial: tuple = (None, None)
    if convolution is not None:
        spatial_layer = descendant(module, convolution)
        if obstacle := _not_of_statistics(convolution, spatial_layer):
            return obstacle
        spatial = parameter(spatial_layer, "weight"), parameter(spatial_layer, "bias")
    if obstacle := _no_sigmoids(module, gates):
        return obstacle
    called = None if norm is None else descendant(module, norm)
    taken = *channel.layers, (spatial_layer, _TENSORS)
    options = pool_types, spatial_order, called, ties, False
    return Gated(CBAM, taken, (*channel.weights, *spatial), options, own, settings=settings)


def concurrent_excitation(
    module: nn.Module,
    layers: Layers | None,
    projection: str,
    merge: str = "max",
    *,
    gates: Sequence[str] = (),
    own: tuple[str, ...] = (),
    settings: tuple[tuple[Mapping[str, Any], str], ...] = (),
) -> Gated | str:
    """What scse takes of a module; a reason where it cannot run.

    Args:
        module: the upstream module.
        layers: those of the channel gate; None where it has none.
        projection: the path of the convolution that makes the spatial gate.
        merge: as of scse.
        gates: the paths of modules that have to be sigmoids.
        own, settings: as in Gated.
    """
    channel = _channel(module, layers)
    if isinstance(channel, str):
        return channel
    layer = descendant(module, projection)
    spatial = affine(layer)
    if spatial is None or layer.__class__ is not nn.Conv2d or layer.out_channels != 1:
        return not_bare(projection, layer, "a 1x1 convolution to one channel")
    if obstacle := _no_sigmoids(module, gates):
        return obstacle
    taken = *channel.layers, (layer, _TENSORS)
    return Gated(SCSE, taken, (*channel.weights, *spatial), (merge,), own, settings=settings)


def _channel(module: nn.Module, layers: Layers | None) -> Excitation | str:
    return _NO_GATE if layers is None else fully_connected(module, *layers, known=("relu",), expected="a ReLU")


def _not_of_statistics(path: str, layer: nn.Module | None) -> str:
    """Why a layer is not the convolution that cbam computes; empty where it is."""
    if layer.__class__ is not nn.Conv2d or not is_bare(layer) or "_conv_forward" in layer.__dict__:
        return not_bare(path, layer, "a Conv2d")
    height, width = layer.kernel_size
    same = (height // 2, width // 2), "same"
    shape = layer.in_channels, layer.out_channels, layer.groups, layer.stride, layer.dilation, layer.padding_mode
    fits = shape == (2, 1, 1, (1, 1), (1, 1), "zeros") and layer.padding in same
    if fits and height == width and height % 2 and height <= MOST_TAPS:
        return ""
    return f"its {path} is not of two channels, square, of an odd size up to {MOST_TAPS}, and padded to the same size"


def _no_sigmoids(module: nn.Module, gates: Sequence[str]) -> str:
    for path in gates:
        gate = descendant(module, path)
        if pointwise_child(gate, ("sigmoid",)) is None:
            return not_bare(path, gate, "a sigmoid")
    return ""
