"""The pure-PyTorch twin of every function, with the same signature: the specification, readable and differentiable."""

from .ops.squeeze_excite.reference import squeeze_excite

__all__ = ["squeeze_excite"]
