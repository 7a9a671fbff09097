"""The pure-PyTorch twin of every function, with the same signature: the specification, readable and differentiable."""

from .ops.criss_cross.reference import criss_cross_affinity, criss_cross_aggregate, criss_cross_attention
from .ops.selective_kernel.reference import pooled_sum, select_branches, selective_kernel
from .ops.squeeze_excite.reference import squeeze_excite

__all__ = [
    "criss_cross_affinity",
    "criss_cross_aggregate",
    "criss_cross_attention",
    "pooled_sum",
    "select_branches",
    "selective_kernel",
    "squeeze_excite",
]
