"""Does the suite notice broken kernels? `python -m tools.mutate [--list] [--sample N] [--minutes M] OP ...`

Each mutant is the op's kernels (csrc/<op>/*.cuh) with one change:

    barrier   a __syncthreads, __syncwarp, fence, group barrier or wait for the primary grid is removed
    bound     a comparison is loosened by one:  <  to  <=,  >=  to  >
    mask      the condition of an `if` or of a `?:` is always true

The op's stand-alone program (tests/emulation/standalone/<op>.cpp) must fail with it, built with AddressSanitizer or
with ThreadSanitizer: by wrong numbers, a report, a deadlock, or too long a run. Mutants that change nothing are listed
with the reason in tests/emulation/equivalent_mutants/<op>.json. Exits with 1 where another one survives.

One build holds all mutants of an op, each behind a switch (tools/mutated.h); a variable of the environment turns one
on. What is decided at compile time (constexpr, __launch_bounds__) has no switch: those few are built one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools import emulated

ROOT = emulated.ROOT
WORK = ROOT / "build" / "mutate"
EQUIVALENT = ROOT / "tests" / "emulation" / "equivalent_mutants"
SWITCHES = ROOT / "tools" / "mutated.h"
NUMBER = "ATTNKERNELS_MUTANT"
REFUSED = "does not compile"

BARRIER = re.compile(
    r"__syncthreads\(\);|__syncwarp\([^()]*\);|__threadfence\(\);|(?:\w+::)*wait_for_primary_grid\(\);"
    r"|[\w.():]+\.(?:sync|barrier_\w+)\([^()]*\);"
)
COMPARISON = re.compile(r" (<|>=) ")
LOOSER = {"<": "<=", ">=": ">"}
SWITCH = {"<": "less", ">=": "greater"}
CONDITION = re.compile(r"\bif \(")
# What a condition of `?:` can begin behind, outside parentheses of its own.
BEFORE_CONDITION = ("= ", "return ", ", ", "? ", " : ", "{")
COMPARISONS = ("== ", "!= ", "<= ", ">= ")
COMPILE_TIME = re.compile(r"\bconstexpr\b|__launch_bounds__")


@dataclass(frozen=True)
class Change:
    """What of one line, from `start` to `end`, becomes `after`."""

    kind: str
    start: int
    end: int
    after: str

    def apply(self, line: str) -> str:
        return line[: self.start] + self.after + line[self.end :]


@dataclass(frozen=True)
class Mutant:
    """A change of line `number` (from 0) of csrc/<file>; `nth` of equal changes in the file."""

    file: str
    number: int
    line: str
    change: Change
    nth: int

    @property
    def after(self) -> str:
        return self.change.apply(self.line)

    @property
    def is_compile_time(self) -> bool:
        return bool(COMPILE_TIME.search(self.line))

    def key(self) -> tuple[str, str, str, str, int]:
        """What names it in the list of equivalent mutants: no line number, so that other edits do not matter."""
        return self.file, self.change.kind, self.line.strip(), self.after.strip(), self.nth

    def __str__(self) -> str:
        return f"{self.file}:{self.number + 1} {self.change.kind}: {self.after.strip()}"


def _closing(text: str, opening: int) -> int | None:
    """Where the parenthesis at `opening` closes; None where not in this text."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None


def _condition(code: str, question: int) -> int:
    """Where the condition begins that ends before the ` ? ` at `question`."""
    depth = 0
    for position in range(question - 1, -1, -1):
        depth += {")": 1, "]": 1, "(": -1, "[": -1}.get(code[position], 0)
        before = code[: position + 1]
        if depth < 0 or (depth == 0 and before.endswith(BEFORE_CONDITION) and not before.endswith(COMPARISONS)):
            return position + 1
    return len(code) - len(code.lstrip())


def changes(line: str) -> Iterator[Change]:
    """Everything that can be changed in one line."""
    code = line.split("//")[0]
    if re.search(r"static_assert|if constexpr|^\s*#|^\s*template", code):
        return
    for match in BARRIER.finditer(code):
        yield Change("barrier", match.start(), match.end(), ";")
    for match in COMPARISON.finditer(code):
        yield Change("bound", match.start(1), match.end(1), LOOSER[match.group(1)])
    for match in CONDITION.finditer(code):
        end = _closing(code, match.end() - 1)
        if end is not None:
            yield Change("mask", match.end(), end, "true")
    for match in re.finditer(r" \? ", code):
        yield Change("mask", _condition(code, match.start()), match.start(), "true")


