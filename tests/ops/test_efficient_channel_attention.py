"""efficient_channel_attention: the ends of the channels, what is not finite, bad input. (Numbers: tests/test_ops.py.)"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnkernels
from attnkernels import efficient_channel_attention, reference, testing
from attnkernels._load import is_loaded
from attnkernels.ops.efficient_channel_attention.schema import NEEDS_RESIDUAL, NEEDS_WEIGHT, NEEDS_X

EVERY_BACKEND = pytest.mark.parametrize(("backend", "device"), [("reference", "cpu"), *testing.fused_backends()])
NAMESPACES = pytest.mark.parametrize(
    "namespace",
    [
        pytest.param(name, marks=pytest.mark.skipif(not is_loaded(library), reason=f"{library} was not built"))
        for name, library in (("attnkernels", "cpu"), ("attnkernels_emulated", "emulated"))
    ],
)
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
CIRCULAR = pytest.mark.parametrize("circular", [False, True])


def arguments(n=2, c=8, h=5, w=4, k=3, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=dtype, device=device)
    return make(n, c, h, w), make(k)


def band(weight, channels, circular):
    """The convolution as a matrix: what each gate has of each mean."""
    matrix, half = weight.new_zeros(channels, channels), len(weight) // 2
    for tap in range(len(weight)):
        columns = {row: row + tap - half for row in range(channels)}
        kept = {row: column % channels for row, column in columns.items() if circular or 0 <= column < channels}
        if kept:
            places = (torch.tensor([*kept]), torch.tensor([*kept.values()]))
            matrix = matrix.index_put(places, weight[tap], accumulate=True)
    return matrix


def by_matrix(x, weight, circular, gate=torch.sigmoid):
    return x * gate(x.mean((2, 3)) @ band(weight, x.shape[1], circular).T)[:, :, None, None]


# ---- the ends of the channels


@EVERY_BACKEND
@LAYOUTS
@CIRCULAR
@pytest.mark.parametrize(("c", "k"), [(8, 3), (3, 7), (1, 1), (1, 3), (5, 11), (16, 33), (130, 255)])
def test_more_taps_than_channels_and_all_around(c, k, circular, layout, backend, device):
    """With circular as many taps as may be: each end then reaches all channels once."""
    x, weight = arguments(c=c, k=k, dtype=torch.float64, device=device)
    x, weight = x.contiguous(memory_format=layout).requires_grad_(), (weight / k).requires_grad_()
    y = efficient_channel_attention(x, weight, circular=circular, backend=backend)
    want = by_matrix(x, weight, circular)
    torch.testing.assert_close(y, want)
    grad_y = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, weight), grad_y)
    torch.testing.assert_close(got, torch.autograd.grad(want, (x, weight), grad_y))


def test_weights_of_one_and_of_three_dimensions_are_the_same():
    x, weight = arguments(k=5)
    assert torch.equal(
        efficient_channel_attention(x, weight), efficient_channel_attention(x, nn.Parameter(weight[None, None]))
    )


# ---- what is not finite


@EVERY_BACKEND
@LAYOUTS
@CIRCULAR
@pytest.mark.parametrize(("c", "k"), [(40, 5), (9, 3), (3, 7), (24, 1)])
def test_nan_reaches_the_channels_around_it_only(c, k, circular, layout, backend, device):
    for channel in {0, 1, c // 2, c - 1}:
        x, weight = arguments(n=3, c=c, k=k, device=device)
        x[1, channel, 2, 3] = float("nan")
        y = efficient_channel_attention(x.contiguous(memory_format=layout), weight, circular=circular, backend=backend)
        reached = {channel + i for i in range(-(k // 2), k // 2 + 1)}
        reached = {i % c for i in reached} if circular else reached & set(range(c))
        is_nan = y.isnan().all((2, 3))  # a gate that is NaN takes the whole channel
        assert is_nan[1].nonzero().flatten().tolist() == sorted(reached)
        assert y[[0, 2]].isfinite().all()
        assert y[1, sorted(set(range(c)) - reached)].isfinite().all()


@EVERY_BACKEND
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_infinity_is_as_in_the_reference(bad, backend, device):
    x, weight = arguments(n=3, c=20, device=device)
    x[1, 7, 0, 0] = bad
    for gate in ("sigmoid", "hard_sigmoid"):
        got = efficient_channel_attention(x, weight, gate=gate, backend=backend)
        torch.testing.assert_close(got, reference.efficient_channel_attention(x, weight, gate=gate), equal_nan=True)


# ---- callables, autocast, compilation


@CIRCULAR
@pytest.mark.parametrize(("gate", "formula"), [(torch.tanh, torch.tanh), (nn.Softsign(), F.softsign)], ids=["f", "m"])
def test_any_gate_runs_the_formula(gate, formula, circular):
    x, weight = arguments(k=5, dtype=torch.float64)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    residual = torch.randn_like(x)
    options = dict(circular=circular, gate=gate, residual=residual, output_activation="relu")
    y = efficient_channel_attention(x, weight, **options)
    want = torch.relu(by_matrix(x, weight, circular, formula) + residual)
    torch.testing.assert_close(y, want)
    grads, want_grads = (torch.autograd.grad(z.square().sum(), (x, weight)) for z in (y, want))
    torch.testing.assert_close(grads, want_grads)
    assert attnkernels.backend_of("efficient_channel_attention", x, weight, gate=gate) == "reference"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_a_float32_weight(dtype):
    x, weight = arguments()
    x, weight = x.to(dtype).requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = efficient_channel_attention(x, weight)
    assert y.dtype == dtype
    grads = torch.autograd.grad(y.float().square().sum(), (x, weight))
    assert [grad.dtype for grad in grads] == [dtype, torch.float32]
    want = by_matrix(x.double(), weight.to(dtype).double(), False)
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)


def test_under_compile_the_plain_formula_is_taken():
    values, targets = arguments(), []

    def look(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    got = torch.compile(efficient_channel_attention, fullgraph=True, backend=look)(*values)
    torch.testing.assert_close(got, efficient_channel_attention(*values))
    assert targets
    assert not any("attnkernels" in target for target in targets)


def test_residual_gradient_without_output_activation_is_the_output_gradient():
    x, weight = arguments()
    residual = torch.randn_like(x).requires_grad_()
    y = efficient_channel_attention(x, weight, residual=residual)
    grad_y = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, residual, grad_y)
    assert torch.equal(grad, grad_y)


# ---- bad input

X = torch.ones(2, 8, 5, 4)
BAD = [
    ("x of rank 3", dict(x=X[0]), ValueError, r"x: expected a tensor \[N, C, H, W\], got 3 dimensions: \[8, 5, 4\]"),
    ("x integer", dict(x=X.int()), TypeError, "x: expected float32, .*int32"),
    ("even", dict(weight=torch.ones(4)), ValueError, "weight: expected an odd number of taps k, at most 255, got 4"),
    ("no taps", dict(weight=torch.ones(0)), ValueError, "weight: expected an odd number of taps k, at most 255, got 0"),
    ("too many", dict(weight=torch.ones(257)), ValueError, "weight: expected an odd number .*, at most 255, got 257"),
    ("scalar", dict(weight=torch.ones(())), ValueError, r"weight: expected shape \[k\] or \[1, 1, k\], got \[\]"),
    ("matrix", dict(weight=torch.ones(1, 3)), ValueError, r"weight: expected shape .*, got \[1, 3\]"),
    ("as many taps", dict(weight=torch.ones(3, 1, 1)), ValueError, r"weight: expected shape .*, got \[3, 1, 1\]"),
    ("two outputs", dict(weight=torch.ones(2, 1, 3)), ValueError, r"weight: expected shape .*, got \[2, 1, 3\]"),
    (
        "dtype",
        dict(weight=torch.ones(3).double()),
        TypeError,
        "weight: expected dtype torch.float32 as x, got torch.flo",
    ),
    ("device", dict(weight=torch.ones(3, device="meta")), ValueError, "weight: expected device cpu as x, got meta"),
    (
        "all around",
        dict(weight=torch.ones(19), circular=True),
        ValueError,
        "weight: expected at most 17 taps around 8 channels, got 19",
    ),
    ("circular", dict(circular="no"), TypeError, "circular: expected True or False, got 'no'"),
    ("residual", dict(residual=X[..., :3]), ValueError, r"residual: expected shape \[2, 8, 5, 4\], got \[2, 8, 5, 3\]"),
    (
        "residual dtype",
        dict(residual=X.half()),
        TypeError,
        "residual: expected dtype torch.float32 as x, got torch.flo",
    ),
    ("gate", dict(gate="tanh"), ValueError, "gate: expected 'sigmoid' or 'hard_sigmoid', .*got 'tanh'"),
    (
        "output activation",
        dict(output_activation="silu"),
        ValueError,
        "output_activation: expected None or 'relu', got",
    ),
    ("backend", dict(gate=torch.tanh, backend="cpu"), ValueError, "backend: expected 'auto' or 'reference'"),
]


@pytest.mark.parametrize("recorded", [True, False])  # without autograd, the CPU operator is asked before the checks
@pytest.mark.parametrize(("change", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(change, kind, message, recorded):
    right = {"x": X, "weight": torch.ones(3)}
    with torch.set_grad_enabled(recorded):
        with pytest.raises(kind, match=f"^efficient_channel_attention: {message}"):
            efficient_channel_attention(**right | change)
        efficient_channel_attention(**right)  # everything is usable afterwards


# ---- the operators, called directly

WRONG = {
    "x of rank 3": dict(x=X[0]),
    "integers": dict(x=X.int(), weight=torch.ones(3).int()),
    "even": dict(weight=torch.ones(4)),
    "no taps": dict(weight=torch.ones(0)),
    "too many taps": dict(weight=torch.ones(257)),
    "scalar": dict(weight=torch.ones(())),
    "matrix": dict(weight=torch.ones(1, 3)),
    "as many taps": dict(weight=torch.ones(3, 1, 1)),
    "dtype of the weight": dict(weight=torch.ones(3).double()),
    "around all channels": dict(weight=torch.ones(19), circular=1),
    "circular": dict(circular=2),
    "gate": dict(gate=-1),
    "output activation": dict(output_activation=2),
}
WRONG_FORWARD = WRONG | {
    "residual": dict(residual=X[:, :7]),
    "residual of as many numbers": dict(residual=X.transpose(2, 3)),
    "dtype of the residual": dict(residual=X.half()),
}
WRONG_BACKWARD = WRONG | {
    "grad_y": dict(grad_y=X[:1]),
    "dtype of grad_y": dict(grad_y=X.double()),
    "no y": dict(y=None),
    "y": dict(y=X[..., :3]),
    "dtype of y": dict(y=X.bfloat16()),
    "too little saved": dict(saved=torch.ones(2, 15)),
    "too much saved": dict(saved=torch.ones(3, 16)),
    "dtype of saved": dict(saved=torch.ones(2, 16).half()),
    "residual without ReLU": dict(output_activation=0, y=None),
}
EVERYTHING = NEEDS_X | NEEDS_WEIGHT | NEEDS_RESIDUAL


def forward_arguments():
    return dict(x=X, weight=torch.ones(3), residual=X, circular=0, gate=0, output_activation=1)


def backward_arguments():
    backward = {name: value for name, value in forward_arguments().items() if name != "residual"}
    return backward | dict(grad_y=X, y=X, saved=torch.ones(2, 16), needs=EVERYTHING)


@NAMESPACES
@pytest.mark.parametrize("wrong", WRONG_FORWARD)
def test_forward_operator_refuses(wrong, namespace):
    operator = getattr(torch.ops, namespace).efficient_channel_attention
    with pytest.raises(RuntimeError, match="efficient_channel_attention"):
        operator(**forward_arguments() | WRONG_FORWARD[wrong])
    y, saved = operator(**forward_arguments())
    assert y.shape == X.shape
    assert saved.shape == (2, 16)


@NAMESPACES
@pytest.mark.parametrize("wrong", WRONG_BACKWARD)
def test_backward_operator_refuses(wrong, namespace):
    operator = getattr(torch.ops, namespace).efficient_channel_attention_backward
    with pytest.raises(RuntimeError, match="efficient_channel_attention"):
        operator(**backward_arguments() | WRONG_BACKWARD[wrong])
    assert [grad.shape for grad in operator(**backward_arguments())] == [X.shape, (3,), X.shape]


@NAMESPACES
@LAYOUTS
@pytest.mark.parametrize("needs", range(EVERYTHING + 1))
def test_backward_operator_gives_only_what_is_needed(needs, layout, namespace):
    x, weight = arguments(c=35)
    x, grad_y = x.contiguous(memory_format=layout), torch.randn_like(x)
    operators = getattr(torch.ops, namespace)
    y, saved = operators.efficient_channel_attention(x, weight[None, None], None, 1, 0, 1)
    backward = operators.efficient_channel_attention_backward
    everything, only = (
        backward(grad_y, x, y, weight[None, None], saved, 1, 0, 1, bits) for bits in (EVERYTHING, needs)
    )
    for bit, got, want in zip((NEEDS_X, NEEDS_WEIGHT, NEEDS_RESIDUAL), only, everything, strict=True):
        assert torch.equal(got, want) if needs & bit else got.shape == (0,)
