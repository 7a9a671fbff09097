"""The CUDA kernels on the host, where they were built; one thread for every test."""

from __future__ import annotations

import pytest
import torch

from tools import emulation

if emulation.is_built():  # make test builds it; a plain pytest does not wait for the compiler
    emulation.load()


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores; results do not depend on the thread count, which tests/cpu checks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
