"""The functions, one package per op; re-exported at the top level."""

from .criss_cross import criss_cross_affinity, criss_cross_aggregate, criss_cross_attention
from .selective_kernel import pooled_sum, select_branches, selective_kernel
from .squeeze_excite import squeeze_excite

__all__ = [
    "criss_cross_affinity",
    "criss_cross_aggregate",
    "criss_cross_attention",
    "pooled_sum",
    "select_branches",
    "selective_kernel",
    "squeeze_excite",
]
