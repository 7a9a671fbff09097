"""What a stranger installs: libraries that load everywhere, a build that records what it could not do, metadata."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import attnkernels
from attnkernels import _load, _sources, backends, info
from tools import check_install, shipped

PACKAGE = Path(attnkernels.__file__).parent
ROOT = PACKAGE.parent
LIBRARIES = sorted(PACKAGE.glob("_C_*.so"))
REINSTALL = "pip install --no-build-isolation ."


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_need_the_stable_abi_and_an_old_system_and_export_nothing(library):
    assert shipped.unexpected_symbols(library) == []


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_symbols_that_no_library_may_have():
    """torch's own library is what ours must not be: it exports, and needs the C++ ABI of one version."""
    unexpected = shipped.unexpected_symbols(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert any(name.startswith("PyObject_") for name in unexpected)
    assert any(name.startswith("_ZN3c10") for name in unexpected)
    assert not shipped._allowed("dlsym@GLIBC_2.34")
    assert not shipped._allowed("_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev@GLIBCXX_3.4.26")
    assert shipped._allowed("dlsym@GLIBC_2.2.5")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_do_not_name_where_they_were_built(library):
    folders = ROOT, Path(torch.__file__).parent, Path(sys.prefix), Path.home()
    assert shipped.build_paths(library, *(folder for folder in folders if folder != Path("/"))) == []


def build(tmp_path, **environment):
    """Run setup.py's build in a copy of the sources; returns the finished process and the build record."""
    for name in ("attnkernels", "csrc"):
        ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore, dirs_exist_ok=True)
    (tmp_path / "tools").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tools/cuda_toolkit.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    record = tmp_path / "attnkernels" / "_build.json"
    return done, json.loads(record.read_text()) if record.exists() else None


def told_by_info(folder, *options):
    """What `python -m attnkernels.info` prints for the package in a folder."""
    done = subprocess.run([sys.executable, *options, "-m", "attnkernels.info"], capture_output=True, text=True,
                          cwd=folder.parent, env=os.environ | {"PYTHONPATH": str(folder)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_without_a_compiler_the_build_says_so_and_succeeds(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "attnkernels").mkdir()
    (tmp_path / "attnkernels" / "_C_cpu.so").touch()  # of an earlier build
    done, record = build(tmp_path, PATH=str(tmp_path / "bin"), CXX="", CUDA_HOME="", ATTNKERNELS_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler was found" in record["cpu_missing"]
    assert "attnkernels: without the cpu library: no C++ compiler was found" in done.stderr
    assert not list((tmp_path / "attnkernels").glob("*.so"))
    told = told_by_info(tmp_path)
    assert "cpu     not available: no C++ compiler was found" in told.stdout
    assert "to fix: install g++" in told.stdout
    assert not told.stderr  # it was installed so: nothing to warn of at each import


def failing_compiler(folder):
    """A compiler that complains twice, after a line that is no complaint, such as torch 2.10 prints."""
    script = folder / "c++"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec echo "c++ 9.0.0"\n'
        'echo "--- Logging error ---" >&2\n'
        f'echo "{folder}/csrc/a.h:1:2: error: so old" >&2; echo "b.h: error: too" >&2; exit 1\n'
    )
    script.chmod(0o755)
    return str(script)


def test_a_library_that_does_not_compile_is_recorded_with_the_first_error(tmp_path):
    (tmp_path / "attnkernels").mkdir()
    (tmp_path / "attnkernels" / "_C_cpu.so").touch()  # of an earlier build
    done, record = build(tmp_path, CXX=failing_compiler(tmp_path), ATTNKERNELS_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert record["cpu_missing"] == "it did not compile: csrc/a.h:1:2: error: so old"
    assert not list((tmp_path / "attnkernels").glob("*.so"))
    told = told_by_info(tmp_path).stdout
    assert "cpu     not available: it did not compile: csrc/a.h:1:2: error: so old" in told
    assert "b.h" not in told


def test_a_strict_build_ends_at_a_library_that_does_not_compile(tmp_path):
    done, record = build(tmp_path, CXX=failing_compiler(tmp_path), ATTNKERNELS_CUDA="0", ATTNKERNELS_STRICT="1")
    assert done.returncode != 0
    assert "error: so old" in done.stdout + done.stderr
    assert record is None


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


def test_the_sdist_holds_all_that_the_build_reads(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "attnkernels", "tests", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".h", ".cuh", ".cu", ".cpp", ".map", ".py", ".json") and path.name != "_build.json":
                assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.endswith((".so", "_build.json"))]
    assert {"Makefile", "README.md", "LICENSE", "setup.py", "pyproject.toml"} <= names


class Tree:
    """A clone that was not built, and a package installed from sources of a digest, with the libraries of this one."""

    def __init__(self, place):
        self.tree, self.site = place / "clone", place / "site"
        ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        for folder in (self.tree, self.site):
            shutil.copytree(PACKAGE, folder / "attnkernels", ignore=ignore)
        (self.tree / "csrc" / "common").mkdir(parents=True)
        (self.tree / "csrc" / "common" / "some.h").write_text("// first\n")
        information = self.site / "attnkernels-0.1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: attnkernels\nVersion: 0.1.0\n")
        for library in LIBRARIES:
            (self.site / "attnkernels" / library.name).symlink_to(library)
        record = _load.build_record() | {"sources": _sources.digest(self.tree / "csrc")}
        (self.site / "attnkernels" / "_build.json").write_text(json.dumps(record))

    def info(self):
        paths = os.pathsep.join((str(self.tree), str(self.site)))
        code = "import attnkernels, runpy; print(attnkernels.__file__); runpy.run_module('attnkernels.info', None, '__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=self.site.parent,
                              env=os.environ | {"PYTHONPATH": paths})  # fmt: skip
        assert done.stdout.startswith(str(self.tree)), done.stderr
        return done