def mutants(op: str) -> list[Mutant]:
    """Every mutant of an op, in the order of its files."""
    found = []
    for path in sorted((ROOT / "csrc" / op).glob("*.cuh")):
        seen: dict[tuple[str, str], int] = {}
        for number, line in enumerate(path.read_text().splitlines()):
            for change in changes(line):
                key = line.strip(), change.apply(line).strip()
                nth = seen[key] = seen.get(key, -1) + 1
                found.append(Mutant(f"{op}/{path.name}", number, line, change, nth))
    return found


def equivalents(op: str) -> dict[tuple, str]:
    """Reasons of the mutants that are known to change nothing."""
    path = EQUIVALENT / f"{op}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return {tuple(row[name] for name in ("file", "kind", "before", "after", "nth")): row["reason"] for row in rows}


def switched(line: str, numbered: Iterable[tuple[int, Change]]) -> str:
    """The line with a switch for each of the changes; switches only insert text, so that several go together."""
    inserted: list[tuple[int, int, int, str]] = []  # position, order there, length of what is enclosed, text
    for number, change in numbered:
        start, end, length = change.start, change.end, change.end - change.start
        if change.kind == "bound":
            operator = line[start:end]
            inserted.append((end, 1, 0, f" mutated::{SWITCH[operator]}({number}) {operator}"))
            continue
        if change.kind == "barrier":
            end -= 1  # before the semicolon
            before, after = f"(mutated::active({number}) ? void() : void(", "))"
        else:
            before, after = f"mutated::active({number}) || (", ")"
        inserted.append((start, 1, -length, before))  # where several begin, the longest encloses the others
        inserted.append((end, 0, length, after))
    for position, _, _, text in sorted(inserted, reverse=True):
        line = line[:position] + text + line[position:]
    return line


def rewrite(op: str, everything: list[Mutant], csrc: Path, alone: Mutant | None = None) -> None:
    """Writes a copy of csrc with a switch for each mutant, number n + 1 for the n-th, or with one mutant alone.

    Files that have not changed keep their time, so that nothing is built again for them.
    """
    for stale in csrc.glob("*/*"):
        if not (ROOT / "csrc" / stale.relative_to(csrc)).exists():
            stale.unlink()
    for source in sorted((ROOT / "csrc").glob("*/*")):
        name = f"{source.parent.name}/{source.name}"
        lines = source.read_text().splitlines()
        numbered: dict[int, list[tuple[int, Change]]] = {}
        for number, mutant in enumerate(everything, 1):
            if mutant.file == name and not mutant.is_compile_time and not alone:
                numbered.setdefault(mutant.number, []).append((number, mutant.change))
        for at, found in numbered.items():
            lines[at] = switched(lines[at], found)
        if alone and alone.file == name:
            lines[alone.number] = alone.after
        text, target = "\n".join(lines) + "\n", csrc / name
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


class NinjaFile(emulated.NinjaFile):
    """Of a program with switches."""

    def __init__(self, mode: str, folder: Path) -> None:
        super().__init__(mode, folder / "csrc", folder / mode)
        # -fno-aggressive-loop-optimizations: a loop that runs past an array must not make the compiler drop its end.
        kernels = [*self.flags.kernels, "-include", str(SWITCHES), "-fno-aggressive-loop-optimizations"]
        self.flags = dataclasses.replace(self.flags, kernels=kernels)

    def emulation(self) -> list[Path]:
        return [*super().emulation(), self.object(SWITCHES.with_suffix(".cpp"))]


def run(program: Path, number: int, seconds: float) -> str:
    """How the program ended with that mutant active, "" when well."""
    environment = {**os.environ, NUMBER: str(number), "TSAN_OPTIONS": "halt_on_error=1"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    # Of the processor's time: other work on the machine must not kill a mutant. The second limit is for one that waits.
    command = ["sh", "-c", 'ulimit -c 0; ulimit -S -t "$0"; exec "$1"', str(math.ceil(seconds)), str(program)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=20 * seconds)
    except subprocess.TimeoutExpired:
        return f"waited for {20 * seconds:.0f} s"
    if done.returncode == -signal.SIGXCPU:
        return f"ran for more than {seconds:.0f} s"
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM):
        raise RuntimeError(f"{program} was ended from outside, perhaps for want of memory; mutant {number}")
    return f"exit code {done.returncode}" if done.returncode else ""


