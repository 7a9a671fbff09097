"""Which backends this machine can test, and on which device."""

from __future__ import annotations

import pytest
import torch

import attnkernels
from attnkernels import _load
from attnkernels.testing import emulation

if emulation.is_built():  # make test builds it; a plain pytest does not wait for the compiler
    emulation.load()


def walls() -> list[tuple[str, str]]:
    """(backend, device) of every fused wall that can run here."""
    found = []
    if _load.is_loaded("cpu"):
        found.append(("cpu", "cpu"))
    if _load.is_loaded("emulated"):
        found.append(("emulated", "cpu"))
    found += [(wall, "cuda") for wall in attnkernels.available_backends() if wall in ("cuda", "triton")]
    return found


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores; results do not depend on the thread count, which tests/cpu checks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
