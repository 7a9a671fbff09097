"""What the Triton tests share."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch

from attnkernels.ops import _registry

UNDER_TTSEM = "ttsem" in sys.modules
# Why a test of a planted bug is not run on a GPU, where such a kernel may corrupt memory or stop the process.
needs_ttsem = pytest.mark.skipif(not UNDER_TTSEM, reason="only ttsem reports what this kernel does wrong")
needs_gpu = pytest.mark.skipif(UNDER_TTSEM, reason="too large for ttsem, which runs the kernels on the CPU")

_numbers = itertools.count()


def let_cpu_tensors_in() -> None:
    """ttsem's CUDA tensors are CPU tensors to the dispatcher: send them where the real ones go."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name, operator in _registry.OPERATORS.items():
        redispatch = functools.partial(operator.on["triton"].redispatch, cuda)
        torch.library.impl(f"attnkernels_triton::{name}", "CPU", redispatch)


def with_bug(kernels: ModuleType, tmp_path: pathlib.Path, right: str, wrong: str) -> ModuleType:
    """A copy of a module of kernels with one line changed; Triton reads the source of a kernel from its file."""
    source = pathlib.Path(kernels.__file__).read_text()
    assert source.count(right) == 1, f"{right!r} is {source.count(right)} times in {kernels.__name__}"
    name = f"{kernels.__package__}.with_bug_{next(_numbers)}"
    path = tmp_path / "kernels.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def reported(match: str) -> Iterator[None]:
    """The block must raise ttsem's report of a faulty kernel, with these words. (Run as a program, its class is in
    `__main__`: it is known by its name.)"""
    with pytest.raises(Exception, match=match) as raised:
        yield
    assert raised.typename == "KernelFault"


def without_plans(*plans: Callable) -> None:
    """Forget the launches that a launcher kept for shapes it has seen."""
    for plan in plans:
        plan.cache_clear()
