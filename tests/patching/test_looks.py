"""In inference on a CPU: blocks that run as one operator, and what makes a module look at its children anew."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.models import regnet, resnet, senet
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

import attnkernels
from attnkernels.layers import _look

from .test_integrations import _replicate

pytestmark = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")

BLOCK, MODULE = "batch_norm_squeeze_excite_", "squeeze_excite"

# Each on [N, 16, H, W].
BLOCKS = {
    "resnet basic": lambda: resnet.BasicBlock(16, 16, attn_layer="se"),
    "resnet bottleneck": lambda: resnet.Bottleneck(16, 4, attn_layer="se", drop_path=timm.layers.DropPath(0.2)),
    "senet basic": lambda: senet.SEResNetBlock(16, 16, 1, 4),
    "senet bottleneck": lambda: senet.SEBottleneck(16, 4, 1, 4),
    "inverted residual": lambda: InvertedResidual(16, 16, se_layer=SqueezeExcite, act_layer=nn.SiLU),
    "inverted residual, same padding": lambda: InvertedResidual(
        16,
        8,
        stride=2,
        pad_type="same",
        act_layer=nn.Hardswish,
        se_layer=partial(SqueezeExcite, force_act_layer=nn.ReLU, gate_layer="hard_sigmoid"),
    ),
    "depthwise separable": lambda: DepthwiseSeparableConv(16, 16, se_layer=SqueezeExcite),
    "regnet": lambda: regnet.Bottleneck(16, 16, group_size=8, downsample=None),
    "regnet, projected": lambda: regnet.Bottleneck(16, 32, stride=2, group_size=8),
    "torchvision MBConv": lambda: MBConv(
        MBConvConfig(4, 3, 1, 16, 16, 1), stochastic_depth_prob=0.2, norm_layer=nn.BatchNorm2d
    ),
    "sequence": lambda: nn.Sequential(
        nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24, affine=False), nn.Hardswish(), SqueezeExcitation(24, 6), nn.ReLU()
    ),
    "sequence that starts with a convolution and its norm": lambda: nn.Sequential(
        Conv2dNormActivation(16, 24, activation_layer=None), SqueezeExcitation(24, 6)
    ),
}


class Names(TorchDispatchMode):
    """The names of this library's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "attnkernels":
            self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A block whose every number counts."""
    torch.manual_seed(0)
    block = BLOCKS[name]().eval().to(dtype)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return block


def run(block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """A block's result in inference, and the operators that ran; its input is as it was."""
    kept = x.clone()
    with torch.no_grad(), Names() as names:
        y = block(x)
    assert torch.equal(x, kept)
    return y, names.seen


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 16, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_one_operator(name, layout, x):
    block, x = made(name).to(memory_format=layout), x.contiguous(memory_format=layout)
    expected = copy.deepcopy(block)(x)
    report = attnkernels.patch(block)
    assert not report.skipped
    assert len(report.replaced) == 2
    for _ in range(3):
        y, seen = run(block, x)
        assert seen == [BLOCK]
        # torch's Hardswish and Hardsigmoid have 1/6 rounded to float32 in float64
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
    attnkernels.unpatch(block)
    assert torch.equal(block(x), expected)
    assert not any(_look._NAME in module.__dict__ for module in block.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_every_dtype(name, dtype, x):
    block = made(name, dtype)
    exact = copy.deepcopy(block).double()(x.to(dtype).double())
    stock = (block(x.to(dtype)).double() - exact).abs().max()
    attnkernels.patch(block)
    y, seen = run(block, x.to(dtype))
    assert seen == [BLOCK]
    assert y.dtype is dtype
    error = (y.double() - exact).abs().max()
    assert error <= 1.5 * stock + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("name", BLOCKS)
def test_training_and_recorded_calls_run_the_blocks_own_forward(name, x):
    block = made(name)
    attnkernels.patch(block)
    run(block, x)
    with Names() as names:
        block(x)
    assert names.seen == [MODULE]
    block.train()
    assert run(block, x)[1] == [MODULE]
    block.eval()
    assert run(block, x)[1] == [BLOCK]


def _hook(module: nn.Module) -> list:
    """A forward hook that keeps what it sees, and a copy of it."""
    seen: list = []
    module.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    return seen


@pytest.mark.parametrize("name", BLOCKS)
def test_hooks_run_wherever_they_are_and_keep_what_they_saw(name, x):
    """Before the first call and after it, on each module but the last activation, which is in place, and its like."""
    paths = [path for path, module in made(name).named_modules() if not getattr(module, "inplace", False)]
    for path in paths:
        for calls_before in (0, 2):
            block = made(name)
            expected = copy.deepcopy(block)
            expected_seen = _hook(expected.get_submodule(path))
            result = run(expected, x)[0]
            attnkernels.patch(block)
            for _ in range(calls_before):
                run(block, x)
            seen = _hook(block.get_submodule(path))
            torch.testing.assert_close(run(block, x)[0], result, rtol=1e-6, atol=1e-7)
            assert len(seen) == len(expected_seen), path
            # in-place activations change in the stock block what a hook on their input keeps
            for (kept, copied), (stock_kept, stock_copied) in zip(seen, expected_seen, strict=True):
                if torch.equal(stock_kept, stock_copied):
                    assert torch.equal(kept, copied), path


def _forward_of_its_own(module: nn.Module) -> None:
    module.forward = module.forward


def _replaced_hooks(module: nn.Module) -> None:
    """As utilities do that remove all hooks."""
    module._forward_hooks = OrderedDict()
    _hook(module)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


# What is done to a block of InvertedResidual's class, between calls; the operators that may still run.
CHANGES = {
    "pre-hook on the convolution": (lambda b: b.conv_dw.register_forward_pre_hook(lambda *_: None), [MODULE]),
    "hook on the convolution": (lambda b: _hook(b.conv_dw), [MODULE]),
    "hook on the norm": (lambda b: _hook(b.bn2), [MODULE]),
    "hook on the norm's activation": (lambda b: _hook(b.bn2.act), [MODULE]),
    "hook in a new dictionary": (lambda b: _replaced_hooks(b.bn2), [MODULE]),
    "hook on the excitation": (lambda b: _hook(b.se), [MODULE]),
    "hook on a layer": (lambda b: _hook(b.se.conv_reduce), []),
    "hook in a new dictionary of a layer": (lambda b: _replaced_hooks(b.se.conv_reduce), []),
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


@pytest.mark.parametrize("calls_before", [0, 1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change, calls_before, x):
    block = made("inverted residual")
    attnkernels.patch(block)
    for _ in range(calls_before):
        run(block, x)
    apply, operators = CHANGES[change]
    with torch.no_grad():
        apply(block)
    stock = attnkernels.unpatch(copy.deepcopy(block))
    for _ in range(2):
        expected = run(stock, x)[0]
        y, seen = run(block, x)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
        assert seen == operators


@pytest.mark.parametrize("change", ["gate", "hook", "maxpool", "weight", "bias"])
def test_changes_of_a_module_alone_are_noticed(change, x):
    module = timm.layers.SEModule(16, rd_channels=4).double()
    attnkernels.patch(module)
    run(module, x)
    assert _look._NAME in module.__dict__
    assert run(module, x)[1] == [MODULE]
    if change == "gate":
        module.gate = nn.Hardsigmoid()
    elif change == "hook":
        seen = _hook(module.fc2)
    elif change == "maxpool":
        module.add_maxpool = True
    else:
        value = getattr(module.fc1, change).detach() + 1
        delattr(module.fc1, change)
        setattr(module.fc1, change, value)  # no parameter any more
    y, operators = run(module, x)
    assert change != "hook" or len(seen) == 1
    torch.testing.assert_close(y, attnkernels.unpatch(module)(x), rtol=1e-6, atol=1e-7)
    assert operators == ([] if change in ("hook", "maxpool") else [MODULE])


def test_the_state_of_the_process_is_noticed(x):
    block = made("inverted residual")
    stock = copy.deepcopy(block)
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
            forward_ad.unpack_dual(block(dual)).tangent, forward_ad.unpack_dual(stock(dual)).tangent
        )
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(block)(x[:, None]), torch.func.vmap(stock)(x[:, None]))
        traced = torch.jit.trace(block, x)
        assert "attnkernels" not in str(traced.inlined_graph)
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    run(block, x)
    handle.remove()
    assert block.se.gate in seen
    assert run(block, x)[1] == [BLOCK]
    with torch.inference_mode():
        torch.testing.assert_close(block(x), stock(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_captured_blocks_have_none_of_it(name, x):
    stock = made(name)
    block = copy.deepcopy(stock)
    attnkernels.patch(block)
    expected = run(block, x)[0]
    graphs = []

    def kept(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend=kept, fullgraph=True)(x), expected)
        torch._dynamo.reset()
        # a copy, in which scripting puts what is not patched into the block
        torch.testing.assert_close(torch.jit.script(copy.deepcopy(block))(x), expected)
        graphs += [str(torch.export.export(block, (x,)).graph), str(torch.jit.trace(block, x).inlined_graph)]
        # stochastic depth and same padding branch on values, which cannot be traced
        if name not in ("torchvision MBConv", "inverted residual, same padding"):
            traced, stock_traced = (torch.fx.symbolic_trace(module).graph for module in (block, stock))
            assert [(n.op, n.target) for n in traced.nodes] == [(n.op, n.target) for n in stock_traced.nodes]
    assert not any("attnkernels" in graph for graph in graphs)
    assert run(block, x)[1] == [BLOCK]


def test_sequences_that_do_not_qualify_are_not_reported():
    for model in (
        nn.Sequential(SqueezeExcitation(8, 2)),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.LayerNorm(4), SqueezeExcitation(8, 2)),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU6(), SqueezeExcitation(8, 2)),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm2d(8), SqueezeExcitation(8, 2)),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False), SqueezeExcitation(8, 2)),
    ):
        report = attnkernels.patch(model)
        assert [record.original for record in report.replaced] == ["torchvision.ops.misc.SqueezeExcitation"]
        assert not report.skipped


