"""patch() and unpatch(): the fused ops inside models that know nothing of them."""

# Each registers its adapters; a report names the classes that are recognised in this order.
from . import squeeze_excite, squeeze_excite_blocks, efficient_channel_attention  # noqa: F401  # isort: skip
from . import channel_spatial, selective_kernel, criss_cross  # noqa: F401  # isort: skip
from ._patch import patch, unpatch
from .report import Replaced, Report, Skipped

__all__ = ["Replaced", "Report", "Skipped", "patch", "unpatch"]
