"""What makes a module consider its children by name again."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torchvision.ops.misc import SqueezeExcitation

import attnkernels
from attnkernels import _guard

from .blocks import BLOCK, MODULE, hook, made, operators, run
from .test_integrations import _replicate

pytestmark = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 16, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _forward_of_its_own(module: nn.Module) -> None:
    module.forward = module.forward


def _doubled(convolution: nn.Conv2d):
    return lambda x, weight, bias: (
        2
        * nn.functional.conv2d(
            x, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        )
    )


def _replaced_hooks(module: nn.Module) -> None:
    """As utilities do that remove all hooks."""
    module._forward_hooks = OrderedDict()
    hook(module)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


# What is done to a block of InvertedResidual's class, between calls; the operators that may still run.
CHANGES = {
    "pre-hook on the convolution": (lambda b: b.conv_dw.register_forward_pre_hook(lambda *_: None), [MODULE]),
    "hook on the convolution": (lambda b: hook(b.conv_dw), [MODULE]),
    "hook on the norm": (lambda b: hook(b.bn2), [MODULE]),
    "hook on the norm's activation": (lambda b: hook(b.bn2.act), [MODULE]),
    "hook in a new dictionary": (lambda b: _replaced_hooks(b.bn2), [MODULE]),
    "hook on the excitation": (lambda b: hook(b.se), [MODULE]),
    "hook on a layer": (lambda b: hook(b.se.conv_reduce), []),
    "hook in a new dictionary of a layer": (lambda b: _replaced_hooks(b.se.conv_reduce), []),
    "kernel of a layer": (lambda b: setattr(b.se.conv_expand, "_conv_forward", _doubled(b.se.conv_expand)), []),
    "kernel of the convolution": (lambda b: setattr(b.conv_dw, "_conv_forward", _doubled(b.conv_dw)), [MODULE]),
    "forward of the norm": (lambda b: _forward_of_its_own(b.bn2), [MODULE]),
    "forward of a layer": (lambda b: _forward_of_its_own(b.se.conv_expand), []),
    "another norm": (lambda b: setattr(b, "bn2", nn.GroupNorm(2, 16).double()), [MODULE]),
    "another activation": (lambda b: setattr(b.bn2, "act", nn.Tanh()), [MODULE]),
    "another known activation": (lambda b: setattr(b.bn2, "act", nn.ReLU()), [BLOCK]),
    "another drop": (lambda b: setattr(b.bn2, "drop", nn.Hardtanh()), [MODULE]),
    "another layer": (lambda b: setattr(b.se, "conv_expand", nn.Sequential(b.se.conv_expand, nn.Tanh())), []),
    "another gate": (lambda b: setattr(b.se, "gate", nn.Hardsigmoid()), [BLOCK]),
    "another convolution": (lambda b: setattr(b, "conv_dw", nn.Sequential(b.conv_dw, nn.Tanh())), [MODULE]),
    "an excitation of its own": (lambda b: setattr(b, "se", copy.deepcopy(b.se)), [BLOCK]),
    "no excitation": (lambda b: setattr(b, "se", nn.Identity()), []),
    "epsilon": (lambda b: setattr(b.bn2, "eps", 0.5), [BLOCK]),
    "a new parameter": (lambda b: setattr(b.bn2, "weight", nn.Parameter(2 * b.bn2.weight.detach())), [BLOCK]),
    "a new statistic": (lambda b: setattr(b.bn2, "running_var", 2 * b.bn2.running_var), [BLOCK]),
    "no statistics": (lambda b: (setattr(b.bn2, "running_var", None), setattr(b.bn2, "running_mean", None)), [MODULE]),
    "a loaded state": (lambda b: b.load_state_dict({k: 2 * v for k, v in b.state_dict().items()}), [BLOCK]),
    "parametrized": (lambda b: parametrize.register_parametrization(b.se.conv_reduce, "weight", Doubled()), []),
    "parametrized norm": (lambda b: parametrize.register_parametrization(b.bn2, "weight", Doubled()), [MODULE]),
    "pruned": (lambda b: prune.l1_unstructured(b.se.conv_expand, "weight", 0.5), []),
    "norm in training": (lambda b: b.bn2.train(), [MODULE]),
    "whole block in training": (lambda b: b.train(), [MODULE]),
}  # fmt: skip


# A forward that is put on a class: which, and the operators that a block of each kind may still run.
CLASSES = {
    "layers and convolutions": (nn.Conv2d, {"inverted residual": [], "torchvision mobilenet": []}),
    "norms": (nn.BatchNorm2d, {"inverted residual": [BLOCK], "torchvision mobilenet": [MODULE]}),
    "norms with activations": (timm.layers.BatchNormAct2d, {"inverted residual": [MODULE]}),
    "activations": (nn.SiLU, {"inverted residual": [], "torchvision MBConv": []}),
    "another's activations": (nn.Hardswish, {"inverted residual": [BLOCK], "torchvision mobilenet": [MODULE]}),
    "gates": (nn.Hardsigmoid, {"torchvision mobilenet": [], "torchvision MBConv": [BLOCK]}),
    "excitations": (SqueezeExcitation, {"torchvision mobilenet": [MODULE], "inverted residual": [BLOCK]}),
    "sequences": (nn.Sequential, {"torchvision mobilenet": [MODULE], "torchvision regnet": [MODULE]}),
    "last activations": (nn.ReLU, {"resnet basic": [], "regnet": []}),
}


@pytest.mark.parametrize("calls_before", [0, 2])
@pytest.mark.parametrize(("where", "name"), [(where, name) for where, (_, names) in CLASSES.items() for name in names])
def test_forwards_put_on_classes_are_noticed(where, name, calls_before, x, monkeypatch):
    cls, names = CLASSES[where]
    block = made(name)
    attnkernels.patch(block)
    for _ in range(calls_before):
        run(block, x)
    unpatched, before, seen = attnkernels.unpatch(copy.deepcopy(block)), cls.forward, []

    def forward(self, x):
        seen.append(self)
        return 1.5 * before(self, x)

    with monkeypatch.context() as patched:
        patched.setattr(cls, "forward", forward)
        for _ in range(2):
            expected, _ = run(unpatched, x)
            made_calls = len(seen)
            seen.clear()
            y, ran = run(block, x)
            assert len(seen) == made_calls
            assert ran == names[name]
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
            seen.clear()
    y, ran = run(block, x)
    assert ran == [BLOCK]
    torch.testing.assert_close(y, run(unpatched, x)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("on", ["instance", "class"])
@pytest.mark.parametrize("calls_before", [0, 2])
def test_a_method_that_the_forward_consists_of_is_noticed(on, calls_before, x, monkeypatch):
    block = made("torchvision mobilenet")
    module = block.block[2]
    attnkernels.patch(block)
    for _ in range(calls_before):
        run(block, x)
        run(module, torch.randn(1, 24, 2, 2, dtype=torch.float64))
    target = module if on == "instance" else SqueezeExcitation
    monkeypatch.setattr(target, "_scale", lambda *_: torch.full((1, 24, 1, 1), 0.5, dtype=torch.float64))
    feature = torch.randn(1, 24, 2, 2, dtype=torch.float64)
    y, seen = run(module, feature)
    assert torch.equal(y, 0.5 * feature)
    assert seen == []
    assert run(block, x)[1] == []


@pytest.mark.parametrize("calls_before", [0, 1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change, calls_before, x):
    block = made("inverted residual")
    attnkernels.patch(block)
    for _ in range(calls_before):
        run(block, x)
    apply, expected_operators = CHANGES[change]
    with torch.no_grad():
        apply(block)
    unpatched = attnkernels.unpatch(copy.deepcopy(block))
    for _ in range(2):
        expected = run(unpatched, x)[0]
        y, seen = run(block, x)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
        assert seen == expected_operators


# The same of a block whose normalisations are in the convolutions: bn2 is an activation.
FOLDED_CHANGES = {
    "hook on the convolution": (lambda b: hook(b.conv_dw), [MODULE]),
    "pre-hook on the activation": (lambda b: b.bn2.register_forward_pre_hook(lambda *_: None), [MODULE]),
    "another activation": (lambda b: setattr(b, "bn2", nn.Tanh()), [MODULE]),
    "another known activation": (lambda b: setattr(b, "bn2", nn.Hardswish()), [BLOCK]),
    "no activation": (lambda b: setattr(b, "bn2", nn.Identity()), [BLOCK]),
    "two activations": (lambda b: setattr(b, "aa", nn.ReLU()), [MODULE]),
    "a norm": (lambda b: setattr(b, "bn2", nn.BatchNorm2d(16).double().eval()), [BLOCK]),
    "a norm in training": (lambda b: setattr(b, "bn2", nn.BatchNorm2d(16).double()), [MODULE]),
    "a norm after the activation": (lambda b: setattr(b, "aa", nn.BatchNorm2d(16).double().eval()), [MODULE]),
    "another bias": (lambda b: setattr(b.conv_dw, "bias", nn.Parameter(2 * b.conv_dw.bias.detach())), [BLOCK]),
    "another layer": (lambda b: setattr(b.se, "conv_expand", nn.Sequential(b.se.conv_expand, nn.Tanh())), []),
    "whole block in training": (lambda b: b.train(), [BLOCK]),
}  # fmt: skip


@pytest.mark.parametrize("calls_before", [0, 2])
@pytest.mark.parametrize("change", FOLDED_CHANGES)
def test_changes_without_norms_are_noticed(change, calls_before, x):
    block = made("inverted residual, folded")
    attnkernels.patch(block)
    for _ in range(calls_before):
        assert run(block, x)[1] == [BLOCK]
    apply, expected_operators = FOLDED_CHANGES[change]
    apply(block)
    unpatched = attnkernels.unpatch(copy.deepcopy(block))
    for _ in range(2):
        y, seen = run(block, x)
        torch.testing.assert_close(y, run(unpatched, x)[0], rtol=1e-6, atol=1e-7)
        assert seen == expected_operators


@pytest.mark.parametrize("change", ["gate", "hook", "maxpool", "weight", "bias", "kernel"])
def test_changes_of_a_module_alone_are_noticed(change, x):
    module = timm.layers.SEModule(16, rd_channels=4).double()
    attnkernels.patch(module)
    run(module, x)
    assert _guard.NAME in module.__dict__
    assert run(module, x)[1] == [MODULE]
    if change == "gate":
        module.gate = nn.Hardsigmoid()
    elif change == "hook":
        seen = hook(module.fc2)
    elif change == "maxpool":
        module.add_maxpool = True
    elif change == "kernel":
        module.fc2._conv_forward = _doubled(module.fc2)
    else:
        value = getattr(module.fc1, change).detach() + 1
        delattr(module.fc1, change)
        setattr(module.fc1, change, value)  # no parameter any more
    y, ran = run(module, x)
    assert change != "hook" or len(seen) == 1
    torch.testing.assert_close(y, attnkernels.unpatch(module)(x), rtol=1e-6, atol=1e-7)
    assert ran == ([] if change in ("hook", "maxpool", "kernel") else [MODULE])


def test_the_state_of_the_process_is_noticed(x):
    block = made("inverted residual")
    unpatched = copy.deepcopy(block)
    attnkernels.patch(block)
    assert run(block, x)[1] == [BLOCK]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, seen = run(block.float(), x.float())
        assert torch.equal(y.isfinite(), torch.ones_like(y, dtype=torch.bool))
        assert BLOCK not in seen
    block.double()
    with attnkernels.use_backend("reference"):
        assert run(block, x)[1] == []
    with forward_ad.dual_level(), torch.no_grad():
        tangent = torch.randn_like(x)
        dual = forward_ad.make_dual(x, tangent)
        torch.testing.assert_close(
            forward_ad.unpack_dual(block(dual)).tangent, forward_ad.unpack_dual(unpatched(dual)).tangent
        )
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(block)(x[:, None]), torch.func.vmap(unpatched)(x[:, None]))
        traced = torch.jit.trace(block, x)
        assert not any("attnkernels" in node.kind() for node in traced.inlined_graph.nodes())
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    run(block, x)
    handle.remove()
    assert block.se.gate in seen
    assert run(block, x)[1] == [BLOCK]
    with torch.inference_mode():
        torch.testing.assert_close(block(x), unpatched(x))


def test_copies_and_pickles_find_out_for_themselves(x):
    block = made("resnet basic")
    attnkernels.patch(block)
    expected = run(block, x)[0]
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    with torch.no_grad():
        replica = _replicate(block)
    for other in (copy.deepcopy(block), torch.load(buffer, weights_only=False), replica):
        own = set(map(id, other.modules()))
        assert not own.intersection(map(id, block.modules()))
        with torch.no_grad():
            torch.testing.assert_close(other(x), expected)
            torch.testing.assert_close(other(x), expected)
            if other is not replica:  # whose modules share the originals' dictionaries of hooks
                other.se.fc1.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
            torch.testing.assert_close(other(x), attnkernels.unpatch(copy.deepcopy(other))(x))
        assert torch.equal(run(block, x)[0], expected)
    scripted = torch.jit.script(block)
    torch.testing.assert_close(scripted(x), expected)


def test_what_was_replaced_is_not_kept_alive(x):
    block = made("inverted residual")
    attnkernels.patch(block)
    run(block, x)
    replaced = weakref.ref(block.se.conv_reduce.weight)
    block.se.conv_reduce = nn.Sequential(nn.Conv2d(16, 4, 1).double())
    run(block, x)
    gc.collect()
    assert replaced() is None


def test_an_excitation_unpatched_or_excluded_is_not_passed_by(x):
    block, other = made("regnet"), timm.layers.SEModule(16)
    attnkernels.patch(block)
    attnkernels.patch(other)  # keeps the dispatcher on the class of the excitation
    run(block, x)
    attnkernels.unpatch(block.se)
    for _ in range(2):
        assert run(block, x)[1] == []
    attnkernels.unpatch(other)
    assert run(block, x)[1] == []
    attnkernels.patch(block)
    assert run(block, x)[1] == [BLOCK]
    block = made("regnet")
    assert not attnkernels.patch(block, exclude=timm.layers.SEModule).replaced
    attnkernels.patch(block, include="se")
    assert run(block, x)[1] == [MODULE]


def test_another_backend_is_taken_at_once(x):
    block = made("torchvision MBConv")
    for backend, expected in (("cpu", [BLOCK]), ("reference", []), ("auto", [BLOCK])):
        attnkernels.patch(block, backend=backend)
        assert run(block, x)[1] == expected
        assert run(block, x)[1] == expected


@pytest.mark.parametrize("what", ["x", "weight", "meta weight", "meta bias", "norm"])
def test_bad_input_is_named_after_a_call(what, x):
    block = made("inverted residual")
    attnkernels.patch(block)
    good, seen = run(block, x)
    assert seen == [BLOCK]
    layer = block.se.conv_reduce
    before = layer.weight, layer.bias
    if what == "x":
        error, message, call = RuntimeError, "Double|double", lambda: block(x.float())
    elif what == "weight":
        layer.weight = nn.Parameter(layer.weight.detach().float())
        error, message, call = (
            TypeError,
            "squeeze_excite: reduce_weight: expected dtype torch.float64",
            lambda: block(x),
        )
    elif what == "meta weight":
        layer.weight = nn.Parameter(layer.weight.detach().to("meta"))
        error, message, call = ValueError, "squeeze_excite: reduce_weight: expected device cpu", lambda: block(x)
    elif what == "meta bias":
        layer.bias = nn.Parameter(layer.bias.detach().to("meta"))
        error, message, call = ValueError, "squeeze_excite: reduce_bias: expected device cpu", lambda: block(x)
    else:
        block.bn2.running_mean = torch.zeros(3, dtype=torch.float64)
        error, message, call = RuntimeError, "running_mean should contain", lambda: block(x)
    with torch.no_grad(), pytest.raises(error, match=message):
        call()
    layer.weight, layer.bias = before
    if what == "norm":
        return
    torch.testing.assert_close(run(block, x)[0], good)


def test_plain_modules_cache_no_guard_where_none_serves(x):
    module = SqueezeExcitation(16, 4).double()
    attnkernels.patch(module)
    with attnkernels.use_backend("reference"):
        module(x)
    assert _guard.NAME not in module.__dict__
    with torch.no_grad():
        torch.testing.assert_close(module(x[0]), attnkernels.unpatch(copy.deepcopy(module))(x[0]))  # [C, H, W]
    assert _guard.NAME not in module.__dict__
    run(module, x)
    assert _guard.NAME in module.__dict__
    with torch.no_grad():
        torch.testing.assert_close(module(x[0]), attnkernels.unpatch(copy.deepcopy(module))(x[0]))


# What is done to a recorded residual block between calls, and whether the op still stands for a part of it.
RECORDED_CHANGES = {
    "nothing": (lambda b: None, True),
    "hook on a layer": (lambda b: hook(b.se.fc1), False),
    "pre-hook on the gate": (lambda b: b.se.gate.register_forward_pre_hook(lambda *_: None), False),
    "backward hook on a layer": (lambda b: b.se.fc2.register_full_backward_hook(lambda *_: None), False),
    "backward pre-hook on a layer": (lambda b: b.se.fc2.register_full_backward_pre_hook(lambda *_: None), False),
    "hook on the excitation": (lambda b: hook(b.se), True),
    "hook on the last activation": (lambda b: hook(b.act2), True),
    "forward of a layer": (lambda b: _forward_of_its_own(b.se.fc1), False),
    "kernel of a layer": (lambda b: setattr(b.se.fc2, "_conv_forward", _doubled(b.se.fc2)), False),
    "another gate": (lambda b: setattr(b.se, "gate", nn.Hardsigmoid()), True),
    "another layer": (lambda b: setattr(b.se, "fc2", nn.Sequential(b.se.fc2, nn.Tanh())), False),
    "another last activation": (lambda b: setattr(b, "act2", nn.SiLU()), True),
    "no excitation": (lambda b: setattr(b, "se", nn.Identity()), False),
    "maxpool": (lambda b: setattr(b.se, "add_maxpool", True), False),
    "a new parameter": (lambda b: setattr(b.se.fc1, "weight", nn.Parameter(2 * b.se.fc1.weight.detach())), True),
    "no parameter any more": (lambda b: _plain_weight(b.se.fc1), True),
    "parametrized": (lambda b: parametrize.register_parametrization(b.se.fc1, "weight", Doubled()), False),
    "pruned": (lambda b: prune.l1_unstructured(b.se.fc2, "weight", 0.5), False),
    "unpatched": (lambda b: attnkernels.unpatch(b), False),
    "excitation unpatched": (lambda b: attnkernels.unpatch(b.se), False),
    "drops": (lambda b: setattr(b.drop_path, "drop_prob", 1.0), True),
}


def _plain_weight(layer: nn.Conv2d) -> None:
    value = 2 * layer.weight.detach()
    del layer.weight
    layer.weight = value


def _recorded(block: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], list[str]]:
    """A block's result and gradients, and the operators that ran in the forward."""
    x = x.clone().requires_grad_()
    with operators() as seen:
        y = block(x)
    wanted = [x, *block.parameters()]
    return [y.detach(), *torch.autograd.grad((y * y.cos()).sum(), wanted, allow_unused=True)], seen


