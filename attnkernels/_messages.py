"""Values as the messages of errors show them."""

from __future__ import annotations

import torch

_LONGEST = 60


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text, without its middle where it is longer than that."""
    if len(text) <= longest:
        return text
    end = longest // 2
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def shown(value: object) -> str:
    """A value in a few words, at most 60 characters: a plain value itself, of anything else the type. Never fails."""
    kind = type(value)
    try:
        if isinstance(value, type):
            return shortened(f"class {value.__name__}")
        if isinstance(value, torch.Tensor):
            return shortened(f"tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}")
        if (kind.__module__, kind.__name__) == ("numpy", "ndarray"):
            return shortened(f"numpy array of {value.dtype} {list(value.shape)}")
        if kind is str:
            return shortened(repr(shortened(value)))
        if value is None or kind in (bool, int, float):
            return shortened(repr(value))
    except Exception:  # a repr that fails is not to hide the error that is being told
        pass
    return shortened(kind.__name__)
