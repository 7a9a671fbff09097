"""The CUDA kernels on the host, where they were built; one thread for every test."""

from __future__ import annotations

import pytest
import torch

from attnkernels.ops._op import Op
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


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """The name and, besides the weights, the arguments of each call of an op by name, as functions and modules make."""
    made = []
    call = Op.__call__

    def recorded(op, backend, inputs, options=()):
        arguments = dict(zip(op.options, options, strict=True))
        residual = inputs[-1] if op.inputs[-1] == "residual" else None
        made.append({"op": op.name, "backend": backend, "residual": residual, **arguments})
        return call(op, backend, inputs, options)

    monkeypatch.setattr(Op, "__call__", recorded)
    return made
