"""Which calls are ordinary: one answer for functions, for modules whose children are passed by, for what is in place."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from attnkernels._context import FUNCTION, PASSES_MODULES, WRITES_OVER, beyond_reverse_mode, has_modes, is_ordinary

LEVELS = (FUNCTION, PASSES_MODULES, WRITES_OVER)


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


@contextlib.contextmanager
def global_hook(register):
    handle = register(lambda *_: None)
    yield
    handle.remove()


# What is around a call, and for which kinds of calls that makes no difference.
CONTEXTS = {
    "nothing": (contextlib.nullcontext, LEVELS),
    "no gradients": (torch.no_grad, LEVELS),
    "inference": (torch.inference_mode, LEVELS),
    "autocast": (lambda: torch.autocast("cpu", dtype=torch.bfloat16), LEVELS),
    "forward mode": (forward_ad.dual_level, ()),
    "dispatch mode": (DispatchMode, (FUNCTION, PASSES_MODULES)),
    "function mode": (FunctionMode, (FUNCTION, PASSES_MODULES)),
    "global forward hook": (lambda: global_hook(hooks.register_module_forward_hook), (FUNCTION,)),
    "global pre-hook": (lambda: global_hook(hooks.register_module_forward_pre_hook), (FUNCTION,)),
    "global backward hook": (lambda: global_hook(hooks.register_module_full_backward_hook), (FUNCTION,)),
    "global backward pre-hook": (lambda: global_hook(hooks.register_module_full_backward_pre_hook), (FUNCTION,)),
}


def ordinary(x) -> tuple[int, ...]:
    return tuple(level for level in LEVELS if is_ordinary(x, level))


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_is_around_a_call(name):
    context, levels = CONTEXTS[name]
    for x in (torch.ones(2), nn.Parameter(torch.ones(2))):
        with context():
            assert ordinary(x) == levels
            assert has_modes() == ("mode" in name and name != "forward mode")
            assert bool(beyond_reverse_mode()) == (name == "forward mode")
        assert ordinary(x) == LEVELS


@pytest.mark.parametrize("x", [None, 1.0, [1.0], Subclass(torch.ones(2))], ids=lambda x: type(x).__name__)
def test_what_is_no_plain_tensor(x):
    assert ordinary(x) == ()
    with FakeTensorMode():
        assert ordinary(torch.ones(2)) == ()


def test_inside_transforms_and_tracers():
    seen = []

    def watched(x: Tensor) -> Tensor:
        seen.append(ordinary(torch.ones(2)))
        return x.sin()

    torch.func.vmap(watched)(torch.ones(2))
    torch.func.grad(lambda x: watched(x).sum())(torch.ones(2))
    assert seen == [(), ()]
    torch.jit.trace(watched, torch.ones(2), check_trace=False)
    assert seen.pop() == (FUNCTION,)
    torch.export.export(Watched(watched), (torch.ones(2),), strict=False)
    assert seen.pop() == ()


class Watched(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_compilers_take_the_answer_for_a_constant():
    graphs = []

    def kept(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op != "placeholder"])
        return graph

    def function(x: Tensor) -> Tensor:
        return x + 1 if any(is_ordinary(x, level) for level in LEVELS) else x - 1

    assert torch.equal(torch.compile(function, backend=kept, fullgraph=True)(torch.ones(2)), torch.zeros(2))
    assert len(graphs) == 1
    assert len(graphs[0]) == 2  # the subtraction and the output
