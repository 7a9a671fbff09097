"""Any value in a message: short, on one line, and no error of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attnkernels._messages import LONGEST, meant, one_of, shown


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class NoLength(list):
    def __len__(self):
        raise RuntimeError("no length")


class NoShape(torch.Tensor):
    @property
    def shape(self):
        raise RuntimeError("no shape")


VALUES = [
    (None, "None"), (True, "True"), (16, "16"), (1.5, "1.5"), (float("nan"), "nan"), (1j, "1j"), ("relu", "'relu'"),
    ("a" * 28 + "x" * 1000 + "b" * 28, f"'{'a' * 27}...{'b' * 28}'"), ("a\nb", r"'a\nb'"), (b"x", "b'x'"),
    (torch.ones(2, 3), "tensor of float32 [2, 3] on cpu"), (nn.Parameter(torch.ones(1)), "tensor of float32 [1] on cpu"),
    (torch.ones(2, device="meta", dtype=torch.int8), "tensor of int8 [2] on meta"), (torch.float32, "torch.float32"),
    (np.ones((3, 4), np.float32), "numpy array of float32 [3, 4]"), (np.array(["a"]), "numpy array of <U1 [1]"),
    (nn.SiLU, "class SiLU"), (nn.SiLU(), "module SiLU"), (nn.Sequential(*[nn.ReLU()] * 99), "module Sequential"),
    (torch.nn.functional.silu, "function silu"), (len, "function len"), ([3, 4], "[3, 4]"), ((), "()"),
    ([torch.ones(1000)] * 3, "list of 3"), ((nn.ReLU(),), "tuple of 1"), ({1: 2}, "dict of 1"), ({1}, "set of 1"),
    (list(range(1000)), "list of 1000"), (["x" * 100], "list of 1"), ((i for i in ()), "generator"), (object(), "object"),
    (NoRepr(), "NoRepr"), (NoLength(), "NoLength"), (torch.ones(2).as_subclass(NoShape), "NoShape"), (10**9999, "int"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), VALUES, ids=[text for _, text in VALUES])
def test_shown(value, text):
    assert shown(value) == text
    assert len(text) <= LONGEST


def test_long_names_of_classes_are_shortened():
    assert len(shown(type("X" * 1000, (), {}))) == LONGEST
    assert len(shown(torch.ones((1,) * 60))) == LONGEST


@pytest.mark.parametrize(
    ("value", "names", "found"),
    [
        ("ReLU ", ("relu", "silu"), ": did you mean 'relu'?"),
        ("hardsigmoid", ("sigmoid", "hard_sigmoid"), ": did you mean 'hard_sigmoid'?"),
        ("gelu", ("relu", "silu"), ""),
        (nn.Hardsigmoid, ("sigmoid", "hard_sigmoid"), ": pass 'hard_sigmoid'"),
        (nn.SiLU(), (None, "silu"), ": pass 'silu'"),
        (torch.nn.functional.silu, ("silu",), ": pass 'silu'"),
        (3, ("relu",), ""),
        (NoRepr(), (), ""),
    ],
)
def test_meant(value, names, found):
    assert meant(value, names) == found


def test_one_of():
    assert one_of(("a",)) == "'a'"
    assert one_of((None, "relu")) == "None or 'relu'"
    assert one_of(("a", "b", "c")) == "one of 'a', 'b', 'c'"