class Programs:
    """The op's program in both modes."""

    MODES = ("asan", "tsan")

    def __init__(self, op: str, everything: list[Mutant], jobs: int) -> None:
        self.op, self.everything, self.jobs = op, everything, jobs
        self.folder = WORK / op
        rewrite(op, everything, self.folder / "csrc")
        self.build(self.folder)
        self.seconds = {mode: self.baseline(mode) for mode in self.MODES}

    def build(self, folder: Path) -> None:
        def one(mode: str) -> None:
            ninja_file = NinjaFile(mode, folder)
            ninja_file.program(self.op)
            emulated.run_ninja(ninja_file, jobs=max(1, self.jobs // len(self.MODES)))

        with ThreadPoolExecutor(min(self.jobs, len(self.MODES))) as pool:
            list(pool.map(one, self.MODES))

    def baseline(self, mode: str) -> float:
        """How long the kernels may take, from how long they take without a mutant."""
        start = time.monotonic()
        if outcome := run(self.folder / mode / self.op, 0, 600):
            sys.exit(f"{self.op} fails in mode {mode} without any mutation: {outcome}")
        return 5 + 2 * (time.monotonic() - start)

    def outcome(self, mutant: Mutant) -> str:
        """What noticed the mutant; empty when it survived."""
        folder, number = self.folder, self.everything.index(mutant) + 1
        if mutant.is_compile_time:
            folder, number = WORK / f"{self.op}-alone", 0
            rewrite(self.op, self.everything, folder / "csrc", mutant)
            try:
                self.build(folder)
            except RuntimeError:
                return REFUSED
        # Who is more likely to notice comes first.
        for mode in reversed(self.MODES) if mutant.change.kind == "barrier" else self.MODES:
            if outcome := run(folder / mode / self.op, number, self.seconds[mode]):
                return f"{mode}: {outcome}"
        return ""


def check(op: str, everything: list[Mutant], chosen: list[Mutant], jobs: int, minutes: float) -> dict[Mutant, str]:
    """Builds and runs the mutants; what noticed each for which there was time."""
    deadline = time.monotonic() + 60 * minutes
    programs = Programs(op, everything, jobs)
    outcomes, printing = {}, threading.Lock()

    def one(mutant: Mutant) -> None:
        if time.monotonic() > deadline:
            return
        outcome = outcomes[mutant] = programs.outcome(mutant)
        with printing:
            verdict = "refused " if outcome == REFUSED else "killed  " if outcome else "survived"
            print(f"{verdict}  {mutant}   [{outcome}]", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [mutant for mutant in chosen if not mutant.is_compile_time]))
    for mutant in chosen:
        if mutant.is_compile_time:
            one(mutant)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help="default: every op with a stand-alone program")
    parser.add_argument("--list", action="store_true", help="print the mutants and do nothing")
    parser.add_argument("--match", default="", help="only mutants whose description contains this text")
    parser.add_argument("--sample", type=int, help="so many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--minutes", type=float, default=60, help="start no mutant after that time")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
    arguments = parser.parse_args()
    ops = arguments.ops or [name for name in emulated.programs() if list((ROOT / "csrc" / name).glob("*.cuh"))]
    failed = False
    for op in ops:
        start = time.monotonic()
        known = equivalents(op)
        everything = mutants(op)
        unknown_rows = set(known) - {mutant.key() for mutant in everything}
        chosen = [mutant for mutant in everything if mutant.key() not in known and arguments.match in str(mutant)]
        if arguments.sample is not None and arguments.sample < len(chosen):
            chosen = random.Random(arguments.seed).sample(chosen, arguments.sample)
        print(f"{op}: {len(everything)} mutants, {len(known)} known to be equivalent, {len(chosen)} to run")
        for row in sorted(unknown_rows):
            print(f"no such mutant any more, remove it from the list: {row}")
        failed |= bool(unknown_rows)
        if arguments.list:
            print("\n".join(map(str, chosen)))
            continue
        outcomes = check(op, everything, chosen, arguments.jobs, arguments.minutes)
        survivors = [mutant for mutant, outcome in outcomes.items() if not outcome]
        refused = list(outcomes.values()).count(REFUSED)
        print(
            f"{op}: {len(outcomes) - len(survivors) - refused} killed, {refused} refused by the compiler, "
            f"{len(survivors)} survived, {len(chosen) - len(outcomes)} not run, "
            f"{(time.monotonic() - start) / 60:.1f} minutes"
        )
        for mutant in survivors:
            row = dict(zip(("file", "kind", "before", "after", "nth"), mutant.key(), strict=True))
            print(json.dumps({**row, "reason": ""}))
        failed |= bool(survivors)
    sys.exit(failed)


if __name__ == "__main__":
    main()
