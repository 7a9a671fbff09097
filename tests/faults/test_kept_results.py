"""Blocks write over a convolution's result only where nobody else may hold it, on the CPU in inference."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
from patching.blocks import BLOCK, BLOCKS, FOLDED, MODULE, made, operators, run
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attnkernels
from attnkernels.patching import _ownership

pytestmark = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 16, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Kept:
    """Maps that convolutions returned, each with a copy of what it was.

    Not what they return inside an excitation, which its own activation may change, as it always did.
    """

    def __init__(self, view: Callable[[torch.Tensor], object] = lambda result: result):
        self.view, self.results = view, []

    def keep(self, result):
        if result.shape[-1] == 1:
            return result
        kept = self.view(result)
        self.results.append((kept, torch.as_tensor(kept).clone()))
        return result

    def check(self, at_least: int):
        assert len(self.results) >= at_least
        for kept, copied in self.results:
            assert torch.equal(torch.as_tensor(kept), copied)


def leaving(name: str) -> nn.Module:
    """A block none of whose own modules writes over what a convolution returned."""
    block = made(name)
    for module in block.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return block


class DispatchMode(TorchDispatchMode):
    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return self.kept.keep(result) if "conv" in str(func) else result


class FunctionMode(TorchFunctionMode):
    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return self.kept.keep(result) if func is F.conv2d else result


# Their own forward adds in place to what the last convolution returned, where no normalisation follows it.
ADDING = {"torchvision MBConv, folded", "torchvision mobilenet, folded"}


@pytest.mark.parametrize("mode", [DispatchMode, FunctionMode])
@pytest.mark.parametrize("name", [name for name in (*BLOCKS, *FOLDED) if name not in ADDING])
def test_modes_find_what_they_keep_as_it_was(name, mode, x):
    block = leaving(name)
    expected, _ = run(block, x)
    attnkernels.patch(block)
    for calls_before in (0, 2):
        for _ in range(calls_before):
            assert run(block, x)[1] == [BLOCK]
        kept = Kept()
        with torch.no_grad(), mode(kept), operators() as seen:
            y = block(x)
        kept.check(at_least=2)
        assert set(seen) == {MODULE}
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)


class Watching(TorchFunctionMode):
    """Keeps nothing, and sees each function."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BLOCKS)
def test_modes_that_keep_nothing_see_the_block_s_own_forward(name, x):
    block = made(name)
    attnkernels.patch(block)
    run(block, x)
    with torch.no_grad(), Watching() as mode, operators() as seen:
        block(x)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in block.modules())
    assert mode.seen.count(F.batch_norm) == norms
    assert seen == [MODULE]
    assert run(block, x)[1] == [BLOCK]


@pytest.mark.parametrize("mode", [DispatchMode, FunctionMode])
def test_all_convolutions_of_a_model_under_a_mode(mode):
    model = timm.create_model("efficientnet_b0").eval()
    attnkernels.patch(model)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        model(image)
        kept = Kept()
        with mode(kept):
            model(image)
    kept.check(at_least=49 - 16)


# What is kept of a result: the tensor, or something else on its memory.
VIEWS = {
    "the tensor": lambda result: result,
    "a view": lambda result: result[:, 1:],
    "detached": lambda result: result.detach(),
    "an array": lambda result: result.numpy(),
    "a storage": lambda result: torch.empty(0, dtype=result.dtype).set_(result.untyped_storage()),
    "dlpack": torch.from_dlpack,
}


def _in_class_forward(kept, block, monkeypatch):
    own = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: kept.keep(own(self, x)))


def _in_class_kernel(kept, block, monkeypatch):
    own = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *args: kept.keep(own(self, *args)))


def _in_functional(kept, block, monkeypatch):
    own = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: kept.keep(own(*args, **kwargs)))


def _in_instance_forward(kept, block, monkeypatch):
    for module in _convolutions(block):
        module.forward = lambda x, own=module.forward: kept.keep(own(x))


def _in_instance_kernel(kept, block, monkeypatch):
    for module in _convolutions(block):
        module._conv_forward = lambda *args, own=module._conv_forward: kept.keep(own(*args))


def _in_hooks(kept, block, monkeypatch):
    for module in _convolutions(block):
        module.register_forward_hook(lambda module, inputs, output: kept.keep(output))


def _in_global_hooks(kept, block, monkeypatch):
    def hook(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            kept.keep(output)

    return nn.modules.module.register_module_forward_hook(hook)


def _in_call(kept, block, monkeypatch):
    own = nn.Conv2d.__call__
    monkeypatch.setattr(nn.Conv2d, "__call__", lambda self, x: kept.keep(own(self, x)))


def _convolutions(block):
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)]


