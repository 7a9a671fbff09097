"""Which state of the C++ sources a library was built from. Imports nothing of the package: setup.py runs this file."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(csrc: Path) -> str:
    """A short digest of the names and contents of the libraries' sources in a csrc folder."""
    hashed = hashlib.sha256()
    for path in sorted(csrc.glob("*/*")):
        if path.suffix in (".h", ".cuh", ".cu", ".cpp") and path.parent.name != "emulation":  # that is for tests
            hashed.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()[:16]
