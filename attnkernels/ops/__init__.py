"""The functions, one package per op; re-exported at the top level."""

from ..backends import OPS
from .channel_spatial import cbam as cbam
from .channel_spatial import scse as scse
from .criss_cross import criss_cross_affinity as criss_cross_affinity
from .criss_cross import criss_cross_aggregate as criss_cross_aggregate
from .criss_cross import criss_cross_attention as criss_cross_attention
from .efficient_channel_attention import efficient_channel_attention as efficient_channel_attention
from .selective_kernel import pooled_sum as pooled_sum
from .selective_kernel import select_branches as select_branches
from .selective_kernel import selective_kernel as selective_kernel
from .squeeze_excite import squeeze_excite as squeeze_excite

__all__ = sorted(OPS)
