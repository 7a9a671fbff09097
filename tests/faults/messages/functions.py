"""Mistakes in calls of the functions, of their references, and of what chooses backends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import attnkernels
from attnkernels import reference

from .table import Mistake, Subject, backends, no_flags, no_names, no_tensors, shapes, unlike, wrong_dtypes

N, C, RD, H, W = 2, 8, 3, 5, 4
X = torch.ones(N, C, H, W)
FEATURE_MAPS = [
    ("without batch", (C, H, W)),
    ("matrix", (C, H)),
    ("scalar", ()),
    ("volume", (N, C, 2, H, W)),
]


def _tensor(argument: str, good: torch.Tensor, *, optional: bool = False) -> list[Mistake]:
    return [
        *no_tensors(argument, good, optional=optional),
        *wrong_dtypes(argument, good),
        *unlike(argument, good),
    ]


def _squeeze_excite() -> Subject:
    weights = {
        "reduce_weight": torch.ones(RD, C), "reduce_bias": torch.ones(RD),
        "expand_weight": torch.ones(C, RD), "expand_bias": torch.ones(C), "residual": X,
    }  # fmt: skip
    rows = [*no_tensors("x", X), *wrong_dtypes("x", X), *shapes("x", "[N, C, H, W]", FEATURE_MAPS)]
    for name, good in weights.items():
        rows += _tensor(name, good, optional=name != "expand_weight")
    rows += shapes(
        "reduce_weight", f"[rd, {C}]",
        [("transposed", (C, RD)), ("other channels", (RD, C + 1)), ("kernel of 3", (RD, C, 3, 3)), ("bias", (RD,)),
         ("1d convolution", (RD, C, 1)), ("scalar", ())],
    )  # fmt: skip
    rows += shapes("reduce_bias", f"[{RD}]", [("bias of fc2", (C,)), ("matrix", (1, RD)), ("scalar", ())])
    rows += shapes(
        "expand_weight", f"[{C}, {RD}]",
        [("transposed", (RD, C)), ("other width", (C, RD + 1)), ("kernel of 3", (C, RD, 3, 3)), ("scalar", ())],
    )  # fmt: skip
    rows += shapes("expand_bias", f"[{C}]", [("bias of fc1", (RD,)), ("matrix", (1, C)), ("scalar", ())])
    rows += shapes(
        "residual", f"[{N}, {C}, {H}, {W}]",
        [("gate", (N, C, 1, 1)), ("one sample", (1, C, H, W)), ("without batch", (C, H, W)), ("scalar", ()),
         ("next stage", (N, 2 * C, H, W))],
    )  # fmt: skip
    alone = {"reduce_weight": None, "expand_weight": torch.ones(C, C)}
    rows.append(
        Mistake("reduce_bias", "alone", torch.ones(RD), ValueError, "None, as reduce_weight is None", "[3]", alone)
    )
    rows += no_names("activation", "'relu'", ("relu6 ", "ReLU", "gelu", ""))
    rows += no_names("gate", "'sigmoid'", ("tanh", "hardsigmoid", "Sigmoid"))
    rows += no_names("output_activation", "'relu'", ("silu", "RELU", ""))
    rows += [
        Mistake("activation", "class", nn.SiLU, TypeError, "'relu'", "class SiLU: pass 'silu'"),
        Mistake("activation", "other class", nn.GELU, TypeError, "a callable on tensors", "class GELU"),
        Mistake("activation", "None", None, TypeError, "'relu'", "None"),
        Mistake("activation", "no result", lambda hidden: None, TypeError, "returns a tensor", "None"),
        Mistake("activation", "drops channels", lambda hidden: hidden[:, :1], ValueError, "[2, 3, 1, 1]", "[2, 1, 1, 1]"),
        Mistake("gate", "class", nn.Hardsigmoid, TypeError, "'hard_sigmoid'", "class Hardsigmoid: pass 'hard_sigmoid'"),
        Mistake("gate", "None", None, TypeError, "'sigmoid'", "None"),
        Mistake("gate", "no result", lambda logits: logits.tolist(), TypeError, "returns a tensor", "list of 2"),
        Mistake("gate", "mean", lambda logits: logits.mean(), ValueError, "[2, 8, 1, 1]", "[]"),
        Mistake("output_activation", "class", nn.ReLU, TypeError, "'relu'", "class ReLU: pass 'relu'"),
        Mistake("output_activation", "module", nn.ReLU(), TypeError, "'relu'", "module ReLU: pass 'relu'"),
        Mistake("output_activation", "function", F.relu, TypeError, "'relu'", "function relu: pass 'relu'"),
    ]  # fmt: skip
    rows += backends()
    return Subject("squeeze_excite", attnkernels.squeeze_excite, lambda: {"x": X, **weights}, rows)


def _branches() -> list[Mistake]:
    both = "2 to 8 tensors [N, C, H, W], or one tensor [N, M, C, H, W]"

    def row(what, value, error, expected, got):
        return Mistake("branches", what, value, error, expected, got)

    return [
        row("numpy array", np.ones((N, 2, C, H, W)), TypeError, both, "numpy array of float64 [2, 2, 8, 5, 4]"),
        row("None", None, TypeError, both, "None"),
        row("string", "branches", TypeError, both, "'branches'"),
        row("generator", (X for _ in range(2)), TypeError, both, "generator"),
        row("dict", {"a": X, "b": X}, TypeError, both, "dict of 2"),
        row("module list", nn.ModuleList([nn.ReLU()]), TypeError, both, "module ModuleList"),
        row("one map", X, ValueError, both, "[2, 8, 5, 4]"),
        row("stack of one", X[:, None], ValueError, both, "[2, 1, 8, 5, 4]"),
        row("stack of nine", torch.ones(N, 9, C, H, W), ValueError, both, "[2, 9, 8, 5, 4]"),
        row("stack of integers", torch.ones(N, 2, C, H, W, dtype=torch.int64), TypeError, "float32", "int64"),
        row("empty", [], ValueError, both, "[]"),
        row("one", [X], ValueError, both, "list of 1"),
        row("nine", [X] * 9, ValueError, both, "list of 9"),
        row("list of numpy arrays", [X.numpy()] * 2, TypeError, "a tensor", "numpy array of float32 [2, 8, 5, 4]"),
        row("None among them", [X, None], TypeError, "a tensor", "None"),
        row("modules", [nn.ReLU(), nn.ReLU()], TypeError, "a tensor", "module ReLU"),
        row("without batch", [X[0], X[0]], ValueError, "[N, C, H, W]", "[8, 5, 4]"),
        row("volumes", [X[None], X[None]], ValueError, "[N, C, H, W]", "[1, 2, 8, 5, 4]"),
        row("integers", [X.long(), X.long()], TypeError, "float32", "int64"),
        row("images", [X.byte(), X.byte()], TypeError, "float32", "uint8"),
        row("two dtypes", [X, X.double()], TypeError, "torch.float32", "torch.float64"),
        row("two devices", (X, X.to("meta")), ValueError, "cpu", "meta"),
        row("other size", [X, X[..., :3]], ValueError, "[2, 8, 5, 4]", "[2, 8, 5, 3]"),
        row("other channels", [X, X[:, :4]], ValueError, "[2, 8, 5, 4]", "[2, 4, 5, 4]"),
    ]


def _logits(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(N, 2, C)


def _selective_kernels() -> list[Subject]:
    logits = _logits(X)
    wrong = [
        ("of one branch", (N, 1, C)), ("of three branches", (N, 3, C)), ("transposed", (N, C, 2)), ("flat", (N, 2 * C)),
        ("of two convolutions", (N, 2, C, 1, 1)), ("one sample", (1, 2, C)),
    ]  # fmt: skip
    select = [*_branches(), *_tensor("logits", logits), *shapes("logits", "[2, 2, 8]", wrong), *backends()]
    no_callables = [
        Mistake("attention", what, value, TypeError, "a callable", got)
        for what, value, got in (
            ("None", None, "None"),
            ("logits", logits, "tensor of float32 [2, 2, 8]"),
            ("string", "softmax", "'softmax'"),
            ("class", nn.Linear, "class Linear"),
            ("weights", [X, X], "list of 2"),
        )
    ]
    results = [
        Mistake(
            "attention", f"that gives {row.what}", lambda pooled, row=row: row.value, row.error, row.expected, row.got
        )
        for row in (
            *no_tensors("", logits),
            *wrong_dtypes("", logits),
            *unlike("", logits),
            *shapes("", "[2, 2, 8]", wrong),
        )
    ]
    return [
        Subject("pooled_sum", attnkernels.pooled_sum, lambda: {"branches": [X, X]}, [*_branches(), *backends()]),
        Subject("select_branches", attnkernels.select_branches, lambda: {"branches": [X, X], "logits": logits}, select),
        Subject(
            "selective_kernel", attnkernels.selective_kernel, lambda: {"branches": (X, X), "attention": _logits},
            [*_branches(), *no_callables, *results, *backends()],
        ),
    ]  # fmt: skip


def _criss_cross() -> list[Subject]:
    key, affinity = torch.ones(N, C, H, W), torch.ones(N, H + W - 1, H, W)
    spatial = [
        ("other height", (N, C, H + 1, W)), ("other batch", (1, C, H, W)), ("transposed", (N, C, W, H)),
        ("without batch", (C, H, W)), ("scalar", ()),
    ]  # fmt: skip
    other_channels = [("other channels", (N, C + 1, H, W))]
    query = [*no_tensors("query", X), *wrong_dtypes("query", X)]
    flat = [*FEATURE_MAPS, ("without pixels", (N, C, 0, W))]
    key_rows = [*_tensor("key", key), *shapes("key", f"[{N}, {C}, {H}, {W}]", [*spatial, *other_channels])]
    attention = [row for row in FEATURE_MAPS if row[0] != "volume"]
    return [
        Subject(
            "criss_cross_affinity", attnkernels.criss_cross_affinity, lambda: {"query": X, "key": key},
            [*query, *shapes("query", "[N, C, H, W]", flat), *key_rows, *backends()],
        ),
        Subject(
            "criss_cross_aggregate", attnkernels.criss_cross_aggregate, lambda: {"affinity": affinity, "value": X},
            [*_tensor("affinity", affinity), *no_tensors("value", X), *wrong_dtypes("value", X),
             *shapes("value", "[N, C, H, W]", flat),
             *shapes("affinity", f"[{N}, {H + W - 1}, {H}, {W}]", [*spatial, ("itself twice", (N, H + W, H, W))]),
             *backends()],
        ),
        Subject(
            "criss_cross_attention", attnkernels.criss_cross_attention, lambda: {"query": X, "key": key, "value": X},
            [*query, *shapes("query", "[N, C, H, W] or [N, C, D, H, W]", attention), *key_rows,
             *_tensor("value", X), *shapes("value", f"[{N}, C, {H}, {W}]", spatial), *backends()],
        ),
    ]  # fmt: skip


def _efficient_channel_attention() -> Subject:
    weight = torch.ones(3)
    rows = [*no_tensors("x", X), *wrong_dtypes("x", X), *shapes("x", "[N, C, H, W]", FEATURE_MAPS)]
    rows += [*_tensor("weight", weight), *_tensor("residual", X, optional=True)]
    rows += shapes(
        "weight", "[k] or [1, 1, k]",
        [("scalar", ()), ("matrix", (1, 3)), ("other axis", (3, 1, 1)), ("several outputs", (C, 1, 3)),
         ("2d convolution", (1, 1, 3, 3))],
    )  # fmt: skip
    rows += shapes("residual", f"[{N}, {C}, {H}, {W}]", [("gate", (N, C, 1, 1)), ("without batch", (C, H, W))])
    rows += [
        Mistake("weight", f"of {k}", torch.ones(shape), ValueError, "an odd number of taps k, at most 255", str(k))
        for k, shape in ((0, (0,)), (2, (2,)), (4, (1, 1, 4)), (257, (257,)))
    ]
    around = {"circular": True}
    rows += [
        Mistake("weight", "around", torch.ones(19), ValueError, "at most 17 taps around 8 channels", "19", around),
        *no_flags("circular"), *no_names("gate", "'sigmoid'", ("tanh", "hardsigmoid", "Sigmoid")),
        *no_names("output_activation", "'relu'", ("silu", "RELU", "")),
        Mistake("gate", "class", nn.Hardsigmoid, TypeError, "'hard_sigmoid'", "class Hardsigmoid: pass 'hard_sigmoid'"),
        Mistake("gate", "None", None, TypeError, "'sigmoid'", "None"),
        Mistake("gate", "no result", lambda logits: logits.tolist(), TypeError, "returns a tensor", "list of 2"),
        Mistake("gate", "mean", lambda logits: logits.mean(), ValueError, "[2, 8, 1, 1]", "[]"),
        Mistake("output_activation", "module", nn.ReLU(), TypeError, "'relu'", "module ReLU: pass 'relu'"),
        *backends(),
    ]  # fmt: skip
    return Subject(
        "efficient_channel_attention", attnkernels.efficient_channel_attention,
        lambda: {"x": X, "weight": weight, "residual": X}, rows,
    )  # fmt: skip


def _gate_layers() -> tuple[dict[str, torch.Tensor], list[Mistake]]:
    """The fully connected layers of a channel gate."""
    layers = {
        "reduce_weight": torch.ones(RD, C), "reduce_bias": torch.ones(RD),
        "expand_weight": torch.ones(C, RD), "expand_bias": torch.ones(C),
    }  # fmt: skip
    rows = [*no_tensors("x", X), *wrong_dtypes("x", X), *shapes("x", "[N, C, H, W]", FEATURE_MAPS)]
    for name, good in layers.items():
        rows += _tensor(name, good, optional=True)
    rows += shapes(
        "reduce_weight", f"[rd, {C}]",
        [("transposed", (C, RD)), ("other channels", (RD, C + 1)), ("kernel of 3", (RD, C, 3, 3)), ("scalar", ())],
    )  # fmt: skip
    rows += shapes("reduce_bias", f"[{RD}]", [("bias of fc2", (C,)), ("matrix", (1, RD)), ("scalar", ())])
    rows += shapes(
        "expand_weight", f"[{C}, {RD}]",
        [("transposed", (RD, C)), ("other width", (C, RD + 1)), ("kernel of 3", (C, RD, 3, 3)), ("scalar", ())],
    )  # fmt: skip
    rows += shapes("expand_bias", f"[{C}]", [("bias of fc1", (RD,)), ("matrix", (1, C)), ("scalar", ())])
    single = {"reduce_weight": None, "expand_weight": torch.ones(C, C)}
    none = {"expand_weight": None}
    rows += [
        Mistake("reduce_bias", "alone", torch.ones(RD), ValueError, "None, as reduce_weight is None", "[3]", single),
        Mistake(
            "reduce_weight", "alone", torch.ones(RD, C), ValueError, "None, as expand_weight is None", "[3, 8]", none
        ),
    ]
    return layers, rows


def _cbam() -> Subject:
    layers, rows = _gate_layers()
    weight, bias = torch.ones(1, 2, 3, 3), torch.ones(1)
    rows += [*_tensor("spatial_weight", weight, optional=True), *_tensor("spatial_bias", bias, optional=True)]
    rows += shapes(
        "spatial_weight", "[1, 2, k, k]",
        [("one statistic", (1, 1, 3, 3)), ("oblong", (1, 2, 3, 5)), ("without batch", (2, 3, 3)), ("scalar", ())],
    )  # fmt: skip
    rows += shapes("spatial_bias", "[1]", [("scalar", ()), ("two", (2,))])
    rows += [
        Mistake("spatial_weight", f"of {k}", torch.ones(1, 2, k, k), ValueError, "an odd number", str(k))
        for k in (0, 2, 4, 17)
    ]
    no_gate = {name: None for name in layers}
    channels = {"spatial_weight": None, "spatial_bias": None}
    sequence, order = "a sequence of names", '("max", "mean") or ("mean", "max")'
    rows += [
        Mistake("spatial_weight", "no gate", None, ValueError, "there is no gate", "None", {**no_gate, "spatial_bias": None}),
        Mistake("spatial_bias", "alone", bias, ValueError, "None, as spatial_weight is None", "[1]", {"spatial_weight": None}),
        Mistake("spatial_norm", "alone", nn.ReLU(), ValueError, "None, as spatial_weight is None", "ReLU", channels),
        Mistake("spatial_norm", "class", nn.BatchNorm2d, TypeError, "a callable from", "class BatchNorm2d"),
        Mistake("spatial_norm", "flag", True, TypeError, "a callable from", "True"),
        Mistake("spatial_norm", "no result", lambda x: None, TypeError, "a callable that returns a tensor", "None"),
        Mistake("spatial_norm", "mean", lambda x: x.mean(), ValueError, f"[{N}, 1, {H}, {W}]", "[]"),
        Mistake("pool_types", "name", "avg", TypeError, sequence, "'avg'"),
        Mistake("pool_types", "None", None, TypeError, sequence, "None"),
        Mistake("pool_types", "unknown", ("avg", "mean"), ValueError, "'avg'", "'mean'"),
        Mistake("pool_types", "number", ("avg", 3), TypeError, "'avg'", "3"),
        Mistake("pool_types", "empty", (), ValueError, "one or more different names", "()"),
        Mistake("pool_types", "twice", ("avg", "avg"), ValueError, "one or more different names", "('avg', 'avg')"),
        Mistake("spatial_order", "name", "max", TypeError, order, "'max'"),
        Mistake("spatial_order", "one", ("max",), ValueError, order, "('max',)"),
        Mistake("spatial_order", "pools", ("max", "avg"), ValueError, order, "('max', 'avg')"),
        *no_names("ties", "'first'", ("last", "First")), *no_flags("skip"), *backends(),
    ]  # fmt: skip
    right = {"x": X, **layers, "spatial_weight": weight, "spatial_bias": bias}
    return Subject("cbam", attnkernels.cbam, lambda: dict(right), rows)


def _scse() -> Subject:
    layers, rows = _gate_layers()
    weight, bias = torch.ones(1, C, 1, 1), torch.ones(1)
    rows += [*_tensor("spatial_weight", weight), *_tensor("spatial_bias", bias, optional=True)]
    rows += shapes(
        "spatial_weight", f"[{C}] or [1, {C}] or [1, {C}, 1, 1]",
        [("transposed", (C, 1)), ("other channels", (1, C + 1, 1, 1)), ("kernel of 3", (1, C, 3, 3)), ("scalar", ())],
    )  # fmt: skip
    rows += shapes("spatial_bias", "[1]", [("scalar", ()), ("of channels", (C,))])
    rows += [*no_names("merge", "'max'", ("mul", "Max", "product")), *backends()]
    right = {"x": X, **layers, "spatial_weight": weight, "spatial_bias": bias}
    return Subject("scse", attnkernels.scse, lambda: dict(right), rows)


FORMULAS = [
    _squeeze_excite(), *_selective_kernels(), *_criss_cross(), _efficient_channel_attention(), _cbam(), _scse()
]  # fmt: skip
# What a reference does not mind: a backend that is there, but not for these tensors.
DEVICES = [
    Mistake("backend", f"{name} on cpu", name, ValueError, "one that can run here", repr(name))
    for name in ("cuda", "triton")
]
FUNCTIONS = [replace(subject, mistakes=[*subject.mistakes, *DEVICES]) for subject in FORMULAS]
REFERENCES = [
    replace(subject, call=getattr(reference, subject.name), title=f"reference.{subject.name}") for subject in FORMULAS
]


def public(argument: str) -> list[Mistake]:
    """What is given in the place of a function's name."""
    function = attnkernels.squeeze_excite
    names = "criss_cross_affinity"
    return [
        Mistake(argument, "misspelled", "squeeze_exite", ValueError, names, "'squeeze_exite'"),
        Mistake(argument, "long", "squeeze_" * 1000, ValueError, names, "'squeeze_"),
        Mistake(argument, "function", function, TypeError, names, "function squeeze_excite: pass 'squeeze_excite'"),
        Mistake(argument, "number", 3, TypeError, names, "3"),
        Mistake(argument, "list", ["pooled_sum"], TypeError, names, "['pooled_sum']"),
        Mistake(argument, "layer", attnkernels.layers.SqueezeExcite, TypeError, names, "class SqueezeExcite"),
    ]


