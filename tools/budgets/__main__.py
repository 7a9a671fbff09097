"""`python -m tools.budgets [--update] [--source SOURCE] [OP ...]`: compare with the table, or rewrite it."""

from __future__ import annotations

import argparse
import sys

from tools.budgets import cuda, table, traffic, triton

SOURCES = {"cuda": cuda, "triton": triton, "traffic": traffic}


def measure(source: str, op: str, quick: bool = False) -> tuple[list[str], list[dict]]:
    """Problems against the committed table, and the rows measured."""
    committed = table.load(op)
    module = SOURCES[source]
    rows = list(module.rows(op, quick))
    same_compiler = committed["compilers"].get(module.COMPILER) == module.compiler()
    return table.compare(committed["rows"], rows, same_compiler), rows


def update(source: str, op: str, rows: list[dict]) -> None:
    """Replace the rows of that source; the others stay."""
    committed = table.load(op)
    groups = {table.group_of(row) for row in rows}
    kept = [row for row in committed["rows"] if table.group_of(row) not in groups]
    module = SOURCES[source]
    table.save(op, {**committed["compilers"], module.COMPILER: module.compiler()}, kept + rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the table with what is measured now")
    parser.add_argument("--source", choices=sorted(SOURCES), action="append")
    parser.add_argument("ops", nargs="*", metavar="OP")
    arguments = parser.parse_args()
    failed = False
    for source in arguments.source or SOURCES:
        if reason := SOURCES[source].why_unavailable():
            print(f"{source}: not measured: {reason}")
            continue
        for op in SOURCES[source].ops():
            if arguments.ops and op not in arguments.ops:
                continue
            problems, rows = measure(source, op)
            print(f"{source} {op}: {len(rows)} rows, {len(problems)} differ")
            if arguments.update:
                update(source, op, rows)
            else:
                print("".join(f"  {problem}\n" for problem in problems), end="")
            failed |= bool(problems) and not arguments.update
    sys.exit(failed)


if __name__ == "__main__":
    main()
