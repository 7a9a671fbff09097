"""All adapters, by the qualified name of the class they recognise."""

from __future__ import annotations

from . import timm, torchvision
from ._adapter import Adapter

ADAPTERS: dict[str, Adapter] = {
    name: adapter for library in (timm, torchvision) for adapter in library.ADAPTERS for name in adapter.originals
}
