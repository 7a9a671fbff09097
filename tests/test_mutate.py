"""The mutation tool changes what it says it changes."""

import os
import subprocess

import pytest

from tools import mutate


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  __syncthreads();", [("barrier", "  ;")]),
        ("  if (last) cluster.sync();", [("barrier", "  if (last) ;"), ("mask", "  if (true) cluster.sync();")]),
        ("  cooperative_groups::this_grid().sync();", [("barrier", "  ;")]),
        ("  __threadfence();  // before the count", [("barrier", "  ;  // before the count")]),
        ("  attnkernels::wait_for_primary_grid();", [("barrier", "  ;")]),
        ("for (int i = 0; i < n; ++i) sum += x[i];", [("bound", "for (int i = 0; i <= n; ++i) sum += x[i];")]),
        ("if (row >= rows) return;", [("bound", "if (row > rows) return;"), ("mask", "if (true) return;")]),
        ("f(a, lane < warps ? partial[lane] : 0.f);", [
            ("bound", "f(a, lane <= warps ? partial[lane] : 0.f);"),
            ("mask", "f(a, true ? partial[lane] : 0.f);"),
        ]),
        ("return kind == Kind::kRelu ? relu(v) : v;", [("mask", "return true ? relu(v) : v;")]),
        ("x = (a + f(b) > 0) ? b : c;", [("mask", "x = true ? b : c;")]),
        ("x += y[i] * z[kLast ? j : 0];", [("mask", "x += y[i] * z[true ? j : 0];")]),
        ("if constexpr (kVector < 4) f();", []),
        ("static_assert(sizeof(T) < 9);", []),
        ("Vector<T, 4> v = load<4>(p);  // if (x < 3)", []),
    ],
)  # fmt: skip
def test_changes_of_a_line(line, expected):
    assert sorted((change.kind, change.apply(line)) for change in mutate.changes(line)) == sorted(expected)


def test_a_mutant_is_named_without_its_line_number(tmp_path, monkeypatch):
    folder = tmp_path / "csrc" / "op"
    folder.mkdir(parents=True)
    (folder / "op.cuh").write_text("__syncthreads();\nf();\n  __syncthreads();\n")
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    first, second = mutate.mutants("op")
    assert first.key() == ("op/op.cuh", "barrier", "__syncthreads();", ";", 0)
    assert (second.key()[-1], second.number) == (1, 2)


PLANTED = """
#include <cstdio>
struct Group {
  int arrived = 0;
  void sync() { ++arrived; }
};
struct Range {
  const int* data;
  int size;
};
template <class T>
int f(const Range& range, T first, const Range* other) {
  int total = 0;
  Group group;
  for (T i = first; i < range.size && i < 6; ++i) total += range.data[i];
  if (total >= 10 || (other ? other->size : 1) < 2) total += other ? 100 : 200;  // several in a line, one in another
  group.sync();
  if (other && total >= 8) group.sync();
  const int last = first >= 2 ? first < 3 ? 1 : 2 : 3, pick = range.data[range.size < 4 ? 0 : 1];
  if (last >= 3) return total * 10 + group.arrived;
  const Range moved{other ? other->data + 1 : nullptr, total < 7 ? 5 : 6};
  return 1000 * (moved.data ? 1 : 2) + 100 * moved.size + total + last + pick + group.arrived;
}
int main() {
  const int data[] = {1, 2, 3, 4, 5, 6, 7, 8};
  const Range ranges[] = {{data, 3}, {data, 5}, {data + 3, 5}};
  for (const Range& range : ranges)
    for (int first = 0; first < 4; ++first)
      std::printf("%d %d ", f<int>(range, first, nullptr), f<long>(range, first, ranges));
}
"""


def test_a_switch_does_what_its_mutant_does(tmp_path):
    """Of several in one line too: the program with switches, and the one with the mutant's text, print the same."""

    def output(name, lines, *flags, mutant=0):
        program = tmp_path / name
        if not program.exists():
            program.with_suffix(".cpp").write_text("\n".join(lines))
            command = ["g++", "-std=c++20", *flags, str(program.with_suffix(".cpp")), "-o", str(program)]
            subprocess.run(command, check=True, capture_output=True, text=True)
        environment = {**os.environ, mutate.NUMBER: str(mutant)}
        return subprocess.run([program], env=environment, capture_output=True, text=True, timeout=10).stdout

    lines = PLANTED.splitlines()
    found = [(at, change) for at, line in enumerate(lines) for change in mutate.changes(line)]
    with_switches = list(lines)
    for at in {at for at, _ in found}:
        numbered = [(number, change) for number, (where, change) in enumerate(found, 1) if where == at]
        with_switches[at] = mutate.switched(lines[at], numbered)
    flags = ["-include", str(mutate.SWITCHES), str(mutate.SWITCHES.with_suffix(".cpp"))]
    unchanged = output("unchanged", lines)
    assert unchanged
    assert output("switches", with_switches, *flags) == unchanged
    different = 0
    for number, (at, change) in enumerate(found, 1):
        expected = output(f"mutant{number}", [*lines[:at], change.apply(lines[at]), *lines[at + 1 :]])
        assert output("switches", with_switches, mutant=number) == expected, change.apply(lines[at])
        different += expected != unchanged
    assert different >= 15, "the planted program hardly notices"


def test_lists_of_equivalent_mutants_are_current_and_give_reasons():
    for path in mutate.EQUIVALENT.glob("*.json"):
        known = mutate.equivalents(path.stem)
        assert not set(known) - {mutant.key() for mutant in mutate.mutants(path.stem)}
        assert all(len(reason) > 20 for reason in known.values())
