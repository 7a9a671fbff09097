"""Checkpointing recomputes with the backend of the forward, wherever the backward runs."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attnkernels
from attnkernels import layers

pytestmark = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="needs two backends")


class Calls:
    """A layer that notes on which backend it runs."""

    def __init__(self):
        self.layer = layers.SqueezeExcite(8)
        self.backends = []

    def __call__(self, x):
        weights = self.layer.fc1.weight, self.layer.fc1.bias, self.layer.fc2.weight, self.layer.fc2.bias
        self.backends.append(attnkernels.backend_of("squeeze_excite", x, *weights))
        return self.layer(self.layer(x))


def backward(y, where):
    if where == "another thread":  # as autograd's own: nothing of this thread's context is there
        failed = []

        def run():
            try:
                y.sum().backward()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert not failed, failed
    else:
        y.sum().backward()


@pytest.mark.parametrize("where", ["here", "another thread"])
@pytest.mark.parametrize("around_backward", [None, "cpu", "reference"])
@pytest.mark.parametrize("around_forward", [None, "cpu", "reference"])
def test_the_backend_of_the_forward_is_taken(around_forward, around_backward, where):
    calls, x = Calls(), torch.randn(2, 8, 4, 4, requires_grad=True)
    with attnkernels.use_backend(around_forward or "auto"):
        y = checkpoint(calls, x, use_reentrant=False)
    if around_backward:
        with attnkernels.use_backend(around_backward):
            backward(y, where)
    else:
        backward(y, where)
    assert calls.backends == [around_forward or "cpu"] * 2
    assert x.grad is not None


def test_without_any_context_around_the_forward():
    calls, x = Calls(), torch.randn(2, 8, 4, 4, requires_grad=True)
    y = checkpoint(calls, x, use_reentrant=False)
    with attnkernels.use_backend("reference"):
        y.sum().backward()
    assert calls.backends == ["cpu", "cpu"]


def test_contexts_inside_what_is_checkpointed():
    calls, x = Calls(), torch.randn(2, 8, 4, 4, requires_grad=True)

    def inside(x):
        with attnkernels.use_backend("reference"):
            x = calls(x)
        return calls(x)

    y = checkpoint(inside, x, use_reentrant=False)
    y.sum().backward()
    assert calls.backends == ["reference", "cpu"] * 2


def test_nested_checkpoints():
    calls, x = Calls(), torch.randn(2, 8, 4, 4, requires_grad=True)

    def outer(x):
        x = checkpoint(calls, x, use_reentrant=False)
        with attnkernels.use_backend("cpu"):
            return checkpoint(calls, x, use_reentrant=False)

    with attnkernels.use_backend("reference"):
        y = checkpoint(outer, x, use_reentrant=False)
    y.sum().backward()
    forward, outer_again, inner_again = ["reference", "cpu"], ["reference"], ["cpu", "reference"]
    assert calls.backends == [*forward, *outer_again, *inner_again]  # the outer one stops where it has what it saved
    assert x.grad is not None


def test_hooks_of_others_inside_what_is_checkpointed():
    calls, x = Calls(), torch.randn(2, 8, 4, 4, requires_grad=True)

    def inside(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return calls(x)

    with attnkernels.use_backend("reference"):
        y = checkpoint(lambda x: calls(inside(x)), x, use_reentrant=False)
    y.sum().backward()
    assert calls.backends == ["reference"] * 4


def test_a_patched_network():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, x = timm.create_model("seresnet18", num_classes=3).train(), torch.randn(2, 3, 64, 64)
    model.set_grad_checkpointing()
    attnkernels.patch(model)
    with attnkernels.use_backend("reference"):
        y = model(x)
    y.sum().backward()  # raised: other tensors were saved than in the forward
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.skipif(not hasattr(torch._C, "_remove_obj_from_tls"), reason="this PyTorch does not pass the context on")
def test_worker_threads_know_the_context_of_the_backward():
    """The reentrant kind, and whatever else calls a function inside a backward."""
    seen = []

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            def ask():
                with torch.enable_grad():
                    x, w = torch.ones(1, 4, 2, 2), torch.ones(4, 4)
                    seen.append(attnkernels.backend_of("squeeze_excite", x, w, None, w, None))

            contextvars.Context().run(ask)  # a thread of autograd's has an empty context
            return grad

    y = Backward.apply(torch.ones(2, requires_grad=True))
    with attnkernels.use_backend("reference"):
        y.sum().backward()
    assert seen == ["reference"]
