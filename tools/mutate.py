"""Does the suite notice broken kernels? `python -m tools.mutate [--list] [--sample N] [--minutes M] ROOM ...`

Each mutant is the room's kernels (csrc/<room>/*.cuh) with one change:

    barrier   a __syncthreads, __syncwarp, fence or group barrier is removed
    bound     a comparison is loosened by one:  <  to  <=,  >=  to  >
    mask      the condition of an `if` or of a `?:` is always true

It is built as the room's stand-alone program (tests/emulation/standalone/<room>.cpp) with AddressSanitizer, then with
ThreadSanitizer, and must fail in one of them: by wrong numbers, a report, a deadlock, or too long a run. Mutants that
change nothing are listed with the reason in tests/emulation/equivalent_mutants/<room>.json. Exits with 1 where another
one survives.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tools import emulated

ROOT = emulated.ROOT
WORK = ROOT / "build" / "mutate"
EQUIVALENT = ROOT / "tests" / "emulation" / "equivalent_mutants"

BARRIER = re.compile(
    r"__syncthreads\(\);|__syncwarp\([^()]*\);|__threadfence\(\);|[\w.():]+\.(?:sync|barrier_\w+)\([^()]*\);"
)
COMPARISON = re.compile(r" (<|>=) ")
CONDITION = re.compile(r"\bif \(")
# What a condition of `?:` can begin behind, outside parentheses of its own.
BEFORE_CONDITION = ("= ", "return ", ", ", "? ", " : ", "{")
COMPARISONS = ("== ", "!= ", "<= ", ">= ")


@dataclass(frozen=True)
class Mutant:
    """One change: at `line` (from 0) of csrc/<file>, `before` becomes `after`; `nth` of equal changes in the file."""

    file: str
    kind: str
    line: int
    before: str
    after: str
    nth: int

    def key(self) -> tuple[str, str, str, str, int]:
        """What names it in the list of equivalent mutants: no line number, so that other edits do not matter."""
        return self.file, self.kind, self.before.strip(), self.after.strip(), self.nth

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1} {self.kind}: {self.after.strip()}"


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
        depth += {")": 1, "(": -1}.get(code[position], 0)
        before = code[: position + 1]
        if depth < 0 or (depth == 0 and before.endswith(BEFORE_CONDITION) and not before.endswith(COMPARISONS)):
            return position + 1
    return len(code) - len(code.lstrip())


def changes(line: str) -> Iterator[tuple[str, str]]:
    """(kind, changed line) of everything that can be changed in one line."""
    code = line.split("//")[0]
    if re.search(r"static_assert|if constexpr|^\s*#|^\s*template", code):
        return
    for match in BARRIER.finditer(code):
        yield "barrier", line[: match.start()] + ";" + line[match.end() :]
    for match in COMPARISON.finditer(code):
        looser = {"<": "<=", ">=": ">"}[match.group(1)]
        yield "bound", f"{line[: match.start()]} {looser} {line[match.end() :]}"
    for match in CONDITION.finditer(code):
        end = _closing(code, match.end() - 1)
        if end is not None:
            yield "mask", f"{line[: match.end()]}true{line[end:]}"
    for match in re.finditer(r" \? ", code):
        start = _condition(code, match.start())
        yield "mask", f"{line[:start]}true{line[match.start() :]}"


def mutants(room: str) -> list[Mutant]:
    """Every mutant of a room, in the order of its files."""
    found = []
    for path in sorted((ROOT / "csrc" / room).glob("*.cuh")):
        seen: dict[tuple[str, str], int] = {}
        for number, line in enumerate(path.read_text().splitlines()):
            for kind, after in changes(line):
                nth = seen.get((line.strip(), after.strip()), 0)
                seen[line.strip(), after.strip()] = nth + 1
                found.append(Mutant(f"{room}/{path.name}", kind, number, line, after, nth))
    return found


def equivalents(room: str) -> dict[tuple, str]:
    """Reasons of the mutants that are known to change nothing."""
    path = EQUIVALENT / f"{room}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return {tuple(row[name] for name in ("file", "kind", "before", "after", "nth")): row["reason"] for row in rows}


class Workplace:
    """A copy of the sources in which one mutant after the other is built and run."""

    def __init__(self, room: str, number: int) -> None:
        self.room, self.folder = room, WORK / f"{room}-{number}"
        self.csrc = self.folder / "csrc"
        if self.csrc.exists():
            shutil.rmtree(self.csrc)
        shutil.copytree(ROOT / "csrc", self.csrc, copy_function=shutil.copy2)

    def run(self, mode: str, timeout: float) -> tuple[str, float]:
        """How the program ended, "" when well; and the seconds that it ran."""
        ninja_file = emulated.NinjaFile(mode, self.csrc, self.folder / mode)
        ninja_file.program(self.room)
        try:
            emulated.run_ninja(ninja_file, jobs=1)
        except RuntimeError:
            return "does not compile", 0.0
        start = time.monotonic()
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
        try:
            done = subprocess.run(
                [self.folder / mode / self.room], env=environment, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return f"{mode}: ran for more than {timeout:.0f} s", timeout
        return ("" if done.returncode == 0 else f"{mode}: exit code {done.returncode}"), time.monotonic() - start

    def kill(self, mutant: Mutant, timeouts: dict[str, float]) -> str:
        """What noticed the mutant; empty when it survived."""
        path = self.csrc / mutant.file
        original = path.read_text()
        lines = original.splitlines()
        lines[mutant.line] = mutant.after
        path.write_text("\n".join(lines) + "\n")
        try:
            # Who is more likely to notice comes first.
            for mode in ("tsan", "asan") if mutant.kind == "barrier" else ("asan", "tsan"):
                if outcome := self.run(mode, timeouts[mode])[0]:
                    return outcome
            return ""
        finally:
            path.write_text(original)


def baseline(workplace: Workplace) -> dict[str, float]:
    """Builds and runs the kernels as they are; the time limits of their mutants."""
    limits = {}
    for mode in ("asan", "tsan"):
        outcome, seconds = workplace.run(mode, 600)
        if outcome:
            sys.exit(f"{workplace.room} fails without any mutation: {outcome}")
        limits[mode] = 20 + 5 * seconds
    return limits


def check(room: str, chosen: list[Mutant], jobs: int, minutes: float) -> tuple[list[Mutant], int]:
    """Builds and runs the mutants; the survivors, and how many there was no time for."""
    deadline = time.monotonic() + 60 * minutes
    workplaces: queue.Queue[Workplace] = queue.Queue()
    everyone = [Workplace(room, number) for number in range(jobs)]
    limits = baseline(everyone[0])
    for workplace in everyone:
        workplaces.put(workplace)
    survivors, left_out, printing = [], 0, threading.Lock()

    def one(mutant: Mutant) -> None:
        nonlocal left_out
        if time.monotonic() > deadline:
            left_out += 1
            return
        workplace = workplaces.get()
        try:
            outcome = workplace.kill(mutant, limits)
        finally:
            workplaces.put(workplace)
        with printing:
            print(f"{'survived' if not outcome else 'killed  '}  {mutant}   [{outcome}]", flush=True)
        if not outcome:
            survivors.append(mutant)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, chosen))
    return survivors, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="default: every room with a stand-alone program")
    parser.add_argument("--list", action="store_true", help="print the mutants and do nothing")
    parser.add_argument("--match", default="", help="only mutants whose description contains this text")
    parser.add_argument("--sample", type=int, help="so many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--minutes", type=float, default=60, help="start no mutant after that time")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
    arguments = parser.parse_args()
    rooms = arguments.rooms or [name for name in emulated.programs() if list((ROOT / "csrc" / name).glob("*.cuh"))]
    failed = False
    for room in rooms:
        known = equivalents(room)
        everything = mutants(room)
        unknown_rows = set(known) - {mutant.key() for mutant in everything}
        chosen = [mutant for mutant in everything if mutant.key() not in known and arguments.match in str(mutant)]
        if arguments.sample is not None and arguments.sample < len(chosen):
            chosen = random.Random(arguments.seed).sample(chosen, arguments.sample)
        print(f"{room}: {len(everything)} mutants, {len(known)} known to be equivalent, {len(chosen)} to run")
        for row in sorted(unknown_rows):
            print(f"no such mutant any more, remove it from the list: {row}")
        failed |= bool(unknown_rows)
        if arguments.list:
            print("\n".join(map(str, chosen)))
            continue
        survivors, left_out = check(room, chosen, arguments.jobs, arguments.minutes)
        print(
            f"{room}: {len(chosen) - left_out - len(survivors)} killed, {len(survivors)} survived, {left_out} not run"
        )
        for mutant in survivors:
            row = dict(zip(("file", "kind", "before", "after", "nth"), mutant.key(), strict=True))
            print(json.dumps({**row, "reason": ""}))
        failed |= bool(survivors)
    sys.exit(failed)


if __name__ == "__main__":
    main()
