"""Values as error messages show them: short, on one line, and never an error of their own."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

LONGEST = 60


def shown(value: Any) -> str:
    """A value in at most LONGEST characters: what it is, and as much of it as helps."""
    try:
        return shortened(_description(value))
    except Exception:  # a repr, a property or a length of somebody else's
        return shortened(type(value).__name__)


def shortened(text: Any, longest: int = LONGEST) -> Any:
    """A string or bytes without its middle."""
    if len(text) <= longest:
        return text
    dots = "..." if isinstance(text, str) else b"..."
    start = (longest - len(dots)) // 2
    return text[:start] + dots + text[start + len(dots) - longest :]


def one_of(names: Iterable[Any]) -> str:
    """ "'a' or 'b'", "one of 'a', 'b', 'c'" """
    names = list(map(repr, names))
    return " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"


def meant(value: Any, names: Iterable[Any], cutoff: float = 1.0) -> str:
    """The name that was probably meant, to be put after what was got; empty where that is not known.

    Args:
        value: what was given: another spelling, or what the name stands for (nn.SiLU, its instance, F.silu).
        names: the right ones; those that are no strings do not count.
        cutoff: how much of a string has to be right (`difflib`), besides capitals, underscores and blanks.
    """
    text = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    spelled = {_letters(name): name for name in names if isinstance(name, str)}
    for letters in difflib.get_close_matches(_letters(text[:LONGEST]), spelled, 1, cutoff):
        name = repr(spelled[letters])
        return f": did you mean {name}?" if isinstance(value, str) else f": pass {name}"
    return ""


def not_among(
    where: str, value: Any, names: Iterable[Any], expected: str = "", cutoff: float = 1.0
) -> ValueError | TypeError:
    """The error of a value that is none of these names: another string is a wrong value, anything else a wrong type.

    Args:
        where: how the message begins: the function and its argument.
        value: what was given.
        names: the right ones.
        expected: what the message says of them, where that is not just their list.
        cutoff: as of `meant`.
    """
    names = list(names)
    kind = ValueError if isinstance(value, str) else TypeError
    return kind(f"{where}: expected {expected or one_of(names)}, got {shown(value)}{meant(value, names, cutoff)}")


def _letters(name: str) -> str:
    return name.replace("_", "").strip().lower()


def _description(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    if isinstance(value, nn.Module):
        return f"module {type(value).__name__}"
    if isinstance(value, type):
        return f"class {value.__name__}"
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return f"numpy array of {value.dtype} {list(value.shape)}"
    if isinstance(value, str | bytes):
        return repr(shortened(value, LONGEST - 2))
    if isinstance(value, list | tuple | dict | set | frozenset):
        return _contents(value) or f"{type(value).__name__} of {len(value)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"function {value.__name__}"
    text = repr(value)
    return text if _is_short(text) else type(value).__name__


def _contents(value: list | tuple | dict | set | frozenset) -> str:
    """The repr of a short list or tuple of numbers and names; empty for any other container."""
    if type(value) not in (list, tuple) or len(value) > 10:
        return ""
    if not all(item is None or type(item) in (bool, int, float, str) for item in value):
        return ""
    text = repr(value)
    return text if _is_short(text) else ""


def _is_short(text: str) -> bool:
    return len(text) <= LONGEST and "\n" not in text and " at 0x" not in text
