"""patch() and unpatch(): the fused ops inside models that know nothing of them."""

from ._patch import patch, unpatch
from .report import Replaced, Report, Skipped

__all__ = ["Replaced", "Report", "Skipped", "patch", "unpatch"]
