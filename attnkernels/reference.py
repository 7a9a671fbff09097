"""The pure-PyTorch twin of every function, with the same signature: the specification, readable and differentiable."""

from .ops.criss_cross.reference import criss_cross_affinity, criss_cross_aggregate, criss_cross_attention
from .ops.squeeze_excite.reference import squeeze_excite

__all__ = ["criss_cross_affinity", "criss_cross_aggregate", "criss_cross_attention", "squeeze_excite"]
