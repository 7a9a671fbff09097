"""Drop-in faster attention layers for convolutional networks."""

from . import _load

_load.load_libraries()

from . import _flops, layers, ops, reference  # noqa: E402  (the libraries decide what the ops register)
from ._version import __version__  # noqa: E402
from .backends import available_backends, backend_of, use_backend  # noqa: E402
from .ops import *  # noqa: E402, F403
from .patching import patch, unpatch  # noqa: E402

__all__ = [
    "__version__", "available_backends", "backend_of", "layers", "ops", "patch", "reference", "unpatch", "use_backend",
    *ops.__all__,
]  # fmt: skip

_flops.install()
