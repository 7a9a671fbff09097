"""The table of fingerprints, and the command that compares it with the installed libraries."""

from __future__ import annotations

from timm.layers.squeeze_excite import SEModule
from torchvision.ops.misc import SqueezeExcitation

from attnkernels.patching._fingerprints import TABLE, known
from attnkernels.patching._registry import ADAPTERS
from tools import fingerprints

SE = "timm.layers.squeeze_excite.SEModule"
EXCITATION = "torchvision.ops.misc.SqueezeExcitation"


def test_the_table_knows_the_installed_libraries():
    libraries = {name.partition(".")[0] for name, *_ in fingerprints.installed(TABLE)}
    assert {"timm", "torchvision", "torch"} <= libraries
    assert fingerprints.unknown(TABLE) == []
    assert fingerprints.main([]) == 0


def test_each_class_of_an_adapter_is_in_the_table():
    assert all(known(name, adapter.methods) for name, adapter in ADAPTERS.items())


def test_the_table_is_as_the_command_writes_it():
    source = fingerprints.FILE.read_text()
    assert fingerprints.text(source, TABLE) == source
    assert fingerprints.text(source, TABLE[1:]) != source
    places = [row[0] for row in fingerprints.extended(TABLE)]
    assert list(dict.fromkeys(places)) == list(dict.fromkeys(row[0] for row in TABLE))


def test_changed_forwards_are_reported_and_added(monkeypatch, capsys, tmp_path):
    def forward(self, x):
        return x

    def _scale(self, input):
        return input

    monkeypatch.setattr(SEModule, "forward", forward)
    monkeypatch.setattr(SqueezeExcitation, "_scale", _scale)
    new = fingerprints.unknown(TABLE)
    assert [row[0] for row in new] == [SE, EXCITATION]
    copied = tmp_path / "table.py"
    copied.write_text(fingerprints.FILE.read_text())
    monkeypatch.setattr(fingerprints, "FILE", copied)
    assert fingerprints.main([]) == 1
    assert f"{SE} (forward) of version {new[0][1]} is not known: {new[0][4]}" in capsys.readouterr().out
    assert copied.read_text() == fingerprints.text(copied.read_text(), TABLE)
    assert fingerprints.main(["--write"]) == 0
    written: dict = {}
    exec(copied.read_text(), written)
    assert set(written["TABLE"]) - set(TABLE) >= set(new)
    assert {row[0] for row in written["TABLE"]} == {row[0] for row in TABLE}
    assert fingerprints.unknown(written["TABLE"]) == []


def test_a_class_is_entered_without_a_fingerprint():
    row = next(row for row in fingerprints.installed(TABLE) if row[0] == SE)
    assert fingerprints.extended([(SE, "", "", "forward", "")]) == [row]


def test_versions_are_a_range():
    name, _, _, methods, value = next(row for row in TABLE if row[0] == SE)
    (row,) = fingerprints.extended([(name, "1.0.9", "1.0.10", methods, value)])
    assert row[1] == "1.0.9"
    assert fingerprints._order(row[2]) > fingerprints._order("1.0.10")
    (row,) = fingerprints.extended([(name, "99.1", "99.2", methods, value)])
    assert row[2] == "99.2"
    assert fingerprints._order(row[1]) < fingerprints._order("99.1")
