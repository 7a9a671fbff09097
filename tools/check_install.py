"""Every documented way of installing, in clean environments: `make check-install`.

Each Python gets one environment per torch that holds torch and torchvision only (built once, kept under
build/check-install). Every check runs in a fresh environment on top of it, by the commands that README.md gives: from
a clone, editable, from the sdist and from the wheel; with a compiler, without one, with one that fails, and with the
setuptools that an old Python brings. Slow: minutes per environment, gigabytes for each torch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.shipped import unexpected_symbols

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "check-install"
SMOKE = ROOT / "tools" / "install_smoke.py"


class Failed(Exception):
    """A command did not do what it should; the message shows the end of its output."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment; without a compiler its commands see no program but its own."""

    folder: Path
    variables: dict[str, str]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, command: str, cwd: Path, *, fails: bool = False, **variables: str) -> str:
        """Run a shell command as in the activated environment; its output."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ATTNK"))}
        environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "ATTNKERNELS_CUDA": "0"}
        environment |= self.variables | variables
        done = subprocess.run(
            ["/bin/bash", "-ec", command], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        if bool(done.returncode) != fails:
            raise Failed(f"$ {command}\n{done.stdout[-3000:]}")
        return done.stdout

    def smoke(self, cwd: Path, cpu_library: str, **variables: str) -> str:
        """Use the installed package; `cpu_library` is "yes" or a part of the reason why there is none."""
        return self.run(f"python -W always {SMOKE} '{cpu_library}'", cwd, **variables)

    def files(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if "__pycache__" not in path.parts}


def readme_commands() -> list[str]:
    """The commands by which README.md installs, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    found = [command for command in commands if command.startswith("pip install")]
    assert found[-1] == "pip install --no-build-isolation .", found
    return found


def base(python: str, torch: str) -> Path:
    """An environment of that Python with torch and torchvision, made once."""
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = WORK / f"{version}-{torch}"
    if not (folder / ".ready").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        wanted = "torch" if torch == "newest" else f"torch=={torch}.*"
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", wanted, "torchvision", "numpy"], check=True)
        (folder / ".ready").touch()
    return folder


@contextlib.contextmanager
def fresh(on: Path, place: Path, **variables: str) -> Iterator[Environment]:
    """A new environment that finds torch in another one."""
    folder = place / "environment"
    subprocess.run([on / "bin" / "python", "-m", "venv", folder], check=True)
    site = next((on / "lib").glob("python3*")) / "site-packages"
    (next((folder / "lib").glob("python3*")) / "site-packages" / "torch_is_there.pth").write_text(f"{site}\n")
    try:
        yield Environment(folder, variables)
    finally:
        shutil.rmtree(folder)


def no_compiler(place: Path, *more: str) -> dict[str, str]:
    """Variables with which no compiler is found: the PATH holds what pip and a shell need, and the programs named."""
    tools = place / "tools"
    tools.mkdir()
    for name in ("bash", "env", "uname", "git", *more):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    return {"PATH": f"{place / 'environment' / 'bin'}:{tools}", "CUDA_HOME": "", "CXX": ""}


def clone(place: Path) -> Path:
    """The working tree as a clone has it: tracked files, and new ones that git does not ignore."""
    folder = place / "attnkernels"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Failed(what)


def from_clone(on: Path, place: Path) -> None:
    """README's commands; then the clone itself as the current folder, and with other sources; then uninstall."""
    tree = clone(place)
    with fresh(on, place) as environment:
        before = environment.files()
        for command in readme_commands():
            environment.run(command, tree)
        environment.smoke(place, "yes")
        told = environment.smoke(place, "yes", PYTHONPATH=str(tree))  # the tree hides the package, of the same sources
        expect("Warning" not in told, f"a warning from the clone:\n{told}")
        with open(tree / "csrc" / "common" / "simd.h", "a") as header:
            header.write("// changed\n")
        told = environment.smoke(place, "hides the package", PYTHONPATH=str(tree))
        expect(told.count("UserWarning: attnkernels:") == 1, f"no warning from a clone of other sources:\n{told}")
        environment.run("pip uninstall --yes attnkernels", place)
        left = {path for path in environment.files() - before if "attnkernels" in str(path)}
        expect(not left, f"uninstall leaves {left}")


def editable(on: Path, place: Path) -> None:
    tree = clone(place)
    with fresh(on, place) as environment:
        environment.run('pip install "setuptools>=77" ninja', tree)
        environment.run("pip install --no-build-isolation --editable .", tree)
        environment.smoke(place, "yes")
        environment.smoke(tree, "yes")


