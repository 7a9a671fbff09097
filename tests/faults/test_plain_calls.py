"""Calls that nothing is special about go to an operator at once; every other one is considered as it always was."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import attnkernels
from attnkernels import backends, testing

pytestmark = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")

ONE_PER_OP = [next(case for case in of_op if case.small) for of_op in testing.CASES.values()]


class Subclass(Tensor):
    pass


def chosen(x, backend: str, tensors) -> str:
    """What the careful way decides, and where it raises nothing."""
    try:
        return backends.choose("op", x, backend, tensors)
    except (TypeError, ValueError):
        return ""


def agree(x, backend: str = "auto", tensors=(), plain: bool = False) -> None:
    found = backends.plain_backend(x, backend, (x, *tensors))
    assert found == (chosen(x, backend, tensors) if plain else "")


@pytest.mark.parametrize(
    "backend", ["auto", "cpu", "reference", "cuda", "triton", "fast", None, 3, backends._Question("auto")]
)
def test_a_plain_call_takes_what_the_careful_way_chooses(backend):
    for x in (torch.ones(2), nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.bfloat16)):
        for tensors in ((), (None,), (torch.ones(2), nn.Parameter(torch.ones(2)))):
            agree(x, backend, tensors, plain=backend in ("auto", "cpu") and backend.__class__ is str)
    for forced in ("cpu", "reference", "auto"):
        with attnkernels.use_backend(forced):
            plain = backend == "cpu" or (backend == "auto" and forced != "reference")
            agree(torch.ones(2), backend, plain=plain and backend.__class__ is str)


@pytest.mark.parametrize(
    "x", [None, 1.0, [1.0], Subclass(), torch.ones(2, dtype=torch.int64), torch.ones(2, device="meta")]
)
def test_what_is_no_plain_tensor_is_considered(x):
    assert backends.plain_backend(x, "auto") == ""
    if not isinstance(x, Tensor) or x.__class__ is Subclass:
        assert x is None or backends.plain_backend(torch.ones(2), "auto", (x,)) == ""


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_around_a_call_is_seen(grad):
    x, seen = torch.ones(2), []

    def watched(value: Tensor) -> Tensor:
        seen.append((backends.plain_backend(x, "auto"), backends.plain_backend(value, "auto")))
        return value

    with torch.set_grad_enabled(grad):
        torch.func.vmap(watched)(x)
        torch.func.grad(lambda value: watched(value).sum())(x)
        with forward_ad.dual_level():
            watched(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            watched(x)
        with FakeTensorMode() as mode:
            assert backends.plain_backend(mode.from_tensor(x), "auto") == ""
        torch.compile(watched, backend="eager")(x)
    assert seen == [("", "")] * 5


def test_calls_that_autograd_makes_anew_are_considered():
    seen = []

    def watched(x: Tensor) -> Tensor:
        seen.append(backends.plain_backend(x, "auto"))
        return x.sin()

    checkpoint(watched, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == ["", ""]
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: seen.append(backends.plain_backend(grad, "auto")))
    with torch.enable_grad():
        x.sin().sum().backward(create_graph=True)
    assert seen == ["", "", ""]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_the_careful_way_computes_the_same(case, recorded, monkeypatch):
    results = []
    for careful in (False, True):
        args, kwargs = case.make()
        leaves = [tensor.requires_grad_(recorded) for tensor in testing.tensors_of(args)]
        with monkeypatch.context() as patched:
            if careful:
                patched.setattr(backends, "plain_backend", lambda *_: "")
            else:
                patched.setattr(backends, "choose", None)  # not asked
            y = testing.run(case.op, args, kwargs, "auto")
        with contextlib.suppress(RuntimeError) if not recorded else contextlib.nullcontext():
            y.square().sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for quick, careful in zip(*results, strict=True):
        assert quick is careful is None or torch.equal(quick, careful)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("case", ONE_PER_OP, ids=str)
def test_one_tensor_on_meta_does_not_take_a_call_there(case, recorded):
    """Where the operator sees the tensors before the checks do."""
    args, kwargs = case.make()
    tensors = [tensor.requires_grad_(recorded) for tensor in testing.tensors_of(args)]
    for moved in tensors:
        bad = testing.map_tensors(args, lambda tensor, moved=moved: tensor.to("meta") if tensor is moved else tensor)
        if len(tensors) > 1:
            with pytest.raises(ValueError, match=f"{case.op}: .*expected device"):
                testing.run(case.op, bad, kwargs, "auto")
