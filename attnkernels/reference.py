"""The pure-PyTorch twin of every function, with the same signature: the specification, readable and differentiable."""

from .ops.selective_kernel.reference import pooled_sum, select_branches, selective_kernel
from .ops.squeeze_excite.reference import squeeze_excite

__all__ = ["pooled_sum", "select_branches", "selective_kernel", "squeeze_excite"]
