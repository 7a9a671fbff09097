"""The mutation tool changes what it says it changes."""

import pytest

from tools import mutate


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  __syncthreads();", [("barrier", "  ;")]),
        ("  if (last) cluster.sync();", [("barrier", "  if (last) ;"), ("mask", "  if (true) cluster.sync();")]),
        ("  cooperative_groups::this_grid().sync();", [("barrier", "  ;")]),
        ("  __threadfence();  // before the count", [("barrier", "  ;  // before the count")]),
        ("for (int i = 0; i < n; ++i) sum += x[i];", [("bound", "for (int i = 0; i <= n; ++i) sum += x[i];")]),
        ("if (row >= rows) return;", [("bound", "if (row > rows) return;"), ("mask", "if (true) return;")]),
        ("f(a, lane < warps ? partial[lane] : 0.f);", [
            ("bound", "f(a, lane <= warps ? partial[lane] : 0.f);"),
            ("mask", "f(a, true ? partial[lane] : 0.f);"),
        ]),
        ("return kind == Kind::kRelu ? relu(v) : v;", [("mask", "return true ? relu(v) : v;")]),
        ("x = (a + f(b) > 0) ? b : c;", [("mask", "x = true ? b : c;")]),
        ("if constexpr (kVector < 4) f();", []),
        ("static_assert(sizeof(T) < 9);", []),
        ("Vector<T, 4> v = load<4>(p);  // if (x < 3)", []),
    ],
)  # fmt: skip
def test_changes_of_a_line(line, expected):
    assert sorted(mutate.changes(line)) == sorted(expected)


def test_a_mutant_is_named_without_its_line_number(tmp_path, monkeypatch):
    folder = tmp_path / "csrc" / "room"
    folder.mkdir(parents=True)
    (folder / "room.cuh").write_text("__syncthreads();\nf();\n  __syncthreads();\n")
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    first, second = mutate.mutants("room")
    assert first.key() == ("room/room.cuh", "barrier", "__syncthreads();", ";", 0)
    assert (second.key()[-1], second.line) == (1, 2)


def test_lists_of_equivalent_mutants_are_current_and_give_reasons():
    for path in mutate.EQUIVALENT.glob("*.json"):
        known = mutate.equivalents(path.stem)
        assert not set(known) - {mutant.key() for mutant in mutate.mutants(path.stem)}
        assert all(len(reason) > 20 for reason in known.values())
