"""Misspelled options end a command at once, with status 2 and what was expected and got."""

from __future__ import annotations

import argparse
import json

import pytest

from attnkernels import info
from benchmarks.__main__ import main, parser

NAMES = {  # option: (right names, a misspelled one)
    "micro": {
        "op": (("squeeze_excite", "selective_kernel"), "squeeze_exite"),
        "variant": (("plain",), "plane"),
        "direction": (("forward", "backward", "training"), "forwards"),
        "layout": (("nchw", "channels_last"), "nhwc"),
        "dtype": (("float32", "bfloat16"), "fp32"),
        "columns": (("eager", "ours", "compile_einsum"), "eagre"),
        "mode": (("launch", "warm", "cold"), "hot"),
        "device": (("cpu", "cuda"), "gpu"),
    },
    "models": {
        "model": (("seresnet50",), "seresnet5O"),
        "layout": (("nchw", "channels_last"), "nhwc"),
        "dtype": (("float32", "bfloat16"), "half"),
        "direction": (("forward", "training"), "backward"),
        "columns": (("eager", "patched"), "pached"),
        "device": (("cpu", "cuda"), "cup"),
    },
}  # fmt: skip
NUMBERS = {
    "micro": ("rounds", "threads"), "models": ("batch", "rounds", "threads"), "demo": ("threads",),
}  # fmt: skip
SECONDS = {"micro": ("budget", "limit"), "models": ("seconds",), "demo": ("seconds",)}
FILES = {"micro": ("json",), "models": ("json",), "demo": ("json", "picture")}

ROWS = [
    *([command, f"--{option}", wrong, "expected", repr(wrong)]
      for command, of in NAMES.items() for option, (_, wrong) in of.items()),
    *([command, f"--{option}", f"{right[0]},{wrong}", "expected", repr(wrong)]
      for command, of in NAMES.items() for option, (right, wrong) in of.items() if option != "device"),
    *([command, f"--{option}", wrong, "a whole number of at least 1", repr(wrong)]
      for command, of in NUMBERS.items() for option in of for wrong in ("many", "0", "1.5", "")),
    *([command, f"--{option}", wrong, "a number of seconds", repr(wrong)]
      for command, of in SECONDS.items() for option in of for wrong in ("soon", "-1", "nan", "5s")),
    *([command, f"--{option}", "/", "a file to write", "'/'"] for command, of in FILES.items() for option in of),
    ["micro", "--op", "squeeze", "did you mean 'squeeze_excite'?", "'squeeze'"],
    ["micro", "--shapes", "8x256x56x56", "NxCxHxWxrd for squeeze_excite", "'8x256x56x56'", "--op", "squeeze_excite"],
    ["micro", "--shapes", "8,256", "NxCxHxWxrd for squeeze_excite", "'8'", "--op", "squeeze_excite"],
    ["micro", "--shapes", "8x256xax56x16", "shapes as 8x256x56x56x16", "'8x256xax56x16'"],
    ["micro", "--variant", "residual+relu", "a variant of criss_cross", "'residual+relu'", "--op", "criss_cross_attention"],
    ["micro", "--mode", "warm", "none on a cpu", "'warm'"],
    ["models", "--columns", "patched", "eager among them", "'patched'"],
    ["demo", "--picture", "demo.jpgg", ".png", "'demo.jpgg'"],
    ["plot", "--out", "figure.txt", ".png", "'figure.txt'", "FILE"],
    ["plot", "file", "missing.json", "a result file", "'missing.json'"],
    ["compare", "before", "missing.json", "a result file", "'missing.json'", "FILE"],
    ["compare", "after", "missing.json", "a result file", "'missing.json'", "FILE"],
]  # fmt: skip


def error_of(call, arguments: list[str], capsys) -> str:
    """The last line that a command prints as it ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        call(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:3]))
def test_wrong_options(row, capsys, tmp_path):
    command, option, value, expected, got, *others = row
    file = tmp_path / "right.json"
    file.write_text(json.dumps({"rows": []}))
    others = [str(file) if other == "FILE" else other for other in others]
    given = [option, value] if option.startswith("--") else [value]
    first, second = (others, given) if option == "after" else (given, others)
    message = error_of(main, [command, *first, *second], capsys)
    assert len(message) <= 300
    assert f"error: argument {option}: expected " in message
    assert expected in message
    assert f", got {got}" in message


def test_a_result_file_has_rows(tmp_path, capsys):
    for text in ("", "[]", "{}", "no json"):
        file = tmp_path / "wrong.json"
        file.write_text(text)
        assert "argument file: expected a result file" in error_of(main, ["plot", str(file)], capsys)


def test_right_names_are_taken():
    for command, of in NAMES.items():
        for option, (right, _) in of.items():
            if option == "device":
                continue
            found = parser().parse_args([command, f"--{option}", ",".join(right)])
            assert getattr(found, option) == right


@pytest.mark.parametrize(
    ("call", "given"),
    [(main, ["mirco"]), (main, []), (main, ["micro", "--typo"]), (main, ["readme", "--typo"]), (info.main, ["--typo"])],
)
def test_unknown_commands_and_options(call, given, capsys):
    message = error_of(call, given, capsys)
    assert len(message) <= 300
    assert given[-1:] == [] or given[-1] in message


def test_every_option_has_rows():
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    takes_values = {
        (name, action.option_strings[0] if action.option_strings else action.dest)
        for name, command in commands.choices.items()
        for action in command._actions
        if action.nargs != 0
    }
    assert {(row[0], row[1]) for row in ROWS} == takes_values