PLACES = [
    _in_class_forward, _in_class_kernel, _in_functional, _in_instance_forward, _in_instance_kernel, _in_hooks,
    _in_global_hooks, _in_call,
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", ["resnet basic", "inverted residual", "torchvision MBConv", "regnet, folded"])
def test_what_is_kept_stays_as_it_was(name, place, view, x, monkeypatch):
    block = leaving(name)
    expected, _ = run(block, x)
    attnkernels.patch(block)
    run(block, x)
    assert run(block, x)[1] == [BLOCK]
    kept = Kept(VIEWS[view])
    handle = place(kept, block, monkeypatch)
    try:
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                for _ in range(2):
                    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-7)
    finally:
        if handle is not None:
            handle.remove()
    kept.check(at_least=8)


@pytest.mark.parametrize("cached", ["the tensor", "a view of it", "an array"])
def test_a_convolution_that_returns_what_it_has(cached, x, monkeypatch):
    block = made("inverted residual")
    attnkernels.patch(block)
    run(block, x)
    tensor = block.conv_dw(block.bn1(block.conv_pw(x))).detach()
    returned = {"the tensor": lambda: tensor, "a view of it": lambda: tensor[:], "an array": lambda: _shared(tensor)}
    own, before = F.conv2d, tensor.clone()

    def convolution(x, weight, bias, stride, padding, dilation, groups):
        return returned[cached]() if groups > 1 else own(x, weight, bias, stride, padding, dilation, groups)

    monkeypatch.setattr(F, "conv2d", convolution)
    results = [run(block, x) for _ in range(3)]
    assert torch.equal(tensor, before)
    assert {tuple(seen) for _, seen in results} == {(MODULE,)}
    assert all(torch.equal(y, results[0][0]) for y, _ in results)


def _shared(tensor):
    return torch.from_numpy(tensor.numpy())


def test_a_convolution_that_returns_its_input(x, monkeypatch):
    block = made("depthwise separable")
    own = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *args: x if args[-1] > 1 else own(x, *args))
    expected, _ = run(block, x)
    attnkernels.patch(block)
    for _ in range(3):  # run asserts that x is as it was
        y, seen = run(block, x)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
        assert seen == [MODULE]


def test_ownership(x):
    convolution = nn.Conv2d(16, 4, 1).double()
    held = []

    def kept(view):
        def call(x):
            result = convolution(x)
            held.append(view(result))
            return result

        return call

    alone = _ownership.counts_of_new()
    assert alone
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            for _ in range(3):
                assert _ownership.counted(convolution, x)[1] == alone
            assert _ownership.counted(lambda x: convolution(x).relu_(), x)[1] == alone
            for view in (
                *VIEWS.values(),
                weakref.ref,
                lambda result: [result],
                lambda result: result.untyped_storage(),
            ):
                assert _ownership.counted(kept(view), x)[1] != alone
            for result in (nn.Parameter(torch.ones(2)), torch.ones(2).as_subclass(Subclass), torch.ones(2).numpy()):
                assert _ownership.counted(lambda _, result=result: result, x)[1] != alone


class Subclass(torch.Tensor):
    pass


class Holder(nn.Module):
    """Compiled by torch.jit.script, it holds a tensor from C++."""

    def __init__(self):
        super().__init__()
        self.held = torch.empty(0)

    def forward(self, x):
        self.held = x


def test_ownership_where_cpp_holds_the_tensor(x):
    holder = torch.jit.script(Holder())

    def kept(x):
        result = x.clone()
        holder(result)
        return result

    alone = _ownership.counts_of_new()
    assert _ownership.counted(kept, x)[1] != alone
    assert _ownership.counted(torch.clone, x)[1] == alone


def test_ownership_is_not_judged_before_it_was_measured(monkeypatch, x):
    before = _ownership.counts_of_new()
    monkeypatch.setattr(_ownership, "_counts_of_new", ())
    with FunctionMode(Kept()):
        assert _ownership.counts_of_new() == ()
    assert _ownership.counts_of_new() == before


def test_nothing_is_measured_under_a_debugger_that_holds_locals(x, monkeypatch):
    monkeypatch.setattr(_ownership, "_counts_of_new", ())

    def holds_locals(frame, event, argument):
        frame.f_locals  # noqa: B018  reading it makes a dictionary of references
        return holds_locals

    before = sys.gettrace()
    sys.settrace(holds_locals)
    try:
        assert _ownership.counts_of_new() == ()
    finally:
        sys.settrace(before)
    block = made("resnet basic")
    attnkernels.patch(block)
    assert run(block, x)[1] == [BLOCK]
