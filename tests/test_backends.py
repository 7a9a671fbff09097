"""Choosing a backend: by argument, by context, by environment; and what `info` tells."""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import attnkernels
from attnkernels import _forced, backends, info


def call(**kwargs):
    x, w = torch.randn(1, 4, 3, 3), torch.randn(4, 4)
    return attnkernels.squeeze_excite(x, w, None, w, None, **kwargs)


def backend(**kwargs):
    x, w = torch.randn(1, 4, 3, 3), torch.randn(4, 4)
    return attnkernels.backend_of("squeeze_excite", x, w, None, w, None, **kwargs)


def test_a_call_wins_over_the_context_and_the_context_is_left():
    best = backend()
    with attnkernels.use_backend("reference"):
        assert backend() == "reference"
        if "cpu" in attnkernels.available_backends():
            assert backend(backend="cpu") == "cpu"
        with attnkernels.use_backend("auto"):
            assert backend() == best
        assert backend() == "reference"
    assert backend() == best


def test_the_context_is_left_after_an_error():
    best = backend()
    with pytest.raises(ValueError, match="backend"), attnkernels.use_backend("triton"):
        call()
    assert backend() == best


def test_unknown_names():
    with (
        pytest.raises(ValueError, match=r"use_backend: name: expected one of 'auto', .*got 'fast'"),
        attnkernels.use_backend("fast"),
    ):
        pass
    with pytest.raises(ValueError, match=r"backend_of: op: expected one of .*squeeze_excite.*got 'squeeze'"):
        attnkernels.backend_of("squeeze")
    with pytest.raises(ValueError, match="available_backends: op"):
        attnkernels.available_backends("squeeze")


def test_a_context_can_be_kept_and_entered_again():
    best = backend()
    kept = attnkernels.use_backend("reference")
    with kept:
        assert backend() == "reference"
        with attnkernels.use_backend("auto"), kept:
            assert backend() == "reference"
        assert backend() == "reference"
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept)
        assert backend() == "reference"
    assert backend() == best


def test_one_context_serves_several_threads_at_once():
    kept, best = attnkernels.use_backend("reference"), backend()
    both_inside = threading.Barrier(2, timeout=60)

    def inside() -> tuple[str, str]:
        with kept:
            both_inside.wait()
            found = backend()
        both_inside.wait()
        return found, backend()

    with ThreadPoolExecutor(2) as threads:
        assert [task.result() for task in [threads.submit(inside) for _ in range(2)]] == [("reference", best)] * 2


def test_a_context_left_elsewhere_is_an_error():
    with attnkernels.use_backend("reference"), pytest.raises(RuntimeError, match="^use_backend: expected to be left"):
        contextvars.Context().run(_forced.leave)


def test_a_decorated_function_takes_the_backend_in_each_call():
    best = backend()

    @attnkernels.use_backend("reference")
    def inside(depth: int) -> str:
        """Documented."""
        return backend() if depth == 0 else inside(depth - 1)

    assert inside.__doc__ == "Documented."
    assert inside(0) == inside(2) == "reference"
    assert backend() == best


def test_a_context_that_is_not_entered_warns_where_it_was_made():
    with pytest.warns(UserWarning, match=r"^use_backend\('cpu'\) has no effect without `with`: write `with ") as warned:
        attnkernels.use_backend("cpu")
    assert [record.filename for record in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="name"):
            attnkernels.use_backend("fast")


def test_the_end_of_the_process_warns_of_nothing():
    """Of an object that is left over nothing is known: it may have been meant for later."""
    code = "import attnkernels as a; used, unused = a.use_backend('cpu'), a.use_backend('cpu'); used.__enter__()"
    assert python(code).stderr == ""


def test_a_compiled_function_may_enter_a_context():
    def inside(x, weight):
        with attnkernels.use_backend("reference"):
            y = attnkernels.squeeze_excite(x, weight, None, weight, None)
        return y + 1

    x, weight = torch.randn(1, 4, 3, 3), torch.randn(4, 4)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dynamo does not know")
        got = torch.compile(inside, backend="eager")(x, weight)
    torch.testing.assert_close(got, inside(x, weight))


def test_available_backends_end_with_the_reference():
    for op in (None, *backends.OPS):
        assert attnkernels.available_backends(op)[-1] == "reference"


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)


def test_environment_forces_a_backend():
    code = "import torch, attnkernels as a; x, w = torch.ones(1, 4, 3, 3), torch.ones(4, 4); "
    done = python(code + "print(a.backend_of('squeeze_excite', x, w, None, w, None))", ATTNKERNELS_BACKEND="reference")
    assert done.stdout.strip() == "reference"
    assert "ATTNKERNELS_BACKEND: expected one of" in python(code, ATTNKERNELS_BACKEND="fast").stderr


def test_architectures_that_the_library_was_not_built_for(monkeypatch):
    monkeypatch.setattr(backends._load, "is_loaded", lambda name: True)
    monkeypatch.setattr(backends._load, "build_record", lambda: {"cuda_architectures": ["8.0", "9.0"]})
    for capability, fine in (((8, 6), True), ((9, 0), True), ((7, 5), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        backends.cuda_missing.cache_clear()
        reason = backends.cuda_missing(0)
        assert (reason == "") == fine
        if not fine:
            assert f"this GPU is {capability[0]}.{capability[1]}" in reason
            assert "TORCH_CUDA_ARCH_LIST" in reason
            assert "8.0, 9.0" in reason
    backends.cuda_missing.cache_clear()


@pytest.mark.parametrize(
    ("built", "runs_on", "fails_on"),
    [
        ("8.0", [(8, 0), (8, 6)], [(7, 5), (9, 0)]),
        ("9.0a", [(9, 0)], [(8, 0), (10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(12, 0)]),
        ("9.0+PTX", [(9, 0), (12, 0)], [(8, 9)]),
    ],
)
def test_what_an_architecture_runs_on(built, runs_on, fails_on):
    assert all(backends._runs(built, *capability) for capability in runs_on)
    assert not any(backends._runs(built, *capability) for capability in fails_on)


def test_info_as_text_and_as_json(capsys):
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operators"]["squeeze_excite"]["cpu"]["backend"] == backend()
    assert info.main([]) == 0
    text = capsys.readouterr().out
    for library in ("cpu", "cuda", "triton"):
        ready = found["libraries"][library]["ready"]
        assert f"  {library:7} {'ready' if ready else 'not available: '}" in text
    assert "to fix:" in text or all(library["ready"] for library in found["libraries"].values())


def test_a_package_without_libraries_runs_on_the_reference(tmp_path):
    import shutil
    from pathlib import Path

    shutil.copytree(
        Path(attnkernels.__file__).parent,
        tmp_path / "attnkernels",
        ignore=shutil.ignore_patterns("*.so", "_build.json"),
    )
    code = (
        "import torch, attnkernels as a; from attnkernels import info; x, w = torch.ones(1, 4, 3, 3), torch.ones(4, 4);"
    )
    code += "a.squeeze_excite(x, w, None, w, None); print(a.backend_of('squeeze_excite', x, w, None, w, None));"
    code += "info.main([])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference")
    assert "cpu     not available: this copy of the package was not built" in done.stdout