@pytest.mark.parametrize("calls_before", [0, 1, 2])
@pytest.mark.parametrize("change", RECORDED_CHANGES)
def test_changes_are_noticed_where_autograd_records(change, calls_before, x):
    torch.manual_seed(0)
    block = timm.models.resnet.BasicBlock(16, 16, attn_layer="se", drop_path=timm.layers.DropPath(0.0)).double()
    block.bn1.momentum = block.bn2.momentum = 0.0
    attnkernels.patch(block)
    for _ in range(calls_before):
        _recorded(block, x)
    assert (_guard.PART in block.__dict__) == (calls_before > 0)
    apply, fused = RECORDED_CHANGES[change]
    with torch.no_grad():
        apply(block)
    unpatched = attnkernels.unpatch(copy.deepcopy(block))
    for _ in range(2):
        expected, _ = _recorded(unpatched, x)
        found, seen = _recorded(block, x)
        for value, other in zip(found, expected, strict=True):
            assert (value is None) == (other is None)
            if value is not None:
                torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7)
        assert (MODULE in seen) == fused


def test_a_block_keeps_guards_of_training_and_inference(x):
    block = made("resnet basic")
    attnkernels.patch(block)
    for _ in range(2):
        assert MODULE in _recorded(block, x)[1]
        assert run(block, x)[1] == [BLOCK]
    kept = {name: block.__dict__[name] for name in (_guard.NAME, _guard.PART)}
    _recorded(block, x)
    run(block, x)
    assert all(block.__dict__[name] is guard for name, guard in kept.items())
    attnkernels.unpatch(block)
    assert not {_guard.NAME, _guard.PART}.intersection(block.__dict__)


def test_a_recorded_layer_goes_by_its_guard(x, monkeypatch):
    layer = attnkernels.layers.SqueezeExcite(16, rd_channels=4).double()
    expected, _ = _recorded(layer, x)
    monkeypatch.setattr("attnkernels.layers.squeeze_excite.excitation", None)  # not asked again
    monkeypatch.setattr("attnkernels.layers.squeeze_excite.squeeze_excite", None)
    found, seen = _recorded(layer, x)
    assert seen == [MODULE]
    assert all(map(torch.equal, found, expected))
    layer.fc1.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    monkeypatch.undo()
    assert _recorded(layer, x)[1] == []


def test_bad_input_of_a_recorded_layer_is_named_after_a_call(x):
    layer = attnkernels.layers.SqueezeExcite(16, rd_channels=4).double()
    layer(x)
    for bad, error, message in (
        (x.float(), TypeError, "SqueezeExcite: x: expected dtype torch.float64 as the weights, got torch.float32"),
        (x[0], ValueError, r"SqueezeExcite: x: expected a tensor \[N, 16, H, W\], got \[16, 9, 7\]"),
        (None, TypeError, "SqueezeExcite: x: expected a tensor, got None"),
    ):
        with pytest.raises(error, match=message):
            layer(bad)