def _use_backend(name):
    with attnkernels.use_backend(name):
        pass


def _backend_of(op, args, backend="auto", kwargs=None):
    return attnkernels.backend_of(op, *args, backend=backend, **(kwargs or {}))


BACKENDS = [
    Subject(
        "backend_of", _backend_of, lambda: {"op": "pooled_sum", "args": ([X, X],)},
        [
            *public("op"),
            Mistake("op", "None", None, TypeError, "criss_cross_affinity", "None"),
            *(row._replace(by="pooled_sum") for row in backends()),
            Mistake("args", "none", (), TypeError, "pooled_sum(branches, *, backend)", "missing a required argument"),
            Mistake("args", "too many", (X, X), TypeError, "pooled_sum(branches, *, backend)", "too many positional"),
            Mistake("kwargs", "unknown", {"gate": 1}, TypeError, "pooled_sum(branches, *, backend)", "argument 'gate'"),
            Mistake("args", "of many", (X,), TypeError, "squeeze_excite(x, reduce_weight, reduce_bias, expand_weight,",
                    "missing a required argument", {"op": "squeeze_excite"}),
        ],
        signature=attnkernels.backend_of,
    ),
    Subject(
        "available_backends", attnkernels.available_backends, lambda: {"op": "pooled_sum"},
        public("op"),
    ),
    Subject(
        "use_backend", _use_backend, lambda: {"name": "cpu"},
        [row._replace(argument="name") for row in backends()],
    ),
]  # fmt: skip

SUBJECTS = [*FUNCTIONS, *REFERENCES, *BACKENDS]
