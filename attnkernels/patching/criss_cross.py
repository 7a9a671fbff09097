"""criss_cross_attention in the modules of CCNet: the official one, wherever it was copied to, and mmcv's.

The official module is not in a package: projects carry copies of it, and variants under the same name that compute
something else (top-k, other masks, two inputs). So it is known by its class name together with the fingerprints of its
forward and of the function that makes its mask; anything else under that name is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import is_bare, qualified_name
from ..ops import criss_cross_attention
from . import _fingerprints
from ._adapter import Adapter, source_fingerprint
from ._availability import is_unserved
from ._dispatch import backend_of
from ._registry import register

# INF(B, H, W), the mask of the official code: on the current GPU, or on the CPU as many copies have it.
_MASK = "*.INF"


def _convolutions(module: nn.Module) -> str:
    for name in ("query_conv", "key_conv", "value_conv"):
        if not isinstance(module._modules.get(name), nn.Module):
            return f"it has no {name}"
    return ""


def _official(module: nn.Module) -> tuple | str:
    if missing := _convolutions(module):
        return missing
    gamma = getattr(module, "gamma", None)
    if not isinstance(gamma, Tensor) or gamma.numel() != 1:
        return "its gamma is not a single number"
    softmax = module._modules.get("softmax")
    if softmax.__class__ is not nn.Softmax or softmax.dim not in (3, -1) or not is_bare(softmax):
        return "its softmax is not a bare Softmax over the last dimension"
    mask = getattr(module, "INF", None)
    if mask is None or source_fingerprint(mask) not in _fingerprints.known(_MASK, ("INF",)):
        return "its mask (INF) is not that of the official code"
    return ()


def _mmcv(module: nn.Module) -> tuple | str:
    if missing := _convolutions(module):
        return missing
    gamma = module._modules.get("gamma")
    if gamma is None:
        return "its gamma is not a Scale module"
    if qualified_name(gamma.__class__).rpartition(".")[2] != "Scale":
        return f"its gamma is not a Scale module ({qualified_name(gamma.__class__)})"
    return ()


def _attended(self: nn.Module, x: Tensor, obstacle: Callable[[nn.Module], tuple | str]) -> Tensor | None:
    """The attention of a patched module; None where its original forward has to run."""
    # Unlike squeeze-and-excitation, a compiled model gains from the op: the compiler would store all energies.
    compiling = torch.compiler.is_compiling()
    plain = not compiling and not is_ordinary(x, PASSES_MODULES)
    # ONNX knows the formula, but not torch.diag, of which mmcv makes its mask.
    if (plain and not torch.onnx.is_in_onnx_export()) or x.dim() != 4:
        return None
    if not compiling and isinstance(obstacle(self), str):
        return None
    if not (plain or compiling) and is_unserved(x, backend_of(self)):
        return None
    query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
    return criss_cross_attention(query, key, value, backend="reference" if plain else backend_of(self))


def _forward_official(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
    out = _attended(self, x, _official)
    return original(self, x) if out is None else self.gamma * out + x


def _forward_mmcv(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
    out = _attended(self, x, _mmcv)
    return original(self, x) if out is None else (self.gamma(out) + x).contiguous()


for _originals, _arguments, _forward in (
    (("mmcv.ops.cc_attention.CrissCrossAttention",), _mmcv, _forward_mmcv),
    (("*.CrissCrossAttention", "*.CC_module", "*.CrissCross"), _official, _forward_official),
):
    register(Adapter("criss_cross_attention", _originals, _arguments, _forward))
