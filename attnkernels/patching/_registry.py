"""All adapters, by the qualified name of the class they recognise. Each registers itself where it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._adapter import Adapter

ADAPTERS: dict[str, Adapter] = {}


def register(adapter: Adapter) -> None:
    """Let `patch` know an adapter.

    Raises:
        ValueError: another adapter recognises one of its classes.
    """
    if taken := [name for name in adapter.originals if name in ADAPTERS]:
        raise ValueError(f"register: adapter: expected one for classes that no other adapter recognises, got {taken}")
    ADAPTERS.update(dict.fromkeys(adapter.originals, adapter))
