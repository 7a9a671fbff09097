"""What a stranger installs: libraries free of CPython, a build that does without a compiler, complete metadata."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attnkernels

PACKAGE = Path(attnkernels.__file__).parent
ROOT = PACKAGE.parent
LIBRARIES = sorted(PACKAGE.glob("_C_*.so"))


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_use_no_cpython_and_no_unstable_torch(library):
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in symbols.splitlines()]
    assert names
    assert not [name for name in names if name.startswith(("Py", "_Py"))]
    assert not [
        name for name in names if re.match(r"_ZN?K?(2at|3c10|5torch)", name)
    ]  # the C++ ABI of one torch version


def build(tmp_path, **environment):
    """Run setup.py's build in a copy of the sources; returns the finished process and the build record."""
    for name in ("attnkernels", "csrc"):
        ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    record = tmp_path / "attnkernels" / "_build.json"
    return done, json.loads(record.read_text()) if record.exists() else None


def test_without_a_compiler_the_build_says_so_and_succeeds(tmp_path):
    (tmp_path / "bin").mkdir()
    done, record = build(tmp_path, PATH=str(tmp_path / "bin"), CXX="", CUDA_HOME="", ATTNKERNELS_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler was found" in record["cpu_missing"]
    assert "attnkernels: without the cpu library: no C++ compiler was found" in done.stderr
    assert not list((tmp_path / "attnkernels").glob("*.so"))
    code = "from attnkernels import info; info.main([])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)}).stdout  # fmt: skip
    assert "cpu     not available: no C++ compiler was found" in told


def test_a_cuda_library_that_is_demanded_and_impossible_stops_the_build(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("c++", "g++"):
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    done, record = build(tmp_path, PATH=str(tmp_path / "bin"), CUDA_HOME=str(tmp_path), ATTNKERNELS_CUDA="1")
    assert done.returncode != 0
    assert "ATTNKERNELS_CUDA=1, but the CUDA library cannot be built" in done.stderr
    assert record is None


def test_metadata():
    try:
        found = importlib.metadata.metadata("attnkernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.10"
    assert {"test", "bench", "docs", "cuda-compiler"} <= set(found.get_all("Provides-Extra"))
    assert found["Version"] == attnkernels.__version__
    assert (PACKAGE / "py.typed").exists()
