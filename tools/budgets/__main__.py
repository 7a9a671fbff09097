"""`python -m tools.budgets [--update] [--source SOURCE] [ROOM ...]`: compare with the table, or rewrite it."""

from __future__ import annotations

import argparse
import sys

from tools.budgets import cuda, table, traffic, triton

SOURCES = {"cuda": cuda, "triton": triton, "traffic": traffic}


def measure(source: str, room: str, quick: bool = False) -> tuple[list[str], list[dict]]:
    """Problems against the committed table, and the rows measured."""
    committed = table.load(room)
    module = SOURCES[source]
    rows = list(module.rows(room, quick))
    same_compiler = committed["compilers"].get(module.COMPILER) == module.compiler()
    return table.compare(committed["rows"], rows, same_compiler), rows


def update(source: str, room: str, rows: list[dict]) -> None:
    """Replace the rows of that source; the others stay."""
    committed = table.load(room)
    groups = {table.group_of(row) for row in rows}
    kept = [row for row in committed["rows"] if table.group_of(row) not in groups]
    module = SOURCES[source]
    table.save(room, {**committed["compilers"], module.COMPILER: module.compiler()}, kept + rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the table with what is measured now")
    parser.add_argument("--source", choices=sorted(SOURCES), action="append")
    parser.add_argument("rooms", nargs="*", metavar="ROOM")
    arguments = parser.parse_args()
    failed = False
    for source in arguments.source or SOURCES:
        if reason := SOURCES[source].why_unavailable():
            print(f"{source}: not measured: {reason}")
            continue
        for room in SOURCES[source].rooms():
            if arguments.rooms and room not in arguments.rooms:
                continue
            problems, rows = measure(source, room)
            print(f"{source} {room}: {len(rows)} rows, {len(problems)} differ")
            if arguments.update:
                update(source, room, rows)
            else:
                print("".join(f"  {problem}\n" for problem in problems), end="")
            failed |= bool(problems) and not arguments.update
    sys.exit(failed)


if __name__ == "__main__":
    main()
