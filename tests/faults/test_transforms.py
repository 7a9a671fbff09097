"""Forward mode, vmap, nested transforms and batched gradients, which the kernels do not know: the formula answers."""

from __future__ import annotations

import copy

import pytest
import torch
from faults.wiring import connected, independent, weights_like, wired
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attnkernels
from attnkernels import layers, testing

ONE_PER_OP = [next(case for case in of_op if case.small) for of_op in testing.CASES.values()]
SMALLEST = {op: min((c for c in of_op if c.small and "no_" not in c.name), key=lambda c: sum(
    x.numel() for x in testing.tensors_of(c.make()))) for op, of_op in testing.CASES.items()}  # fmt: skip


def detached(leaves):
    return tuple(leaf.detach() for leaf in leaves)


def tangents(leaves):
    return tuple(weights_like(leaf, 7 + i) for i, leaf in enumerate(leaves))


def jvp(function, leaves):
    return torch.func.jvp(function, detached(leaves), tangents(leaves))


def dual_tensors(function, leaves):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(detached(leaves), tangents(leaves), strict=True)]
        return tuple(forward_ad.unpack_dual(function(*duals)))


def dual_tensors_without_grad_mode(function, leaves):
    with torch.no_grad():
        return dual_tensors(function, leaves)


def vjp(function, leaves):
    output, pull = torch.func.vjp(function, *detached(leaves))
    return output, *pull(weights_like(output, 3))


def grad(function, leaves):
    return torch.func.grad(lambda *x: function(*x).sin().sum(), argnums=tuple(range(len(leaves))))(*detached(leaves))


def vmap(function, leaves):
    return torch.func.vmap(function)(*(torch.stack([x, 2 * x, x - 1]) for x in detached(leaves)))


def vmap_of_the_first_alone(function, leaves):
    first, *others = detached(leaves)
    return torch.func.vmap(lambda x: function(x, *others))(torch.stack([first, -first]))


def vmap_of_grad(function, leaves):
    each = torch.func.grad(lambda *x: function(*x).sin().sum())
    return torch.func.vmap(each)(*(torch.stack([x, 2 * x]) for x in detached(leaves)))


def grads_batched(function, leaves):
    output = function(*leaves)
    batch = torch.stack([weights_like(output, seed) for seed in (3, 4, 5)])
    return torch.autograd.grad(output, leaves, batch, is_grads_batched=True, allow_unused=True)


def grads_batched_and_recorded(function, leaves):
    output = function(*leaves)
    batch = torch.stack([weights_like(output, seed) for seed in (3, 4)])
    options = {"is_grads_batched": True, "create_graph": True, "allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad(output, leaves, batch, **options)
    total = sum(g.square().sum() for g in grads) + 0 * sum(x.sum() for x in leaves)
    return torch.autograd.grad(total, leaves, materialize_grads=True)


def forward_over_reverse(function, leaves):
    """A dual gradient of an output that was recorded outside the forward-mode level."""
    output = function(*leaves)
    with forward_ad.dual_level():
        seed = forward_ad.make_dual(weights_like(output, 3), weights_like(output, 4))
        grads = torch.autograd.grad(output, leaves, seed, allow_unused=True)
        return tuple(part for g in grads for part in forward_ad.unpack_dual(g))


TRANSFORMS = (
    jvp, dual_tensors, dual_tensors_without_grad_mode, vjp, grad, vmap, vmap_of_the_first_alone, vmap_of_grad,
    grads_batched, grads_batched_and_recorded, forward_over_reverse,
)  # fmt: skip


def assert_same(got, want):
    got, want = [x if isinstance(x, tuple) else (x,) for x in (got, want)]
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("wiring", [independent, connected], ids=lambda wiring: wiring.__name__)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)
@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_transforms_are_those_of_the_formula(case, transform, wiring):
    leaves, call = wired(case, torch.float64, wiring)
    assert_same(
        transform(lambda *x: call(x, "auto"), leaves), transform(lambda *x: call(x, "formula"), leaves)
    )  # fmt: skip