def test_copies_and_pickles_look_for_themselves(x):
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


def test_inference_tensors(x):
    block = made("inverted residual")
    expected = run(block, x)[0]
    attnkernels.patch(block)
    with torch.inference_mode():
        made_there = x + 0
        torch.testing.assert_close(block(made_there), expected)
    torch.testing.assert_close(run(block, made_there)[0], expected)


def test_an_excitation_unpatched_or_excluded_is_not_passed_by(x):
    block = made("regnet")
    attnkernels.patch(block)
    run(block, x)
    attnkernels.unpatch(block.se)
    assert run(block, x)[1] == []
    block = made("regnet")
    assert not attnkernels.patch(block, exclude=timm.layers.SEModule).replaced
    attnkernels.patch(block, include="se")
    assert run(block, x)[1] == [MODULE]


def test_another_backend_is_taken_at_once(x):
    block = made("torchvision MBConv")
    for backend, operators in (("cpu", [BLOCK]), ("reference", []), ("auto", [BLOCK])):
        attnkernels.patch(block, backend=backend)
        assert run(block, x)[1] == operators
        assert run(block, x)[1] == operators


@pytest.mark.parametrize("what", ["x", "weight", "meta weight", "meta bias", "norm"])
def test_bad_input_is_named_after_a_look(what, x):
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


def test_plain_modules_take_no_look_where_none_serves(x):
    module = SqueezeExcitation(16, 4).double()
    attnkernels.patch(module)
    module(x)
    assert _look._NAME not in module.__dict__
    with torch.no_grad():
        torch.testing.assert_close(module(x[0]), attnkernels.unpatch(copy.deepcopy(module))(x[0]))  # [C, H, W]
    assert _look._NAME not in module.__dict__
    run(module, x)
    assert _look._NAME in module.__dict__
    with torch.no_grad():
        torch.testing.assert_close(module(x[0]), attnkernels.unpatch(copy.deepcopy(module))(x[0]))


def test_whole_models(x):
    image = torch.randn(2, 3, 64, 64)
    for make, blocks in ((torchvision.models.mobilenet_v3_small, 9), (torchvision.models.efficientnet_b0, 16)):
        torch.manual_seed(0)
        model = make(num_classes=10).eval()
        expected = run(model, image)[0]
        attnkernels.patch(model)
        for _ in range(2):
            y, seen = run(model, image)
            assert seen == [BLOCK] * blocks
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
