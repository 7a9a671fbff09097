"""Mistakes in calls of the helpers for tests, `attnkernels.testing`."""

from __future__ import annotations

import torch
from torch import nn

from attnkernels import testing

from .functions import public
from .table import Mistake, Subject, backends, no_flags, no_integers, no_names, no_tensors, shapes

X = torch.ones(2, 8, 5, 4)
CASE = testing.CASES["squeeze_excite"][0]


def _make(by: str = "") -> list[Mistake]:
    """Of what OpCase.make takes."""
    rows = [
        Mistake("dtype", "string", "float32", TypeError, "torch.float64", "'float32'"),
        Mistake("dtype", "None", None, TypeError, "torch.float64", "None"),
        Mistake("dtype", "int64", torch.int64, ValueError, "torch.float64", "torch.int64"),
        Mistake("device", "misspelled", "gpu", ValueError, "a device of torch's", "'gpu'"),
        Mistake("device", "list", ["cpu"], TypeError, "a device of torch's", "['cpu']"),
        Mistake("device", "class", nn.Conv2d, TypeError, "a device of torch's", "class Conv2d"),
        *no_names("layout", "'channels_last'", ("nhwc", "channels-last", "")),
    ]
    return [row._replace(by=by) for row in rows]


def _call() -> list[Mistake]:
    """Of what run and gradients take."""
    return [
        *public("op"),
        Mistake("args", "tensor", X, TypeError, "a tuple", "tensor of float32 [2, 8, 5, 4]"),
        Mistake("args", "None", None, TypeError, "a tuple", "None"),
        Mistake("kwargs", "None", None, TypeError, "a dict", "None"),
        Mistake("kwargs", "list", [X], TypeError, "a dict", "list of 1"),
        *(row._replace(by="pooled_sum") for row in backends()),
    ]


def _right_call() -> dict:
    return {"op": "pooled_sum", "args": ([X, X],), "kwargs": {}, "backend": "auto"}


SUBJECTS = [
    Subject("run", testing.run, _right_call, _call()),
    Subject(
        "gradients", testing.gradients, _right_call,
        [
            *_call(), *no_tensors("grad_output", torch.ones(2, 8), optional=True),
            *shapes("grad_output", "[2, 8]", [("of a map", (2, 8, 5, 4)), ("scalar", ())]),
        ],
    ),
    Subject("cases", testing.cases, dict, no_flags("small")),
    Subject(
        "OpCase.make", CASE.make, dict,
        [*_make(), *(row for row in no_integers("seed", least=0) if row.what != "0")],
    ),
    Subject(
        "check_against_float64", testing.check_against_float64,
        lambda: {"case": CASE, "backend": "reference", "device": "cpu", "dtype": torch.float32, "layout": "contiguous"},
        [
            Mistake("case", "name", "plain", TypeError, "an OpCase", "'plain'"),
            Mistake("case", "class", testing.OpCase, TypeError, "an OpCase", "class OpCase"),
            *(row._replace(argument="backend") for row in backends()), *_make("OpCase.make"),
        ],
    ),
    Subject(
        "placed", testing.placed, lambda: {"x": X, "offset": 1},
        [*no_tensors("x", X), *(row for row in no_integers("offset", least=0) if row.what != "0")],
    ),
    Subject(
        "assert_close_to_float64", testing.assert_close_to_float64,
        lambda: {"actual": X, "expected": X, "what": "x"},
        [*no_tensors("actual", X), *no_tensors("expected", X)],
        unchecked={
            "what": "it is printed", "rounded_inside": "its truth counts", "largest": "it is compared with a number",
        },
    ),
    Subject(
        "map_tensors", testing.map_tensors, lambda: {"value": [X], "change": torch.clone},
        [
            Mistake("change", "None", None, TypeError, "a callable on tensors", "None"),
            Mistake("change", "name", "double", TypeError, "a callable on tensors", "'double'"),
        ],
        unchecked={"value": "what holds no tensors is returned as it is"},
    ),
]  # fmt: skip

# Callables of `testing.__all__` without rows.
WITHOUT_ROWS = {
    "in_float64": "takes whatever map_tensors does",
    "tensors_of": "takes whatever map_tensors does",
    "uninitialized_is_nan": "takes nothing",
    "fused_backends": "takes nothing",
    "OpCase": "data; make is what is called",
    "Maker": "made by OpCase.make, which hands on what it was given",
    "RandomCases": "data",
    "BudgetedCall": "data, of which prepare hands all on to OpCase.make and run",
    "TrafficCall": "data, of which prepare hands all on to OpCase.make and run",
    "Tolerance": "data",
    "Placement": "takes the offsets that `places` made",
    "PlacedCase": "hands all on to OpCase.make and gradients",
    "places": "takes the operands that Placement has met",
    "check_gradients_alone": "hands all on to OpCase.make and run",
    "check_results": "takes what gradients returned",
}
