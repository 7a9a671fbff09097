"""The functions, one package per op; re-exported at the top level."""

from .squeeze_excite import squeeze_excite

__all__ = ["squeeze_excite"]
