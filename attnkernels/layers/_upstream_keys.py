"""State dicts of other implementations, renamed and reshaped to a layer's own while they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Those of batch normalisations too.
_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def rename(state_dict: dict[str, Any], prefix: str, aliases: Mapping[str, Iterable[str]]) -> None:
    """Move the entries of other implementations to a layer's own names, in place.

    To be called from `_load_from_state_dict`, whose `state_dict` is a copy that PyTorch made for the layer.

    Args:
        state_dict: what is being loaded.
        prefix: the layer's prefix in it.
        aliases: own child name -> the names that other implementations give to it. An entry is left where it is (and
            strict loading reports it) when the own name is there as well.
    """
    for own, others in aliases.items():
        for other in others:
            for field in _FIELDS:
                source, target = f"{prefix}{other}.{field}", f"{prefix}{own}.{field}"
                if source in state_dict and target not in state_dict:
                    state_dict[target] = state_dict.pop(source)


def as_convolutions(state_dict: dict[str, Any], prefix: str, children: Iterable[str]) -> None:
    """Give the weights of fully connected layers, [out, in], the shape of a 1x1 convolution, in place."""
    for child in children:
        weight = state_dict.get(f"{prefix}{child}.weight")
        if weight is not None and weight.dim() == 2:
            state_dict[f"{prefix}{child}.weight"] = weight[:, :, None, None]
