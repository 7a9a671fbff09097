"""The functions, one package per op; re-exported at the top level."""

from .selective_kernel import pooled_sum, select_branches, selective_kernel
from .squeeze_excite import squeeze_excite

__all__ = ["pooled_sum", "select_branches", "selective_kernel", "squeeze_excite"]