WHOLE = {
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda y: f(y).sin().sum())(x),
    "jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "jacobian forward": lambda f, x: torch.autograd.functional.jacobian(
        f, x, vectorize=True, strategy="forward-mode"
    ),
    "hessian of autograd": lambda f, x: torch.autograd.functional.hessian(
        lambda y: f(y).sin().sum(), x, vectorize=True
    ),
    "hvp": lambda f, x: torch.autograd.functional.hvp(lambda y: f(y).sin().sum(), x, torch.ones_like(x))[1],
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("case", SMALLEST.values(), ids=str)
def test_whole_jacobians_and_hessians(case, name):
    leaves, call = wired(case, torch.float64, connected)
    others = detached(leaves[1:])
    got = WHOLE[name](lambda x: call((x, *others), "auto"), leaves[0].detach())
    want = WHOLE[name](lambda x: call((x, *others), "formula"), leaves[0].detach())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_a_backend_asked_for_by_name_refuses(case):
    leaves, call = wired(case, torch.float64, independent)
    if "cpu" not in attnkernels.available_backends():
        pytest.skip("no CPU library")
    expected = rf"{case.op}: backend: expected 'auto' or 'reference' inside .*, got 'cpu'"
    for transform in (jvp, dual_tensors, vmap):
        with pytest.raises(ValueError, match=expected):
            transform(lambda *x: call(x, "cpu"), leaves)
    call(leaves, "cpu")  # and everything is usable


class Wrapped(torch.Tensor):
    """A subclass that does nothing of its own."""


@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_subclasses_are_kept(case):
    leaves, call = wired(case, torch.float64, independent)
    want = call(leaves, "formula")
    got = call([leaf.detach().as_subclass(Wrapped) for leaf in leaves], "auto")
    assert type(got) is Wrapped
    torch.testing.assert_close(got.as_subclass(torch.Tensor), want.detach())


class SeesFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class SeesOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen.append(operator)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("mode", [SeesFunctions, SeesOperators])
@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_modes_see_the_call_and_change_nothing(case, mode, grad_mode):
    leaves, call = wired(case, torch.float64, independent)
    with torch.set_grad_enabled(grad_mode):
        want = call(leaves, "auto")
        with mode() as active:
            got = call(leaves, "auto")
    assert active.seen
    assert torch.equal(got, want)
    if grad_mode:
        assert_same(grads_batched(lambda *x: got, leaves), grads_batched(lambda *x: want, leaves))


def _layers():
    torch.manual_seed(0)
    made = {
        "SqueezeExcite": layers.SqueezeExcite(6, rd_channels=2),
        "CrissCrossAttention": layers.CrissCrossAttention(6, reduction=2),
        "SelectiveKernel": layers.SelectiveKernel(6, rd_channels=4),
        "SKConv": layers.SKConv(6, groups=2, rd_channels=4),
    }
    torch.nn.init.ones_(made["CrissCrossAttention"].gamma)
    return {name: layer.double().eval() for name, layer in made.items()}


def _patched():
    timm = pytest.importorskip("timm")
    from timm.layers import SelectiveKernel, SplitAttn

    torch.manual_seed(0)
    return {
        "timm SEModule": timm.layers.SEModule(6, rd_channels=2).double().eval(),
        "timm SelectiveKernel": SelectiveKernel(6, 6, rd_channels=4).double().eval(),
        "timm SplitAttn": SplitAttn(6, 6).double().eval(),
    }


MODULE_TRANSFORMS = {
    **{name: WHOLE[name] for name in ("jacfwd", "jacrev", "jacobian", "jacobian forward", "hvp")},
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, -x])),
    "grads_batched": lambda f, x: grads_batched(f, [x.clone().requires_grad_()])[0],
    "no grad jvp": lambda f, x: dual_tensors_without_grad_mode(f, [x])[1],
}


@pytest.mark.parametrize("transform", MODULE_TRANSFORMS)
@pytest.mark.parametrize("name", ["SqueezeExcite", "CrissCrossAttention", "SelectiveKernel", "SKConv"])
def test_layers(name, transform, monkeypatch):
    layer, x = _layers()[name], torch.randn(2, 6, 4, 3, dtype=torch.float64)
    got = MODULE_TRANSFORMS[transform](layer, x)
    with attnkernels.use_backend("reference"):
        want = MODULE_TRANSFORMS[transform](layer, x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("transform", MODULE_TRANSFORMS)
@pytest.mark.parametrize("name", ["timm SEModule", "timm SelectiveKernel", "timm SplitAttn"])
def test_patched_modules(name, transform):
    original = _patched()[name]
    patched, x = copy.deepcopy(original), torch.randn(2, 6, 4, 3, dtype=torch.float64)
    assert attnkernels.patch(patched).replaced
    got, want = (MODULE_TRANSFORMS[transform](module, x) for module in (patched, original))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