@pytest.mark.skipif(not LIBRARIES, reason="no library was built")
def test_a_source_tree_takes_the_libraries_of_the_package_it_hides_if_their_sources_are_the_same(tmp_path):
    tree = Tree(tmp_path)
    told = tree.info()
    assert "  cpu     ready" in told.stdout
    assert "warn" not in told.stderr.lower()
    (tree.tree / "csrc" / "common" / "some.h").write_text("// second\n")
    told = tree.info()
    assert "  cpu     not available" in told.stdout
    assert "it hides the package in" in " ".join(told.stdout.split())
    assert "to fix: start Python in another folder" in told.stdout
    warnings = [line for line in told.stderr.splitlines() if "UserWarning: attnkernels:" in line]
    assert len(warnings) == 1
    assert str(tree.site) in warnings[0]
    shutil.rmtree(tree.site)
    told = tree.info()
    assert "is a source tree that was not built" in told.stderr
    assert f"to fix: in that folder: {REINSTALL}" in " ".join(told.stdout.split())


def test_info_says_when_the_libraries_are_of_other_sources(tmp_path):
    tree = Tree(tmp_path)
    shutil.copytree(tree.site / "attnkernels", tree.tree / "attnkernels", dirs_exist_ok=True, symlinks=True)
    assert "other C++ sources" not in tree.info().stdout
    (tree.tree / "csrc" / "common" / "some.h").write_text("// second\n")
    assert "they were built from other C++ sources than those beside them" in tree.info().stdout


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A folder of libraries in the place of the package's, with the record given."""

    def place(library, content=b"", **record):
        (tmp_path / library).write_bytes(content)
        monkeypatch.setattr(_load, "home", lambda: tmp_path)
        monkeypatch.setattr(_load, "build_record", lambda: record)

    return place


def test_a_library_of_another_cuda_than_torch(built, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    built("_C_cuda.so", nvcc="13.0")
    assert "_C_cuda.so is of CUDA 13.0" in (reason := _load._load("cuda"))
    assert "of CUDA 12.8" in reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a build without CUDA" in _load._load("cuda")


def test_the_loader_says_itself_why_a_library_does_not_load(built):
    built("_C_cpu.so", b"no library", sources="")
    assert "file too short" in (reason := _load._load("cpu")) or "invalid ELF header" in reason


def test_cuda_is_ready_only_with_a_gpu_that_runs_it(monkeypatch):
    monkeypatch.setattr(_load, "is_loaded", lambda name: name in ("cpu", "cuda"))
    monkeypatch.setattr(_load, "build_record", lambda: {"cuda_architectures": ["8.0", "9.0+PTX"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert info._cuda_library() == {
        "ready": False, "reason": "built for 8.0, 9.0+PTX; torch sees no GPU", "architectures": ["8.0", "9.0+PTX"],
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(backends, "cuda_missing", lambda index: "")
    assert info._cuda_library()["ready"]
    monkeypatch.setattr(backends, "cuda_missing", lambda index: "was built for 8.0, this GPU is 7.0")
    assert not info._cuda_library()["ready"]


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("no C++ compiler was found when it was installed", "install g++"),
        ("it did not compile: a.h:1: error: x", "needs g++"),
        ("ATTNKERNELS_CUDA=0 when it was installed", "ATTNKERNELS_CUDA=auto pip install"),
        ("torch 2.14.1+cpu is a build without CUDA", "install a CUDA build of torch"),
        ("_C_cuda.so is there, but this torch (2.14.1+cpu) is a build without CUDA", "install a CUDA build of torch"),
        ("no nvcc was found when it was installed", "attnkernels[cuda-compiler]"),
        ("nvcc is of CUDA 12.8, torch 2.14.1+cu130 of CUDA 13.0", "nvcc of torch's CUDA version"),
        ("_C_cuda.so is of CUDA 13.0, this torch (2.10.0) of CUDA 12.8", "build it next to this torch"),
        ("_C_cuda.so could not be loaded: libcudart.so.13: cannot open", "build it next to this torch"),
        ("built for 8.0; torch sees no GPU", "nvidia-smi"),
        ("torch sees no GPU", "nvidia-smi"),
        ("_C_cuda.so was built for 8.0, this GPU is 12.0; rebuild with TORCH_CUDA_ARCH_LIST", "TORCH_CUDA_ARCH_LIST"),
        ("triton is not installed: pip install triton", "pip install triton"),
    ],
)
def test_what_to_do_follows_from_the_reason(reason, hint):
    assert hint in info.fix(reason)


def test_info_gives_a_long_reason_three_lines(monkeypatch):
    found = info.collect()
    found["libraries"]["cpu"] = {"ready": False, "reason": "it did not compile: " + "error: a template " * 100}
    lines = info.text(found).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  cpu "))
    assert lines[start + 3].lstrip().startswith("to fix:")
    assert all(len(line) <= 100 for line in lines[start : start + 4])


def test_the_readme_begins_with_commands_that_exist():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"^make ([a-z-]+)", first_screen, re.MULTILINE)
    assert commands == ["demo", "test"]
    assert set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text())) | set(commands) <= set(targets)
    assert check_install.readme_commands() == [
        'pip install "setuptools>=77" ninja', "pip install --no-build-isolation .",
    ]  # fmt: skip
