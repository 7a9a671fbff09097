"""cbam and scse against the modules as their papers and their users write them: results, gradients and derivatives of
gradients, whichever of the inputs are differentiated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnkernels
from attnkernels import testing

BACKENDS = [*testing.fused_backends(), ("reference", "cpu")]
SHAPE = 2, 6, 5, 4
EXACT = {"rtol": 1e-9, "atol": 1e-11}
KINDS = ("both", "channel", "spatial", "single_layer", "norm")


def upstream_cbam(x, w1, b1, w2, b2, ws, bs, *, pool_types, spatial_order, spatial_norm, ties, skip):
    y = x
    if w2 is not None:
        highest = F.adaptive_max_pool2d(x, 1) if ties == "first" else x.amax((2, 3), keepdim=True)
        pools = {
            "avg": F.adaptive_avg_pool2d(x, 1),
            "max": highest,
            "lp": F.lp_pool2d(x, 2, x.shape[2:]),
            "lse": x.exp().sum((2, 3), keepdim=True).log(),
        }
        logits = 0
        for name in pool_types:
            hidden = pools[name] if w1 is None else F.relu(F.conv2d(pools[name], w1[:, :, None, None], b1))
            logits = logits + F.conv2d(hidden, w2[:, :, None, None], b2)
        y = x * torch.sigmoid(logits)
    if ws is not None:
        found = {
            "mean": y.mean(1, keepdim=True),
            "max": y.max(1, keepdim=True)[0] if ties == "first" else y.amax(1, keepdim=True),
        }
        logits = F.conv2d(torch.cat([found[name] for name in spatial_order], 1), ws, bs, padding=ws.shape[-1] // 2)
        y = y * torch.sigmoid(logits if spatial_norm is None else spatial_norm(logits))
    return x + y if skip else y


def upstream_scse(x, w1, b1, w2, b2, w, b, *, merge):
    by_pixel = x * torch.sigmoid(F.conv2d(x, w.view(1, -1, 1, 1), b))
    if w2 is None:
        return by_pixel
    by_channel = x * torch.sigmoid(F.linear(F.relu(F.linear(x.mean((2, 3)), w1, b1)), w2, b2))[:, :, None, None]
    return torch.max(by_channel, by_pixel) if merge == "max" else by_channel + by_pixel


def make(kind="both", equal=False, spatial=(1, 2, 3, 3)):
    """The map, with many equal numbers where asked, and the six weights."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x, layers = normal(*SHAPE), [normal(3, 6), normal(3), normal(6, 3), normal(6)]
    if equal:
        x = (x * 2).round().relu()
    if kind == "single_layer":
        layers = [None, None, normal(6, 6), normal(6)]
    if kind == "spatial":
        layers = [None] * 4
    return [x, *layers, *((None, None) if kind == "channel" else (normal(*spatial), normal(1)))]


