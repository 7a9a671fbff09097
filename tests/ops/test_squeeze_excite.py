"""squeeze_excite: options, autocast, bad input. (Numbers on every backend: tests/test_ops.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attnkernels
from attnkernels import squeeze_excite, testing
from attnkernels.ops.squeeze_excite import schema


def arguments(n=2, c=8, h=5, w=4, rd=2, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=dtype, device=device)
    return [make(n, c, h, w), make(rd, c), make(rd), make(c, rd), make(c)]


BAD = [
    ("x of rank 3", dict(x=torch.ones(2, 8, 5)), ValueError, r"x: expected a tensor \[N, C, H, W\], got 3 dimensions"),
    ("x None", dict(x=None), TypeError, r"x: expected a tensor, got None"),
    ("x a list", dict(x=[1.0]), TypeError, r"x: expected a tensor, got \[1.0\]"),
    ("x integer", dict(x=torch.ones(2, 8, 5, 4, dtype=torch.int64)), TypeError, "x: expected float32, .*int64"),
    ("x complex", dict(x=torch.ones(2, 8, 5, 4, dtype=torch.complex64)), TypeError, "x: expected float32, .*complex64"),
    ("x sparse", dict(x=torch.ones(2, 8, 5, 4).to_sparse()), TypeError, r"x: expected a dense \(strided\) tensor"),
    ("channels", dict(reduce_weight=torch.ones(2, 9)), ValueError, r"reduce_weight: expected shape \[rd, 8\].*got \[2, 9\]"),
    ("weight rank", dict(reduce_weight=torch.ones(2, 8, 1)), ValueError, r"reduce_weight: .*got \[2, 8, 1\]"),
    ("weight of as many numbers", dict(reduce_weight=torch.ones(2, 4, 2)), ValueError, r"reduce_weight: .*got \[2, 4, 2\]"),
    ("kernel of as many numbers", dict(reduce_weight=torch.ones(2, 4, 2, 1)), ValueError, r"reduce_weight: .*got \[2, 4, 2, 1\]"),
    ("bias of as many numbers", dict(reduce_bias=torch.ones(1, 2)), ValueError, r"reduce_bias: .*got \[1, 2\]"),
    ("bias a list", dict(reduce_bias=[1.0, 1.0]), TypeError, r"reduce_bias: expected a tensor, got \[1.0, 1.0\]"),
    ("bias on meta", dict(expand_bias=torch.ones(8, device="meta")), ValueError, "expand_bias: expected device cpu as x, got meta"),
    ("residual on meta", dict(residual=torch.ones(2, 8, 5, 4, device="meta")), ValueError, "residual: expected device cpu as x, got meta"),
    ("weight scalar", dict(reduce_weight=torch.ones(())), ValueError, "reduce_weight: expected shape"),
    ("kernel size", dict(expand_weight=torch.ones(8, 2, 3, 3)), ValueError, "expand_weight: expected shape"),
    ("hidden", dict(expand_weight=torch.ones(8, 3)), ValueError, r"expand_weight: expected shape \[8, 2\]"),
    ("weight dtype", dict(reduce_weight=torch.ones(2, 8).double()), TypeError, "reduce_weight: expected dtype torch.float32 as x"),
    ("weight device", dict(expand_weight=torch.ones(8, 2, device="meta")), ValueError, "expand_weight: expected device cpu as x, got meta"),
    ("weight None", dict(expand_weight=None), TypeError, "expand_weight: expected a tensor, got None"),
    ("bias shape", dict(expand_bias=torch.ones(7)), ValueError, r"expand_bias: expected shape \[8\], got \[7\]"),
    ("bias alone", dict(reduce_weight=None, expand_weight=torch.ones(8, 8)), ValueError, "reduce_bias: expected None"),
    ("residual shape", dict(residual=torch.ones(2, 8, 5, 5)), ValueError, r"residual: expected shape \[2, 8, 5, 4\]"),
    ("residual dtype", dict(residual=torch.ones(2, 8, 5, 4).half()), TypeError, "residual: expected dtype"),
    ("activation", dict(activation="gelu"), ValueError, "activation: expected 'relu' or 'silu', or a callable on tensors, got 'gelu'"),
    ("activation a list", dict(activation=["relu"]), TypeError, r"activation: expected 'relu' or 'silu', .*got \['relu'\]"),
    ("gate", dict(gate="tanh"), ValueError, "gate: expected 'sigmoid' or 'hard_sigmoid', .*got 'tanh'"),
    ("output activation", dict(output_activation="silu"), ValueError, "output_activation: expected None or 'relu'"),
    ("backend name", dict(backend="gpu"), ValueError, "backend: expected one of .*got 'gpu'"),
    ("backend device", dict(backend="cuda"), ValueError, "squeeze_excite: backend: expected one that can run here .*got 'cuda'"),
    ("backend with a callable", dict(activation=torch.tanh, backend="cpu"), ValueError, "backend: expected 'auto' or 'reference'"),
]  # fmt: skip
NAMES = ("x", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias")


@pytest.mark.parametrize("recorded", [True, False])  # without autograd, the CPU operator is asked before the checks
@pytest.mark.parametrize(("change", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(change, kind, message, recorded):
    values = dict(zip(NAMES, arguments(), strict=True)) | change
    positional = [values.pop(name) for name in NAMES]
    with torch.set_grad_enabled(recorded):
        with pytest.raises(kind, match=message):
            squeeze_excite(*positional, **values)
        squeeze_excite(*arguments())  # everything is usable afterwards


NO_NORM = dict.fromkeys(("norm_mean", "norm_variance", "norm_weight", "norm_bias"))


@pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")
class TestInPlace:
    """The operator that does batch normalisation, activation and excitation over x. (Numbers: tests/cpu.)"""

    operator = torch.ops.attnkernels.squeeze_excite_.default

    def arguments(self, **change):
        x, *weights = arguments()
        names = ("x", "norm_mean", "norm_variance", "norm_weight", "norm_bias", "norm_epsilon", "input_activation")
        norm = (x, torch.randn(8), torch.rand(8), torch.randn(8), torch.randn(8), 1e-5, 2)
        values = dict(zip(names, norm, strict=True)) | dict(zip(NAMES[1:], weights, strict=True))
        values |= dict(residual=None, activation=0, gate=0, output_activation=0)
        assert change.keys() <= values.keys()
        return values | change

    def test_operator(self):
        values = self.arguments()
        torch.library.opcheck(self.operator, (values.pop("x"),), values)
        assert self.operator(torch.empty(0, 8, 5, 4), **values) is None
        values = self.arguments(**NO_NORM)
        torch.library.opcheck(self.operator, (values.pop("x"),), values)

    def test_without_a_norm_it_is_the_op_of_the_activation(self):
        """The same bits: only where the result is written differs."""
        functions = {None: lambda z: z, "relu": torch.relu}
        for name, function in functions.items():
            values = self.arguments(**NO_NORM, input_activation=schema.INPUT_ACTIVATION[name])
            x = values.pop("x").contiguous()
            expected = squeeze_excite(function(x), *(values[name] for name in NAMES[1:]))
            self.operator(x, **values)
            assert torch.equal(x, expected)

    def test_strides(self):
        """Neither contiguous nor channels_last, weights of which every other number counts."""
        values = self.arguments(norm_weight=torch.randn(16)[::2], norm_mean=torch.randn(8, 2)[:, 1])
        x, expected = values["x"].clone(), values["x"].clone()
        with pytest.raises(RuntimeError, match="expected contiguous or channels_last memory"):
            self.operator(**values | dict(x=x.transpose(2, 3)))
        assert torch.equal(x, expected)
        self.operator(**values | dict(x=x))
        dense = {
            name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in values.items()
        }
        self.operator(**dense | dict(x=expected))
        assert torch.equal(x, expected)

    @pytest.mark.parametrize(
        "change",
        [
            dict(norm_mean=torch.ones(7)),
            dict(norm_variance=torch.ones(8).double()),
            dict(norm_weight=torch.ones(9)),
            dict(norm_bias=torch.ones(8, device="meta")),
            dict(input_activation=4),
            dict(input_activation=-1),
            dict(reduce_weight=torch.ones(2, 9)),
            dict(expand_bias=torch.ones(8, device="meta")),
            dict(residual=torch.ones(2, 8, 5, 5)),
            dict(residual=torch.ones(2, 8, 5, 4, device="meta")),
            dict(gate=2),
            NO_NORM | dict(norm_mean=torch.ones(8)),
            NO_NORM | dict(norm_variance=torch.ones(8)),
            NO_NORM | dict(norm_weight=torch.ones(8)),
            NO_NORM | dict(norm_bias=torch.ones(8)),
            dict(norm_variance=None),
        ],
        ids=lambda change: ",".join(name for name, value in change.items() if value is not None) or "no norm_variance",
    )
    def test_what_it_refuses_leaves_x_alone(self, change):
        values = self.arguments(**change)
        kept = values["x"].clone()
        with pytest.raises(RuntimeError, match="squeeze_excite"):
            self.operator(**values)
        assert torch.equal(values["x"], kept)


def test_weights_of_linear_and_of_convolution_are_the_same():
    x, w1, b1, w2, b2 = arguments()
    as_convolution = squeeze_excite(x, w1[..., None, None], b1, w2[..., None, None], b2)
    torch.testing.assert_close(squeeze_excite(x, w1, b1, w2, b2), as_convolution)


@pytest.mark.parametrize("activation", [torch.tanh, nn.GELU()], ids=["tanh", "GELU"])
def test_any_activation_and_gate(activation):
    x, w1, b1, w2, b2 = (value.double() for value in arguments())
    got = squeeze_excite(x, w1, b1, w2, b2, activation=activation, gate=torch.tanh)
    hidden = activation(x.mean((2, 3)) @ w1.T + b1)
    torch.testing.assert_close(got, x * torch.tanh(hidden @ w2.T + b2)[..., None, None])
    assert attnkernels.backend_of("squeeze_excite", x, w1, b1, w2, b2, activation=activation) == "reference"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_float32_parameters(dtype):
    x, *weights = arguments()
    weights = [w.requires_grad_() for w in weights]
    x = x.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = squeeze_excite(x, *weights)
    assert y.dtype == dtype
    grads = torch.autograd.grad(y.float().square().sum(), [x, *weights])
    assert [g.dtype for g in grads] == [dtype] + [torch.float32] * 4
    want = squeeze_excite(x.double(), *(w.to(dtype).double() for w in weights))
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(("backend", "device"), [("reference", "cpu"), *testing.fused_backends()])
def test_without_hidden_channels_gates_come_of_the_bias_alone(backend, device, biases):
    x, w1, b1, w2, b2 = (value.requires_grad_() for value in arguments(rd=0, device=device))
    if not biases:
        b1 = b2 = None
    gates = torch.sigmoid(b2 if biases else torch.zeros(8, device=device)).detach()[:, None, None]
    for weights in ((w1, b1, w2, b2), (w1[..., None, None], b1, w2[..., None, None], b2)):
        y = squeeze_excite(x, *weights, backend=backend)
        torch.testing.assert_close(y, x * gates)
        grad_y = torch.randn_like(y)
        inputs = [value for value in (x, w1, b1, w2, b2) if value is not None]
        grad_x, *grads = torch.autograd.grad(y, inputs, grad_y)
        torch.testing.assert_close(grad_x, grad_y * gates)
        assert [grad.shape for grad in grads] == [value.shape for value in inputs[1:]]
        if biases:
            torch.testing.assert_close(
                grads[-1], ((grad_y * x).sum((0, 2, 3)) * (gates * (1 - gates)).flatten()).detach()
            )
    with torch.no_grad():
        x[0, 1, 2, 3] = float("inf")  # no mean of it reaches a gate
        torch.testing.assert_close(squeeze_excite(x, w1, b1, w2, b2, backend=backend), x * gates)


def test_residual_gradient_without_output_activation_is_the_output_gradient():
    values = arguments()
    residual = torch.randn_like(values[0]).requires_grad_()
    y = squeeze_excite(*values, residual=residual)
    grad_y = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, residual, grad_y)
    assert torch.equal(grad, grad_y)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_sample(bad):
    x, *weights = arguments(n=3)
    x[1, 2, 0, 0] = bad
    got, want = squeeze_excite(x, *weights), attnkernels.reference.squeeze_excite(x, *weights)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got[[0, 2]].isfinite().all()


def test_under_compile_the_plain_formula_is_taken():
    values = arguments()
    targets = []

    def look(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    got = torch.compile(squeeze_excite, fullgraph=True, backend=look)(*values)
    torch.testing.assert_close(got, squeeze_excite(*values))
    assert not any("attnkernels" in target for target in targets)


def test_functional_transforms_take_the_reference_or_say_so():
    x, *weights = arguments()
    loss = lambda x: squeeze_excite(x, *weights).square().sum()
    torch.testing.assert_close(
        torch.func.grad(loss)(x), torch.autograd.grad(loss(v := x.clone().requires_grad_()), v)[0]
    )
