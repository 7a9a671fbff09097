"""All adapters, by the qualified name of the class they recognise."""

from __future__ import annotations

from . import _timm_blocks, _timm_branches, ccnet, timm, torchvision
from ._adapter import Adapter

ADAPTERS: dict[str, Adapter] = {
    name: adapter
    for library in (timm, _timm_blocks, _timm_branches, torchvision, ccnet)
    for adapter in library.ADAPTERS
    for name in adapter.originals
}
