"""The committed table of what kernels cost: nothing may get worse, and the goals hold."""

from __future__ import annotations

import pytest

from tools.budgets import __main__ as budgets
from tools.budgets import cuda, table


def has_rows(source: str, room: str) -> bool:
    """Whether the committed table of a room has rows from that source."""
    wall = "triton" if source == "triton" else "cuda"
    return any(row["wall"] == wall and ("case" in row) == (source == "traffic") for row in table.load(room)["rows"])


MEASURED = [
    pytest.param(source, room, id=f"{source}-{room}", marks=pytest.mark.xdist_group(f"budgets-{source}"))
    for source, module in budgets.SOURCES.items()
    if not module.why_unavailable()
    for room in module.rooms()
    if has_rows(source, room)
]
ROOMS = sorted({room for room in cuda.rooms()})


def test_every_room_has_a_budget():
    assert all(has_rows("cuda", room) for room in ROOMS)
    assert has_rows("traffic", "squeeze_excite")


@pytest.mark.parametrize(("source", "room"), MEASURED)
def test_no_kernel_costs_more_than_its_budget(source, room):
    problems, rows = budgets.measure(source, room, quick=True)
    assert rows
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("room", ROOMS)
def test_no_kernel_spills_and_streams_are_wide(room):
    rows = [row for row in table.load(room)["rows"] if "spill_bytes" in row["figures"]]
    assert rows
    assert not [table.describe(table.key_of(row)) for row in rows if row["figures"]["spill_bytes"]]


# The passes over each buffer, of both dtypes and layouts in the cases of tests/emulation/traffic/squeeze_excite.py.
SQUEEZE_EXCITE_PASSES = {
    "two passes": {("x", "read"): 2 + 1, ("y", "write"): 1, ("grad_y", "read"): 2, ("grad_x", "write"): 1},
    "single pass": {("x", "read"): 1 + 1, ("y", "write"): 1, ("grad_y", "read"): 1, ("grad_x", "write"): 1},
}


@pytest.mark.parametrize("path", SQUEEZE_EXCITE_PASSES)
def test_squeeze_excite_reads_and_writes_no_more_than_it_must(path):
    rows = [r for r in table.load("squeeze_excite")["rows"] if r.get("case", "").startswith(path) and "access" in r]
    runs = {(r["case"], r["dtype"]) for r in rows}
    assert len(runs) == 4
    for run in runs:
        factors = dict.fromkeys(SQUEEZE_EXCITE_PASSES[path], 0.0)
        for r in rows:
            if (r["case"], r["dtype"]) == run:
                factors[r["buffer"], r["access"]] += r["figures"]["factor"]
        assert factors == SQUEEZE_EXCITE_PASSES[path]
    assert all(r["figures"]["bytes_per_access"] == 16 and r["figures"]["sector_efficiency"] >= 0.99 for r in rows)


def row(registers=32, kernel="pool", **figures):
    return {"kernel": kernel, "wall": "cuda", "arch": "sm_90", "figures": {"registers": registers, **figures}}


def test_comparison():
    committed = [row(32, load_bits=128, occupancy=0.75)]
    assert table.compare(committed, [row(32, load_bits=128, occupancy=0.75)]) == []
    assert table.compare(committed, [row(24, load_bits=128, occupancy=1.0)]) == []
    assert table.compare(committed, [row(40, load_bits=64, occupancy=0.5)]) == [
        "cuda sm_90 pool: registers 32 -> 40, load_bits 128 -> 64, occupancy 0.75 -> 0.5"
    ]
    assert table.compare(committed, [row(40, load_bits=64, occupancy=0.5)], same_compiler=False) == [
        "cuda sm_90 pool: load_bits 128 -> 64"
    ]
    assert table.compare(committed, [row(), row(kernel="scale")]) == ["cuda sm_90 scale: has no row in the table"]
    assert table.compare(committed, [row(kernel="scale")])[1] == "cuda sm_90 pool: no such kernel any more"
    other_architecture = {**row(), "arch": "sm_80"}
    assert table.compare([*committed, other_architecture], [row()]) == []  # sm_80 was not measured
    with pytest.raises(ValueError, match="colour"):
        table.compare([row(colour=1)], [row(colour=2)])


def test_tables_are_written_one_row_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    rows = [row(kernel="scale"), row(kernel="pool")]
    table.save("room", {"nvcc": "13.0"}, rows)
    assert table.load("room") == {"compilers": {"nvcc": "13.0"}, "rows": rows[::-1]}
    assert len((tmp_path / "room.json").read_text().splitlines()) == 4
    assert table.load("other") == {"compilers": {}, "rows": []}


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared_bytes", "expected"),
    [  # as cuda_occupancy.h computes them
        ("90", 32, 256, 0, 1.0),
        ("90", 40, 256, 0, 0.75),
        ("90", 64, 256, 0, 0.5),
        ("90", 255, 256, 0, 0.125),
        ("90", 40, 96, 3000, 0.75),
        ("75", 32, 256, 0, 1.0),
        ("120", 32, 1024, 0, 2 / 3),
    ],
)
def test_occupancy(architecture, registers, threads, shared_bytes, expected):
    assert cuda.occupancy(architecture, registers, threads, shared_bytes) == pytest.approx(expected)