def from_sdist(on: Path, place: Path) -> None:
    tree = clone(place)
    with fresh(on, place) as environment:
        environment.run('pip install "setuptools>=77" ninja', tree)
        environment.run("python setup.py --quiet sdist --dist-dir dist", tree)
        archive = next((tree / "dist").glob("*.tar.gz"))
        with tarfile.open(archive) as opened:
            names = {name.partition("/")[2] for name in opened.getnames()}
        for path in (path for folder in ("csrc", "attnkernels", "tests") for path in (tree / folder).rglob("*.*")):
            if path.suffix in (".h", ".cuh", ".cu", ".cpp", ".py", ".map"):
                expect(str(path.relative_to(tree)) in names, f"the sdist lacks {path.relative_to(tree)}")
        environment.run(f"pip install --no-build-isolation {archive}", place)
        environment.smoke(place, "yes")


def from_wheel(on: Path, place: Path) -> None:
    """The wheel of `make wheel`, built once and with another Python and torch, where there is no compiler."""
    wheel = built_wheel()
    with fresh(on, place, **no_compiler(place)) as environment:
        environment.run(f"pip install {wheel}", place)
        environment.smoke(place, "yes")


def without_compiler(on: Path, place: Path) -> None:
    tree = clone(place)
    with fresh(on, place, **no_compiler(place)) as environment:
        for command in readme_commands():
            environment.run(command, tree)
        environment.smoke(place, "no C++ compiler")


def with_clang_alone(on: Path, place: Path) -> None:
    tree = clone(place)
    with fresh(on, place, **no_compiler(place, "clang++", "ld")) as environment:
        for command in readme_commands():
            environment.run(command, tree)
        environment.smoke(place, "yes")


def with_failing_compiler(on: Path, place: Path) -> None:
    tree = clone(place)
    script = place / "c++"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec echo "c++ 9.0.0"\necho "x.h:1:2: error: so old" >&2; exit 1\n'
    )
    script.chmod(0o755)
    with fresh(on, place, CXX=str(script)) as environment:
        for command in readme_commands():
            environment.run(command, tree)
        told = environment.smoke(place, "did not compile")
        expect("x.h:1:2: error: so old" in told, f"info does not show the compiler's error:\n{told}")
        told = environment.run(readme_commands()[-1], tree, fails=True, ATTNKERNELS_STRICT="1")
        expect("error: so old" in told, told)


def with_old_setuptools(on: Path, place: Path) -> None:
    """README's last command alone, with a setuptools that knows no SPDX license, says what is missing."""
    tree = clone(place)
    with fresh(on, place) as environment:
        environment.run('pip install "setuptools<77" wheel', tree)
        told = environment.run(readme_commands()[-1], tree, fails=True)
        expect('pip install "setuptools>=77" ninja' in told, told)


CHECKS: dict[str, Callable[[Path, Path], None]] = {
    "clone": from_clone,
    "editable": editable,
    "sdist": from_sdist,
    "wheel": from_wheel,
    "no-compiler": without_compiler,
    "clang-alone": with_clang_alone,
    "failing-compiler": with_failing_compiler,
    "old-setuptools": with_old_setuptools,
}


def built_wheel() -> Path:
    """The wheel in dist/, checked: its tag, what it holds, what its libraries need and show."""
    wheels = sorted((ROOT / "dist").glob("attnkernels-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise Failed("no wheel in dist/: make wheel")
    wheel = wheels[-1]
    expect("-py3-none-manylinux_2_28_" in wheel.name or "-manylinux_2_27_" in wheel.name, f"the tag of {wheel.name}")
    unpacked = WORK / "wheel"
    shutil.rmtree(unpacked, ignore_errors=True)
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(unpacked)
    tops = {path.name for path in unpacked.iterdir()}
    expect(all(name.startswith("attnkernels") for name in tops), f"the wheel holds {tops}")
    expect((unpacked / "attnkernels" / "_C_cpu.so").exists(), "the wheel lacks the CPU library")
    for library in (unpacked / "attnkernels").glob("*.so"):
        expect(not (found := unexpected_symbols(library)), f"{library.name}: {found}")
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.check_install", description=__doc__)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters (default: this one)")
    parser.add_argument("--torch", nargs="+", default=["newest"], help='versions, as 2.10, or "newest"')
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="checks (default: all)")
    options = parser.parse_args()
    failures = 0
    for python in options.python:
        for torch in options.torch:
            on = base(python, torch)
            for name in options.only:
                place = WORK / "place"
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                start = time.monotonic()
                try:
                    CHECKS[name](on, place)
                    told = "passed"
                except Failed as error:
                    failures += 1
                    told = f"FAILED\n{error}"
                print(f"{on.name:16} {name:16} {time.monotonic() - start:5.0f} s  {told}", flush=True)
    print(json.dumps({"failures": failures}))
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
