"""First and second derivatives where the tensors of a call are one, or depend on each other.

Everything is held to torch's own derivatives of the formula in the same wiring: numerical gradients of second order
compare a gradient with itself, and do not see one that is wrong with create_graph alone.
"""

from __future__ import annotations

import pytest
import torch
from faults.wiring import WIRINGS, independent, weights_like, wired

import attnkernels
from attnkernels import testing

CALLS = [
    pytest.param(case, backend, device, id=f"{case}-{backend}")
    for case in testing.cases(small=True)
    if "no_" not in case.name
    for backend, device in testing.fused_backends()
]


def first_and_second(leaves, call, backend):
    """Gradients without and with create_graph, and the gradients of a weighted sum of the latter."""
    output = call(leaves, backend)
    loss = (output * weights_like(output, 1)).sum()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    output = call(leaves, backend)
    loss = (output * weights_like(output, 1)).sum()
    recorded = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    total = sum((grad * weights_like(grad, 2 + i)).sum() for i, grad in enumerate(recorded))
    total = total + 0 * sum(leaf.sum() for leaf in leaves)  # some are linear: their gradients do not depend on inputs
    second = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return plain, [grad.detach() for grad in recorded], second


@pytest.mark.parametrize("wiring", WIRINGS, ids=lambda wiring: wiring.__name__)
@pytest.mark.parametrize(("case", "backend", "device"), CALLS)
def test_derivatives_are_those_of_the_formula(case, backend, device, wiring):
    leaves, call = wired(case, torch.float64, wiring, device)
    got = first_and_second(leaves, call, backend)
    want = first_and_second(leaves, call, "formula")
    for kind, of_op, of_formula in zip(("first", "first with create_graph", "second"), got, want, strict=True):
        for i, (a, b) in enumerate(zip(of_op, of_formula, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, k=kind, i=i: f"{k}, input {i}: {m}")


@pytest.mark.parametrize(("case", "backend", "device"), CALLS)
def test_a_second_backward_of_one_graph(case, backend, device):
    """Through one graph with create_graph, then without: the first must not have changed what is saved."""
    leaves, call = wired(case, torch.float64, independent, device)
    output = call(leaves, backend)
    seed = weights_like(output, 1)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    before = torch.autograd.grad(output, leaves, seed, **options)
    recorded = torch.autograd.grad(output, leaves, seed, create_graph=True, allow_unused=True, materialize_grads=True)
    after = torch.autograd.grad(output, leaves, seed, **options)
    for a, b, c in zip(before, recorded, after, strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("case", "backend", "device"), [p for p in CALLS if "plain" in p.id])
def test_a_recorded_backward_under_autocast(case, backend, device):
    """Autocast where the gradient is taken changes nothing: it belongs to the forward."""
    leaves, call = wired(case, torch.float32, independent, device)
    output = call(leaves, backend)
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    want = torch.autograd.grad(output, leaves, weights_like(output, 1), **options)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = torch.autograd.grad(output, leaves, weights_like(output, 1), **options)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_query_and_key_are_one_tensor():
    q, v = torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.randn(1, 6, 4, 5, dtype=torch.float64)
    q.requires_grad_()
    attention = attnkernels.criss_cross_attention(q, q, v).square().sum()
    (recorded,) = torch.autograd.grad(attention, q, create_graph=True)
    (want,) = torch.autograd.grad(attnkernels.reference.criss_cross_attention(q, q, v).square().sum(), q)
    torch.testing.assert_close(recorded.detach(), want)


def test_gradient_penalty_and_hessian_vector_product_of_a_patched_network():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("seresnet18", num_classes=5, zero_init_last=False).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    parameters = [p for name, p in model.named_parameters() if ".se." in name or name == "conv1.weight"]

    def derivatives():
        loss = model(x).square().mean()
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        return [grad.detach() for grad in grads], torch.autograd.grad(penalty, parameters)

    want = derivatives()
    attnkernels.patch(model)
    try:
        got = derivatives()
    finally:
        attnkernels.unpatch(model)
    for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
