"""In inference on a CPU: blocks that run as one operator."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

import attnkernels
from attnkernels import _guard
from attnkernels.patching import _adapter, _fingerprints, _registry

from .blocks import BLOCK, BLOCKS, FOLDED, MODULE, hook, made, operators, run

pytestmark = pytest.mark.skipif("cpu" not in attnkernels.available_backends(), reason="the CPU library was not built")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 16, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [*BLOCKS, *FOLDED])
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
    assert not any(_guard.NAME in module.__dict__ for module in block.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*BLOCKS, *FOLDED])
def test_a_block_in_every_dtype(name, dtype, x):
    block = made(name, dtype)
    exact = copy.deepcopy(block).double()(x.to(dtype).double())
    unpatched = (block(x.to(dtype)).double() - exact).abs().max()
    attnkernels.patch(block)
    y, seen = run(block, x.to(dtype))
    assert seen == [BLOCK]
    assert y.dtype is dtype
    error = (y.double() - exact).abs().max()
    assert error <= 1.5 * unpatched + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("name", BLOCKS)
def test_training_and_recorded_calls_run_the_blocks_own_forward(name, x):
    block = made(name)
    attnkernels.patch(block)
    run(block, x)
    with operators() as seen:
        block(x)
    assert seen == [MODULE]
    block.train()
    assert run(block, x)[1] == [MODULE]
    block.eval()
    assert run(block, x)[1] == [BLOCK]


@pytest.mark.parametrize("name", [*BLOCKS, *FOLDED])
def test_hooks_run_wherever_they_are_and_keep_what_they_saw(name, x):
    """Before the first call and after it, on each module but the last activation, which is in place, and its like."""
    paths = [path for path, module in made(name).named_modules() if not getattr(module, "inplace", False)]
    for path in paths:
        for calls_before in (0, 2):
            block = made(name)
            expected = copy.deepcopy(block)
            expected_seen = hook(expected.get_submodule(path))
            result = run(expected, x)[0]
            attnkernels.patch(block)
            for _ in range(calls_before):
                run(block, x)
            seen = hook(block.get_submodule(path))
            torch.testing.assert_close(run(block, x)[0], result, rtol=1e-6, atol=1e-7)
            assert len(seen) == len(expected_seen), path
            # in-place activations change in the original block what a hook on their input keeps
            for (kept, copied), (original_kept, original_copied) in zip(seen, expected_seen, strict=True):
                if torch.equal(original_kept, original_copied):
                    assert torch.equal(kept, copied), path


@pytest.mark.parametrize("name", FOLDED)
def test_blocks_without_norms_run_the_operator_in_training_too(name, x):
    """Nothing in them depends on the mode, but for a stochastic depth, of which the block's own forward is left."""
    block = made(name)
    expected = copy.deepcopy(block)
    attnkernels.patch(block)
    for module in (expected, block):
        for part in module.modules():
            part.train(not hasattr(part, "p"))  # torchvision's stochastic depth
    drops = any(getattr(part, "drop_prob", 0) for part in block.modules())
    torch.manual_seed(1)
    want = run(expected, x)[0]
    torch.manual_seed(1)
    y, seen = run(block, x)
    assert seen == [MODULE if drops else BLOCK]
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", BLOCKS)
def test_captured_blocks_are_the_original_ones(name, x):
    unpatched = made(name)
    block = copy.deepcopy(unpatched)
    attnkernels.patch(block)
    expected = run(block, x)[0]
    targets = []

    def kept(graph, inputs):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend=kept, fullgraph=True)(x), expected)
        torch._dynamo.reset()
        scripted = torch.jit.script(block)
        torch.testing.assert_close(scripted(x), expected)
        targets += [node.target for node in torch.export.export(block, (x,)).graph.nodes]
        for graph in (scripted.inlined_graph, torch.jit.trace(block, x).inlined_graph):
            targets += [node.kind() for node in graph.nodes()]
        # stochastic depth and same padding branch on values, which cannot be traced
        if name not in ("torchvision MBConv", "inverted residual, same padding"):
            traced, original_traced = (torch.fx.symbolic_trace(module).graph for module in (block, unpatched))
            assert [(n.op, n.target) for n in traced.nodes] == [(n.op, n.target) for n in original_traced.nodes]
    assert len(targets) > 50
    assert not any("attnkernels" in str(target) for target in targets)
    assert run(block, x)[1] == [BLOCK]


