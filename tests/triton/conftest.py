"""Triton tests run on a GPU or, where there is none, under ttsem: `python -m ttsem.sanitize pytest tests/triton`.

ttsem runs the kernels on the CPU and reports out-of-bounds accesses, races between programs and reads of memory that
nobody wrote. It needs a pytest process of its own, because it makes every tensor say that it is on a GPU.
"""

from __future__ import annotations

import pathlib
import sys

from attnkernels import backends

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for triton_backend
_missing = backends.triton_missing()
collect_ignore_glob = ["test_*.py"] if _missing else []

if not _missing:
    import triton_backend

    if triton_backend.UNDER_TTSEM:
        triton_backend.let_cpu_tensors_in()


def pytest_report_header() -> str:
    if _missing:
        return f"triton: not collected: {_missing}; python -m ttsem.sanitize pytest tests/triton needs no GPU"
    return "triton: the kernels run on the CPU, under ttsem" if triton_backend.UNDER_TTSEM else "triton: on the GPU"
