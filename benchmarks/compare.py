"""What changed between two result files: times, and speed-ups, which survive a change of machine better."""

from __future__ import annotations

from . import report


def changes(before: report.Document, after: report.Document) -> list[tuple[str, str, float, float]]:
    """(row, column, before, after) in seconds for every row and column that both files have."""
    old = {report.row_key(row): row for row in before["rows"] if "median" in row}
    found = []
    for row in after["rows"]:
        key = report.row_key(row)
        if "median" in row and key in old:
            earlier = old[key]["median"]
            found += [(key, name, earlier[name], value) for name, value in row["median"].items() if name in earlier]
    return found


def run(arguments) -> int:
    """`python -m benchmarks compare`; 0 if the files have rows in common."""
    before, after = report.load(arguments.before), report.load(arguments.after)
    found = changes(before, after)
    for name, document in (("before", before), ("after", after)):
        place = document["environment"]
        print(f"{name}: {place['device']}, torch {place['versions']['torch']}, commit {(place['commit'] or '?')[:12]}")
    report.print_table(
        "times",
        ["row", "column", "before", "after", "after / before"],
        [[key, name, report.seconds(a), report.seconds(b), f"{b / a:.2f}"] for key, name, a, b in found],
    )
    ratios = {
        (report.row_key(row), name): value["median"]
        for row in before["rows"]
        for name, value in row.get("ratios", {}).items()
    }
    report.print_table(
        "speed-ups",
        ["row", "of", "before", "after"],
        [
            [report.row_key(row), name, f"{ratios[report.row_key(row), name]:.2f}", f"{value['median']:.2f}"]
            for row in after["rows"]
            for name, value in row.get("ratios", {}).items()
            if (report.row_key(row), name) in ratios
        ],
    )
    return 0 if found else 1
