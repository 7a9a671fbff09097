"""Mistakes in calls of patch and unpatch."""

from __future__ import annotations

import torch
from patching.conftest import tiny_seresnet
from torch import nn

import attnkernels

from .table import Mistake, Subject, backends

MODEL = tiny_seresnet()


def _models() -> list[Mistake]:
    expected = "a torch.nn.Module"
    return [
        Mistake("model", "state dict", MODEL.state_dict(), TypeError, expected, "OrderedDict"),
        Mistake("model", "name", "seresnet50", TypeError, expected, "'seresnet50'"),
        Mistake("model", "None", None, TypeError, expected, "None"),
        Mistake("model", "class", nn.Conv2d, TypeError, expected, "class Conv2d"),
        Mistake("model", "list", [MODEL], TypeError, expected, "list"),
        Mistake("model", "tensor", torch.ones(3), TypeError, expected, "tensor of float32 [3]"),
    ]


def _selections(argument: str) -> list[Mistake]:
    classes = "names or module classes"
    return [
        Mistake(argument, "no such name", "layer9.*", ValueError, "a pattern that matches some module", "'layer9.*'"),
        Mistake(argument, "one misspelled", ["layer1.*", "typo"], ValueError, "a pattern", "'typo'"),
        Mistake(argument, "number", 3, TypeError, classes, "3"),
        Mistake(argument, "modules", [nn.ReLU()], TypeError, classes, "module ReLU"),
        Mistake(argument, "other class", int, TypeError, classes, "class int"),
    ]


SUBJECTS = [
    Subject(
        "patch", attnkernels.patch, lambda: {"model": MODEL, "dry_run": True},
        [
            *_models(), *_selections("include"), *_selections("exclude"),
            *(row for row in backends() if row.error is ValueError),
        ],
        unchecked={"dry_run": "its truth counts"},
    ),
    Subject("unpatch", attnkernels.unpatch, lambda: {"model": MODEL}, _models()),
]  # fmt: skip
