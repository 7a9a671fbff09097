"""The committed table of what kernels cost: nothing may get worse, and the goals hold."""

from __future__ import annotations

import pytest

from attnkernels import testing
from tools.budgets import __main__ as budgets
from tools.budgets import cuda, table


def has_rows(source: str, op: str) -> bool:
    """Whether the committed table of an op has rows from that source."""
    backend = "triton" if source == "triton" else "cuda"
    return any(row["backend"] == backend and ("case" in row) == (source == "traffic") for row in table.load(op)["rows"])


MEASURED = [
    pytest.param(source, op, id=f"{source}-{op}", marks=pytest.mark.xdist_group(f"budgets-{source}"))
    for source, module in budgets.SOURCES.items()
    if not module.why_unavailable()
    for op in module.ops()
    if has_rows(source, op)
]
OPS = sorted({op for op in cuda.ops()})


def test_every_room_has_a_budget():
    assert all(has_rows(source, op) for source in ("cuda", "traffic") for op in OPS)


@pytest.mark.parametrize(("source", "op"), MEASURED)
def test_no_kernel_costs_more_than_its_budget(source, op):
    problems, rows = budgets.measure(source, op, quick=True)
    assert rows
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills_and_streams_are_wide(op):
    rows = [row for row in table.load(op)["rows"] if "spill_bytes" in row["figures"]]
    assert rows
    assert not [table.describe(table.key_of(row)) for row in rows if row["figures"]["spill_bytes"]]


def traffic_of(op, case, dtype) -> tuple[dict[tuple[str, str], float], list[dict]]:
    """Bytes that a run moved of each buffer, over the buffer's size; and the rows that say so."""
    rows = [r for r in table.load(op)["rows"] if r.get("case") == case and r["dtype"] == dtype and "access" in r]
    factors: dict[tuple[str, str], float] = {}
    for r in rows:
        key = r["buffer"], r["access"]
        factors[key] = factors.get(key, 0.0) + r["figures"]["factor"]
    return factors, rows


def is_wide(r: dict) -> bool:
    """Whether accesses are of 16 bytes, in whole sectors."""
    return r["figures"]["bytes_per_access"] == 16 and r["figures"]["sector_efficiency"] >= 0.99


DTYPES = ("float32", "bfloat16")
STREAMING = [
    pytest.param(op, call, id=f"{op}-{call.name}")
    for op, calls in testing.TRAFFIC.items()
    for call in calls
    if call.reads or call.writes
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "call"), STREAMING)
def test_maps_are_read_and_written_no_more_than_they_must(op, call, dtype):
    factors, rows = traffic_of(op, call.name, dtype)
    expected = {(name, "read"): factor for name, factor in call.reads.items()}
    assert factors == expected | {(name, "write"): factor for name, factor in call.writes.items()}
    assert all(map(is_wide, rows))


# A block of the criss_cross kernels owns a tile of 64 pixels of a line (rows) and walks over the tiles of the same line
# (columns), so that a line of t tiles is read t times; the two axes make one pass each. `LINES` is the tiles of a row and
# those of a column: 2 + 1 for 72 x 2 pixels, as on any map of up to 128 x 64. `VALUES` is the tiles of value channels that
# a block each has (of 64 in float32, 128 in bfloat16), whose blocks repeat the products of query and key. So attention
# reads query and key VALUES * LINES times and value LINES times. On a GPU the repeats come from the L2 cache, which holds
# the maps of a sample.
# The attention in 16 bits takes a block to a whole line of up to 128 pixels instead. The forward reads it once for every
# 128 or 256 value channels: twice here, in the column pass and the row pass. The backward reads values and grad_out once
# a pass, queries and keys twice, for the energies and for their gradients.
# Maps are read 16 bytes at a time. Results leave the registers of a matrix product as these lie there: 4 bytes at a time,
# of a pixel a sector in float32, half of one in 16 bits. Rows of an affinity have H + W - 1 entries and are not aligned:
# single entries, in parts of sectors.
LINES = 2 + 1
VALUES = {"float32": 2, "bfloat16": 1}


def criss_cross_reads(case: str, dtype: str) -> dict[str, int]:
    """Of the maps that a case is given."""
    values = VALUES[dtype]
    if dtype == "bfloat16" and case == "attention, forward":
        return dict.fromkeys(("query", "key", "value"), 1 + 1)
    if dtype == "bfloat16" and case == "attention, backward":  # delta reads grad_out and out
        return {"query": 2 * (1 + 1), "key": 2 * (1 + 1), "value": 1 + 1, "grad_out": 1 + 1 + 1, "out": 1}
    return {
        "attention, forward": {"query": values * LINES, "key": values * LINES, "value": LINES},
        "attention, backward": {
            # grad_query, grad_key, grad_value; delta reads grad_out and out
            "query": (1 + 2 + values) * LINES,
            "key": (2 + 1 + values) * LINES,
            "value": (1 + 1) * LINES,
            "grad_out": (1 + 1 + 1) * LINES + 1,
            "out": 1,
        },
        "affinity, forward": {"query": LINES, "key": LINES},
        "affinity, backward": {"query": LINES, "key": LINES, "grad_affinity": 1 + 1},
        "aggregate, forward": {"affinity": values, "value": LINES},
        "aggregate, backward": {"affinity": values, "value": LINES, "grad_out": LINES + LINES},
    }[case]


# Results: those whose sums the column pass leaves for the row pass, and those that each pass writes a part of.
CRISS_CROSS_RESULTS = {
    "attention, forward": (["out"], []),
    "attention, backward": (["grad_query", "grad_key", "grad_value"], []),
    "affinity, forward": ([], ["affinity"]),
    "affinity, backward": (["grad_query", "grad_key"], []),
    "aggregate, forward": (["out"], []),
    "aggregate, backward": (["grad_value"], ["grad_affinity"]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CRISS_CROSS_RESULTS)
def test_criss_cross_reads_what_its_tiles_need(case, dtype):
    expected = {(name, "read"): factor for name, factor in criss_cross_reads(case, dtype).items()}
    summed, parts = CRISS_CROSS_RESULTS[case]
    expected |= {(name, "write"): 1 for name in (*summed, *parts)}
    if dtype == "float32":  # the sums lie in the result itself, which has the type for it
        expected |= {(name, "write"): 2 for name in summed} | {(name, "read"): 1 for name in summed}
    factors, rows = traffic_of("criss_cross", case, dtype)
    assert factors == expected
    streamed = [r for r in rows if r["buffer"] in ("query", "key", "value", "grad_out") and r["access"] == "read"]
    assert streamed
    assert all(map(is_wide, streamed))


@pytest.mark.parametrize("dtype", ["float64", *DTYPES])
@pytest.mark.parametrize("direction", ["NCHW to NHWC", "NHWC to NCHW"])
def test_layout_copies_read_and_write_once(direction, dtype):
    factors, rows = traffic_of("layout", f"{direction}, aligned planes", dtype)
    assert factors == {("from", "read"): 1, ("to", "write"): 1}
    assert all(map(is_wide, rows))
    factors, _ = traffic_of("layout", f"{direction}, odd planes", dtype)
    assert factors["from", "read"] < 1.13
    assert factors["to", "write"] == 1


def row(registers=32, kernel="pool", **figures):
    return {"kernel": kernel, "backend": "cuda", "arch": "sm_90", "figures": {"registers": registers, **figures}}


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
    table.save("op", {"nvcc": "13.0"}, rows)
    assert table.load("op") == {"compilers": {"nvcc": "13.0"}, "rows": rows[::-1]}
    assert len((tmp_path / "op.json").read_text().splitlines()) == 4
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