def agree(ours, upstream, inputs):
    """Compare two functions of the inputs: the result and its derivatives, of all inputs at once and of each alone."""
    inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
    leaves = [x for x in inputs if x is not None]
    y, want = ours(*inputs), upstream(*inputs)
    torch.testing.assert_close(y, want, **EXACT)
    grad = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(1)).to(y.device)

    def grads(output, inputs, **kwargs):
        return torch.autograd.grad(output, inputs, grad, retain_graph=True, **kwargs)

    want_grads = grads(want, leaves, create_graph=True)
    torch.testing.assert_close(grads(y, leaves), want_grads, **EXACT)
    for place, leaf in enumerate(leaves):
        torch.testing.assert_close(grads(y, leaf)[0], want_grads[place], **EXACT)
        alone = [x if x is leaf or x is None else x.detach() for x in inputs]
        torch.testing.assert_close(grads(ours(*alone), leaf)[0], want_grads[place], **EXACT)
    directions = [torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape).to(x.device) for x in leaves]

    def second(first):
        found = torch.autograd.grad(first, leaves, directions, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    wanted = second(want_grads)
    for got, one in zip(second(grads(y, leaves, create_graph=True)), wanted, strict=True):
        torch.testing.assert_close(got, one, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pool_types", "spatial_order", "ties", "skip", "equal"),
    [
        (("avg", "max"), ("max", "mean"), "first", False, False),
        (("avg", "max"), ("max", "mean"), "first", True, True),
        (("avg", "max"), ("mean", "max"), "share", False, True),
        (("avg",), ("mean", "max"), "first", True, False),
        (("max",), ("mean", "max"), "share", True, True),
        (("avg", "lp", "lse"), ("max", "mean"), "first", False, False),
    ],
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_cbam(backend, device, pool_types, spatial_order, ties, skip, equal, kind):
    norm = nn.BatchNorm2d(1, dtype=torch.float64, device=device) if kind == "norm" else None
    options = {
        "pool_types": pool_types, "spatial_order": spatial_order, "spatial_norm": norm, "ties": ties, "skip": skip
    }  # fmt: skip

    def ours(*inputs):
        return attnkernels.cbam(*inputs, **options, backend=backend)

    def upstream(*inputs):
        return upstream_cbam(*inputs, **options)

    agree(ours, upstream, [None if x is None else x.to(device) for x in make(kind, equal)])


@pytest.mark.parametrize("kind", ["both", "spatial"])
@pytest.mark.parametrize("merge", ["max", "add"])
@pytest.mark.parametrize("equal", [False, True], ids=["", "ties"])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_scse(backend, device, equal, merge, kind):
    inputs = [None if x is None else x.to(device) for x in make(kind, equal, spatial=(1, 6, 1, 1))]
    agree(
        lambda *inputs: attnkernels.scse(*inputs, merge=merge, backend=backend),
        lambda *inputs: upstream_scse(*inputs, merge=merge),
        inputs,
    )


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_the_normalisation_is_torchs_own(backend, device):
    """Its statistics move once a call, and its own parameters have gradients though no other input has."""
    x, *weights = [x.to(device) for x in make()]
    norms = [nn.BatchNorm2d(1, momentum=0.01, dtype=torch.float64, device=device) for _ in range(2)]
    options = {"pool_types": ("avg", "max"), "spatial_order": ("max", "mean"), "ties": "first", "skip": False}
    attnkernels.cbam(x, *weights, **options, spatial_norm=norms[0], backend=backend).sum().backward()
    upstream_cbam(x, *weights, **options, spatial_norm=norms[1]).sum().backward()
    for got, want in zip(norms[0].state_dict().values(), norms[1].state_dict().values(), strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(norms[0].parameters(), norms[1].parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **EXACT)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_an_error_of_the_normalisation_is_raised_at_once(backend, device):
    calls = []

    def norm(logits):
        calls.append(logits.shape)
        raise RuntimeError("of the normalisation")

    with pytest.raises(RuntimeError, match="of the normalisation"):
        attnkernels.cbam(*[x.to(device) for x in make()], spatial_norm=norm, backend=backend)
    assert calls == [(2, 1, 5, 4)]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_one_map_through_two_calls(backend, device):
    """The passes of one call do not take the slots of another on the same map."""
    inputs = [x.to(device) for x in make()]

    def twice(function):
        def both(x, *weights):
            y = function(x, *weights)
            return y * function(x, *weights).sin() + function(y, *weights)

        return both

    options = {
        "pool_types": ("avg", "max"), "spatial_order": ("max", "mean"), "spatial_norm": None, "ties": "first",
        "skip": True,
    }  # fmt: skip
    agree(
        twice(lambda *given: attnkernels.cbam(*given, **options, backend=backend)),
        twice(lambda *given: upstream_cbam(*given, **options)),
        inputs,
    )


@pytest.mark.parametrize("op", ["cbam", "scse"])
@pytest.mark.parametrize(("backend", "device"), [b for b in BACKENDS if b[0] != "reference"])
def test_nothing_of_the_maps_size_is_kept(backend, device, op):
    """Of tensors as large as the map, x alone is saved."""
    x = torch.randn(2, 64, 16, 16, device=device, requires_grad=True)
    sizes = (4, 64), (4,), (64, 4), (64,), (1, 2, 7, 7) if op == "cbam" else (1, 64), (1,)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        getattr(attnkernels, op)(x, *[torch.randn(size, device=device) for size in sizes], backend=backend)
    assert {t.data_ptr() for t in kept if t.numel() >= x.numel()} == {x.data_ptr()}


@pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="no CPU library here")
@pytest.mark.parametrize(
    ("op", "kind"),
    [("cbam", "both"), ("cbam", "channel"), ("cbam", "spatial"), ("scse", "both"), ("scse", "spatial")],
)
def test_compiled_kernels_have_the_gradients_of_the_formula(op, kind):
    """What is not there, a compiled graph takes for zeros."""
    torch._dynamo.reset()
    x, *weights = make(kind, spatial=(1, 6, 1, 1) if op == "scse" else (1, 2, 3, 3))
    function = getattr(attnkernels, op)
    compiled = torch.compile(lambda x: function(x, *weights, backend="cpu"), fullgraph=True, backend="aot_eager")
    grads = []
    for call in (compiled, lambda x: function(x, *weights, backend="reference")):
        leaf = x.detach().requires_grad_()
        grads.append(torch.autograd.grad(call(leaf).sin().sum(), leaf)[0])
    torch.testing.assert_close(*grads, **EXACT)