@pytest.mark.parametrize(
    "sequence",
    [
        lambda: nn.Sequential(SqueezeExcitation(16, 4)),
        lambda: nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), SqueezeExcitation(8, 2)),
        lambda: nn.Sequential(Conv2dNormActivation(16, 24, activation_layer=None), SqueezeExcitation(24, 6)),
    ],
)
def test_sequences_of_ones_own_keep_the_excitation_alone(sequence, x, own_forwards):
    model, before = sequence().double().eval(), nn.Sequential.__dict__["forward"]
    expected = run(model, x)[0]
    report = attnkernels.patch(model)
    assert [record.original for record in report.replaced] == ["torchvision.ops.misc.SqueezeExcitation"]
    assert not report.skipped
    assert nn.Sequential.__dict__["forward"] is before
    for _ in range(2):
        y, seen = run(model, x)
        assert seen == [MODULE]
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)


def test_blocks_without_the_pattern_are_left_alone_with_the_reason(x):
    norm = lambda channels: nn.GroupNorm(2, channels)
    block = MBConv(MBConvConfig(4, 3, 1, 16, 16, 1), stochastic_depth_prob=0.0, norm_layer=norm).double().eval()
    report = attnkernels.patch(block)
    assert [record.original for record in report.replaced] == ["torchvision.ops.misc.SqueezeExcitation"]
    assert [record.reason for record in report.skipped] == [
        "in its block, its 2 does not follow a bare convolution, batch normalisation and activation"
    ]
    assert run(block, x)[1] == [MODULE]


@pytest.mark.parametrize(
    "norm", [nn.Identity, nn.BatchNorm2d, lambda channels: nn.Sequential(nn.Identity(), nn.Identity())]
)
def test_blocks_that_never_had_a_norm(norm, x):
    block = MBConv(MBConvConfig(4, 3, 1, 16, 16, 1), stochastic_depth_prob=0.0, norm_layer=norm).double().eval()
    expected = run(copy.deepcopy(block), x)[0]
    report = attnkernels.patch(block)
    matches = norm in (nn.Identity, nn.BatchNorm2d)
    assert len(report.skipped) == (not matches)
    y, seen = run(block, x)
    assert seen == [BLOCK if matches else MODULE]
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
    fused = [record.fuses for record in report.replaced if record.is_block]
    assert fused == [
        f"{'normalisation, ' if norm is nn.BatchNorm2d else ''}activation, excitation (inference on a CPU)"
    ] * matches  # fmt: skip


def test_no_forward_is_known_to_two_adapters():
    known = []
    for adapter in dict.fromkeys(_registry.ADAPTERS.values()):
        of_adapter = [_fingerprints.known(name, adapter.methods) for name in adapter.originals]
        assert all(of_adapter)
        known += set().union(*of_adapter)
    assert len(known) == len(set(known))
    assert set(map(type, _registry.ADAPTERS.values())) == {_adapter.Adapter}


def test_a_class_has_one_adapter():
    name, adapter = next(iter(_registry.ADAPTERS.items()))
    before = dict(_registry.ADAPTERS)
    with pytest.raises(ValueError, match=f"no other adapter recognises, got .*{name}"):
        _registry.register(dataclasses.replace(adapter, originals=("some.New", name)))
    assert before == _registry.ADAPTERS


def test_inference_tensors(x):
    block = made("inverted residual")
    expected = run(block, x)[0]
    attnkernels.patch(block)
    with torch.inference_mode():
        made_there = x + 0
        torch.testing.assert_close(block(made_there), expected)
    torch.testing.assert_close(run(block, made_there)[0], expected)


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
