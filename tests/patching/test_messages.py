"""Errors of patch and unpatch name the function, the argument, what was expected and what was given, in a few words."""

from __future__ import annotations

import collections
import time

import numpy as np
import pytest
import torch
from timm.layers.squeeze_excite import SEModule
from torch import nn

import attnkernels
from attnkernels import backends

LONGEST = 300


class Hostile:
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


class Huge:
    def __repr__(self):
        return "x" * 10**7


def _long_named():
    return type("N" * 10**5, (), {})


# What is given, and what the message shows of it: one of these.
VALUES = {
    "None": (lambda: None, "None"),
    "number": (lambda: 3.5, "3.5|float"),
    "huge number": (lambda: 10**5000, "int"),
    "array": (lambda: np.zeros(10**6), "array|float64"),
    "array without dimensions": (lambda: np.array(1.0), "array"),
    "tensor": (lambda: torch.zeros(1000, 1000), "tensor of float32 [1000, 1000]"),
    "tensor without dimensions": (lambda: torch.tensor(1.0), "tensor of float32"),
    "hostile": (Hostile, "Hostile"),
    "list of hostile": (lambda: [Hostile()] * 1000, "Hostile|list"),
    "huge": (Huge, "Huge"),
    "of a long name": (lambda: _long_named()(), "NNN"),
    "a class of a long name": (_long_named, "NNN"),
    "bytes": (lambda: b"layer1", "b'layer1'|108"),
    "function": (lambda: print, "builtin|print"),
    "numbers": (lambda: range(10**9), "0|range"),
}


def message_of(error: type[Exception] | tuple, function, *args, **kwargs) -> str:
    start = time.perf_counter()
    with pytest.raises(error) as raised:
        function(*args, **kwargs)
    assert time.perf_counter() - start < 5
    text = str(raised.value)
    assert len(text) <= LONGEST
    return text


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("function", [attnkernels.patch, attnkernels.unpatch])
def test_what_is_no_model(function, value):
    make, _ = VALUES[value]
    text = message_of(TypeError, function, make())
    assert text.startswith(f"{function.__name__}: model: expected a torch.nn.Module, got ")


@pytest.mark.parametrize("function", [attnkernels.patch, attnkernels.unpatch])
@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: SEModule, "class SEModule: make an instance of it"),
        (lambda: "resnet50", "'resnet50': make the model of that name"),
        (lambda: [SEModule(16)], "list: give one module at a time"),
        (lambda: (SEModule(16),), "tuple: give one module at a time"),
        (lambda: SEModule(16).state_dict(), "OrderedDict of 4"),
        (lambda: collections.UserDict(), "{}"),
        (
            lambda: attnkernels.patch(nn.ReLU()),
            "the report of patch, which changes the model in place: give the model itself",
        ),
    ],
)
def test_what_is_taken_for_a_model(function, make, got):
    text = message_of(TypeError, function, make())
    assert text == f"{function.__name__}: model: expected a torch.nn.Module, got {got}"


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("value", [name for name in VALUES if name != "None"])
def test_what_selects_nothing(model, argument, value):
    make, got = VALUES[value]
    text = message_of(TypeError, attnkernels.patch, model, **{argument: make()})
    assert text.startswith(f"patch: {argument}: expected names or module classes, got ")
    assert any(shown in text for shown in got.split("|")), text


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    "make", [lambda model: model.layer1, lambda model: [model.layer1], lambda model: nn.ModuleDict()]
)
def test_modules_select_nothing(model, argument, make):
    text = message_of(TypeError, attnkernels.patch, model, **{argument: make(model)})
    assert text.endswith(": give its name or its class")


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_long_patterns(model, argument):
    text = message_of(ValueError, attnkernels.patch, model, **{argument: "layer1." * 10**6})
    assert text.startswith(f"patch: {argument}: expected a pattern that matches some module, got 'layer1.")


@pytest.mark.parametrize("value", [*VALUES, "long"])
def test_what_is_no_backend(model, value):
    make, got = VALUES.get(value, (lambda: "cpu" * 10**6, "'cpucpu"))
    text = message_of((TypeError, ValueError), attnkernels.patch, model, backend=make())
    assert text.startswith("patch: backend: expected one of 'auto', 'cpu', 'cuda', 'triton', 'reference', got ")
    assert any(shown in text for shown in got.split("|")), text


def test_a_backend_that_cannot_run(monkeypatch):
    monkeypatch.setattr(backends, "unavailable", lambda backend, device: "why " * 1000)
    model = nn.ModuleDict({"n" * 1000: SEModule(16)})
    text = message_of(ValueError, attnkernels.patch, model, backend="cuda")
    assert text.startswith("patch: backend: expected one that can run nnn")
    assert "got 'cuda': why " in text
    with attnkernels.use_backend("cuda"):
        text = message_of(ValueError, attnkernels.patch, model)
    assert "got 'cuda' (by use_backend or ATTNKERNELS_BACKEND): why " in text


def test_names_in_an_array(model):
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(model, include=np.array(["layer1.0.se", "layer3.0.se"]))
    assert [record.name for record in report.replaced] == ["layer1.0.se", "layer3.0.se"]
