"""backend_of takes what the function takes, and info reports where a forced backend cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import attnkernels
from attnkernels import testing

ONE_PER_OP = [next(case for case in of_op if case.small) for of_op in testing.CASES.values()]
BEST = attnkernels.available_backends()[0] if not torch.cuda.is_available() else "cpu"


def named(op, args):
    import inspect

    return dict(zip(inspect.signature(getattr(attnkernels, op)).parameters, args, strict=False))


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_backend_of_takes_keywords(case):
    args, kwargs = case.make()
    assert attnkernels.backend_of(case.op, **named(case.op, args), **kwargs) == BEST
    assert attnkernels.backend_of(case.op, **named(case.op, args), **kwargs, backend="reference") == "reference"


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_backend_of_under_autocast(case):
    """As the function: weights, or all tensors, may have other dtypes there."""
    args, kwargs = case.make()
    if case.op in ("pooled_sum", "selective_kernel"):
        args = ([branch.bfloat16() for branch in args[0]],)
    else:
        args = testing.map_tensors(args, lambda x: x.bfloat16() if x is args[0] else x)
    if case.op == "select_branches":
        args = ([branch.bfloat16() for branch in args[0]], args[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        testing.run(case.op, args, kwargs, "auto")
        assert attnkernels.backend_of(case.op, *args, **kwargs) == BEST


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_backend_of_raises_what_the_function_raises(case):
    args, kwargs = case.make()
    wrong = [
        ((None, *args[1:]), kwargs),
        (testing.map_tensors(args, lambda x: x.int()), kwargs),
        (testing.map_tensors(args, lambda x: x[0]), kwargs), (args, {**kwargs, "backend": "fast"}),
        (args, {**kwargs, "backend": "triton"}),
    ]  # fmt: skip
    for bad_args, bad_kwargs in wrong:
        with pytest.raises((TypeError, ValueError)) as of_function:
            getattr(attnkernels, case.op)(*bad_args, **bad_kwargs)
        with pytest.raises((TypeError, ValueError)) as of_question:
            attnkernels.backend_of(case.op, *bad_args, **bad_kwargs)
        assert (of_function.type, str(of_function.value)) == (of_question.type, str(of_question.value))
        assert case.op in str(of_function.value)
    for bad_args, bad_kwargs in (((), {}), (args, {**kwargs, "unknown": 1})):
        with pytest.raises(TypeError):
            getattr(attnkernels, case.op)(*bad_args, **bad_kwargs)
        with pytest.raises(TypeError, match=rf"expected those of {case.op}\(.*backend\), got "):
            attnkernels.backend_of(case.op, *bad_args, **bad_kwargs)


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_backend_of_runs_nothing_and_agrees_with_the_call(case):
    args, kwargs = case.make()
    ran = []
    if "attention" in kwargs:
        kwargs = {"attention": lambda pooled: ran.append(pooled)}
    assert attnkernels.backend_of(case.op, *args, **kwargs) == BEST
    assert not ran
    with attnkernels.use_backend("reference"):
        assert attnkernels.backend_of(case.op, *args, **kwargs) == "reference"
        if BEST == "cpu":
            assert attnkernels.backend_of(case.op, *args, **kwargs, backend="cpu") == "cpu"


def test_callables_take_the_formula():
    x, w = torch.ones(1, 4, 2, 2), torch.ones(4, 4)
    assert attnkernels.backend_of("squeeze_excite", x, w, None, w, None, activation=torch.tanh) == "reference"
    with pytest.raises(ValueError, match="squeeze_excite: backend: expected 'auto' or 'reference' where activation"):
        attnkernels.backend_of("squeeze_excite", x, w, None, w, None, gate=torch.tanh, backend="cpu")


@pytest.mark.parametrize("forced", ["cuda", "triton"])
def test_info_reports_a_forced_backend_that_cannot_run(forced):
    if torch.cuda.is_available():
        pytest.skip("it can run here")
    environment = os.environ | {"ATTNKERNELS_BACKEND": forced}
    command = [sys.executable, "-m", "attnkernels.info"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["forced_backend"] == forced
    for devices in found["operators"].values():
        assert devices["cpu"]["backend"] == "none"
        assert f"got '{forced}': it takes CUDA tensors, these are on cpu" in devices["cpu"]["reason"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert text.returncode == 0, text.stderr
    assert f"every call is forced to backend {forced!r}" in text.stdout


def test_import_and_first_calls_do_without_the_compiler_and_triton():
    code = """
import sys, torch
before = set(sys.modules)
import attnkernels
x, w = torch.ones(1, 4, 2, 2), torch.ones(4, 4, requires_grad=True)
attnkernels.squeeze_excite(x, w, None, w, None).sum().backward()
with torch.no_grad(): attnkernels.criss_cross_attention(x, x, x)
attnkernels.patch(torch.nn.Sequential())
print([name for name in ("torch._dynamo", "triton", "sympy") if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
