"""Everything on a machine with a GPU, offline: what shows faults first, then times, then what takes long.

    python tools/gpu.py [--stages build,graphs,tune,micro,models,compiled,tests,sanitizer] [--out DIRECTORY]

Libraries that were built elsewhere, for this GPU and of these sources, are taken as they are, and so are the programs
of `make tune`: bring attnkernels/_C_*.so, attnkernels/_build.json and build/tune along, and nothing is built here.
Each stage is a process of its own with a time limit; one that fails does not cost the others. Writes `gpu.json` and
each stage's log and results into the output directory; exits non-zero if any stage failed. A copy without a git history
is told the commit it is of: ATTNKERNELS_COMMIT="<commit>", or "<commit>+<number of files changed since>".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("build", "graphs", "tune", "micro", "models", "compiled", "tests", "sanitizer")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Nothing else may run while times are taken, and everything needs the build; the last ones run side by side.
ORDER = (("build",), ("graphs",), ("tune",), ("micro",), ("models",), ("compiled",), ("tests", "sanitizer"))
TUNE = (
    ("constants",),
    ("squeeze_excite", "both", "plain", "30"),
    ("squeeze_excite", "both", "epilogue", "30"),
    ("criss_cross",),
    ("selective_kernel",),
    ("channel_spatial",),
)


@dataclass
class Outcome:
    """What a process did."""

    name: str
    returncode: int | None  # None: it ran past its limit
    seconds: float
    log: str
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # why it counts as failed; empty where it passed

    def __post_init__(self) -> None:
        if self.problem:
            return
        if self.returncode is None:
            self.problem = f"ran past its limit of {self.seconds:.0f} s"
        elif self.returncode:
            self.problem = f"exit code {self.returncode}"


class Stages:
    """The stages, one method each: what they run and how their output is read."""

    def __init__(self, arguments: argparse.Namespace):
        self.out = Path(arguments.out).resolve()
        self.arguments = arguments
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        }

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> Outcome:
        log = self.out / f"{name}.log"
        started = time.monotonic()
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=self.environment | environment,
                start_new_session=True,
            )  # fmt: skip
            try:
                returncode = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # its own children too: compilers, test workers
                process.wait()
                returncode = None
        return Outcome(name, returncode, time.monotonic() - started, log.read_text(errors="replace"))

    def build(self) -> list[Outcome]:
        query = "import torch; print('.'.join(map(str, torch.cuda.get_device_capability())))"
        found = subprocess.run([sys.executable, "-c", query], capture_output=True, text=True).stdout.strip()
        if not found:
            return [Outcome("build", 1, 0.0, "", problem="torch sees no GPU")]
        record = ROOT / "attnkernels" / "_build.json"
        built = json.loads(record.read_text()) if record.exists() else {}
        # By its path: importing the package may be what fails.
        digest = runpy.run_path(str(ROOT / "attnkernels" / "_sources.py"))["digest"]
        if found in built.get("cuda_architectures", []) and built.get("sources") == digest(ROOT / "csrc"):
            return [Outcome("build", 0, 0.0, "", {"brought": True, "architectures": found} | built)]
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        architectures = found
        outcome = self.run(
            "build", command, self.arguments.build_limit,
            ATTNKERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST=architectures, MAX_JOBS=str(os.cpu_count() or 1),
        )  # fmt: skip
        outcome.figures = {"architectures": architectures} | (json.loads(record.read_text()) if record.exists() else {})
        if not (ROOT / "attnkernels" / "_C_cuda.so").exists():
            outcome.problem = outcome.problem or "no _C_cuda.so came out"
        return [outcome]

    def tests(self) -> list[Outcome]:
        report = self.out / "tests.xml"
        workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
        command = [
            sys.executable, "-m", "pytest", *self.arguments.tests.split(), "-q", "-p", "no:cacheprovider", *workers,
            f"--junitxml={report}",
        ]  # fmt: skip
        outcome = self.run("tests", command, self.arguments.tests_limit)
        if report.exists():
            suite = ElementTree.parse(report).getroot().find("testsuite")
            outcome.figures = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
            outcome.figures["failed"] = [
                f"{case.get('classname')}::{case.get('name')}"
                for case in suite.iter("testcase")
                if case.find("failure") is not None or case.find("error") is not None
            ]
        return [outcome]

    def sanitizer(self) -> list[Outcome]:
        with ThreadPoolExecutor(len(SANITIZERS)) as pool:
            return list(pool.map(self._sanitizer, SANITIZERS))

    def _sanitizer(self, tool: str) -> Outcome:
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(program).exists():
            return Outcome(tool, 1, 0.0, "", problem="compute-sanitizer was not found")
        limit = self.arguments.sanitizer_limit
        command = [program, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "86"]
        if tool in ("racecheck", "synccheck"):
            # Our kernels only, by the names of the ops that begin theirs. (The others must see who writes what.)
            for op in sorted({path.parent.name for path in ROOT.glob("csrc/*/*.cu")}):
                command += ["--kernel-regex", f"kns={op}"]
        # A case in flight has a third of the limit to end in.
        command += [sys.executable, str(ROOT / "tools" / "sanitizer_cases.py"), "--seconds", str(limit * 2 / 3)]
        # Every tensor is then an allocation of its own, with nothing valid beyond its end.
        outcome = self.run(f"sanitizer-{tool}", command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        outcome.figures, problem = read_sanitizer(outcome.log)
        outcome.problem = outcome.problem or problem
        return outcome

    def graphs(self) -> list[Outcome]:
        command = [sys.executable, str(ROOT / "tools" / "graph_cases.py"), "--backends", self.arguments.backends]
        outcome = self.run("graphs", command, self.arguments.graphs_limit)
        if match := re.search(r"(\d+) checks, (\d+) failed", outcome.log):
            outcome.figures = {"checks": int(match[1]), "failed": int(match[2])}
        return [outcome]

    def tune(self) -> list[Outcome]:
        outcomes = []
        for name, *arguments in TUNE:
            program = ROOT / "build" / "tune" / name
            title = "-".join(("tune", name, *arguments[1:2]))
            if not program.exists():
                outcomes.append(Outcome(title, 1, 0.0, "", problem=f"no {program}: make tune"))
                continue
            outcome = self.run(title, [str(program), *arguments], self.arguments.tune_limit)
            outcome.figures = {"lines": outcome.log.count("\n")}
            if "failed" in outcome.log:
                outcome.problem = outcome.problem or "a launch failed"
            outcomes.append(outcome)
        return outcomes

    def micro(self) -> list[Outcome]:
        # Every PyTorch form that needs no compiler, and both backends of ours.
        return [self._benchmark("micro", "eager,eager_channels_last,unstacked,einsum,batched,cuda,triton", "5")]

    def compiled(self) -> list[Outcome]:
        # Compiling takes most of the time: it stops at half of the limit, and no problem is begun after 0.8 of it.
        return [self._benchmark("compiled", "eager,compile,compile_ours,ours", "5")]

    def _benchmark(self, name: str, columns: str, rounds: str) -> Outcome:
        file, limit = self.out / f"{name}.json", getattr(self.arguments, f"{name}_limit")
        command = [
            sys.executable, "-m", "benchmarks", "micro", "--device", "cuda", "--json", str(file), "--rounds", rounds,
            "--dtype", "bfloat16", "--columns", columns, "--budget", str(limit / 2), "--limit", str(limit * 0.8),
            *self.arguments.micro.split(),
        ]  # fmt: skip
        return self._with_rows(self.run(name, command, limit), file)

    def models(self) -> list[Outcome]:
        file = self.out / "models.json"
        command = [
            sys.executable, "-m", "benchmarks", "models", "--device", "cuda", "--json", str(file), "--rounds", "5",
            "--seconds", "2", "--dtype", "bfloat16", "--layout", "channels_last", "--columns", "eager,patched",
            "--model", "seresnet50,regnety_032,efficientnet_b0,skresnet50,resnest50d", "--batch", "1,32,128",
            "--direction", "forward",
        ]  # fmt: skip
        return [self._with_rows(self.run("models", command, self.arguments.models_limit), file)]

    def _with_rows(self, outcome: Outcome, file: Path) -> Outcome:
        if file.exists():
            document = json.loads(file.read_text())
            outcome.figures = {
                "rows": len(document["rows"]),
                "wrong": sum("red" in row for row in document["rows"]),
                "failed": document["failed"],
                "left_out": len(document.get("left_out", ())),
                "file": file.name,
            }
        return outcome


def read_sanitizer(log: str) -> tuple[dict[str, Any], str]:
    """Counts from a compute-sanitizer log, and what is wrong with it (empty: nothing)."""
    figures: dict[str, Any] = {}
    if match := re.search(r"ERROR SUMMARY: (\d+) errors?", log):
        figures["errors"] = int(match[1])
    if match := re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", log):
        figures |= {"hazards": int(match[1]), "errors": int(match[2]), "warnings": int(match[3])}
    if match := re.search(r"^ran (\d+) of (\d+) cases", log, re.MULTILINE):
        figures |= {"ran": int(match[1]), "cases": int(match[2])}
    if "errors" not in figures:
        return figures, "no summary in the log"
    if figures["errors"] or figures.get("hazards"):
        return figures, f"{figures['errors']} errors, {figures.get('hazards', 0)} hazards"
    if not figures.get("ran"):
        return figures, "no case ran to its end"
    return figures, ""


def environment_record() -> dict[str, Any]:
    """The device, driver, versions and commit; from a process of its own, since importing may be what fails."""
    code = "import json; from benchmarks.environment import environment; print(json.dumps(environment('cuda')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, of " + ", ".join(STAGES))
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "output" / "gpu"), help="directory of the results")
    parser.add_argument("--backends", default="cuda", help="the backends of the graphs stage")
    parser.add_argument("--tests", default="tests", help="pytest's paths and options")
    parser.add_argument("--micro", default="", help="further options of `python -m benchmarks micro`")
    for stage, seconds in {
        "build": 150,
        "graphs": 90,
        "tune": 60,
        "micro": 120,
        "models": 170,
        "compiled": 240,
        "tests": 150,
        "sanitizer": 120,
    }.items():
        parser.add_argument(f"--{stage}-limit", type=float, default=seconds, metavar="SECONDS")
    arguments = parser.parse_args()
    arguments.stages = arguments.stages.split(",")
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"--stages: unknown {', '.join(sorted(unknown))}; known are {', '.join(STAGES)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    stages = Stages(arguments)
    stages.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    document: dict[str, Any] = {}
    for group in ORDER:
        wanted = [stage for stage in group if stage in arguments.stages]
        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            for found in pool.map(lambda stage: getattr(stages, stage)(), wanted):
                outcomes += found
        document = {
            "kind": "gpu",
            "environment": environment_record(),
            "seconds": time.monotonic() - started,
            "stages": {
                outcome.name: {"problem": outcome.problem, "seconds": outcome.seconds} | outcome.figures
                for outcome in outcomes
            },
        }
        (stages.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    for outcome in outcomes:
        if outcome.problem:
            print(f"--- {outcome.name}: {outcome.problem}; the end of its log:\n{outcome.log[-2500:]}\n")
        elif outcome.name in ("micro", "models", "compiled"):
            print(outcome.log)
    place = document["environment"]
    torch_version = place.get("versions", {}).get("torch", "?")
    print(f"{place.get('device', '?')}, driver {place.get('driver', '?')}, torch {torch_version}")
    for outcome in outcomes:
        brief = " ".join(f"{key}={value}" for key, value in outcome.figures.items() if value != [])
        verdict = f"FAIL {outcome.problem}" if outcome.problem else "ok"
        print(f"{outcome.name:20}{outcome.seconds:6.0f} s  {verdict}  {brief}"[:400])
    print(f"{document['seconds']:.0f} s in all; {stages.out / 'gpu.json'}")
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
