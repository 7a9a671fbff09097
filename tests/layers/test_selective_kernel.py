"""layers.SelectiveKernel and layers.SKConv: what they compute, what they load, what they refuse."""

from __future__ import annotations

import pytest
import torch
from timm.layers.selective_kernel import SelectiveKernel as TimmSelectiveKernel
from torch import nn

from attnkernels.layers import SelectiveKernel, SKConv

OPTIONS = {
    "defaults": dict(split_input=False),
    "split": dict(out_channels=24, split_input=True),
    "true kernels": dict(kernel_size=[3, 5, 7], keep_3x3=False, split_input=False),
    "four split": dict(kernel_size=[3, 3, 5, 7], split_input=True, groups=2),
    "one size": dict(kernel_size=5, split_input=False, groups=4),
    "strided": dict(stride=2, split_input=False, rd_ratio=1 / 4),
    "dilated": dict(dilation=2, split_input=False, rd_channels=5),
    "divisor": dict(out_channels=200, split_input=False, rd_divisor=4),
}


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.3)
    return module


def results(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
    return y.detach(), grads, {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_same_as_timm_with_its_weights(name, training, layout):
    torch.manual_seed(0)
    options = OPTIONS[name]
    theirs = randomized(TimmSelectiveKernel(16, **options).double()).train(training)
    ours = SelectiveKernel(16, **options).double().train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 16, 9, 8, dtype=torch.float64).contiguous(memory_format=layout)
    (y, grads, buffers), (want, want_grads, want_buffers) = results(ours, x), results(theirs, x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(grads, want_grads, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(buffers, want_buffers)


class PaperSKConv(nn.Module):
    """The paper's unit with the state_dict of pppLang's SKNet, written from its formula."""

    def __init__(self, channels, paths, groups, rd_channels, stride=1):
        super().__init__()
        self.convs = nn.ModuleList()
        for i in range(paths):
            convolution = nn.Conv2d(channels, channels, 3 + 2 * i, stride, 1 + i, groups=groups)
            self.convs.append(nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU()))
        self.fc = nn.Linear(channels, rd_channels)
        self.fcs = nn.ModuleList(nn.Linear(rd_channels, channels) for _ in range(paths))

    def forward(self, x):
        stacked = torch.stack([conv(x) for conv in self.convs], 1)
        z = self.fc(stacked.sum(1).mean((2, 3)))
        weights = torch.stack([fc(z) for fc in self.fcs], 1).softmax(1)
        return (stacked * weights[..., None, None]).sum(1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("paths", [2, 3])
def test_the_paper_s_unit(paths, stride):
    torch.manual_seed(0)
    theirs = randomized(PaperSKConv(16, paths, 4, 5, stride).double())
    ours = SKConv(16, paths, 4, 5, stride=stride).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64)
    (y, grads, _), (want, want_grads, _) = results(ours, x), results(theirs, x)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(grads, want_grads, rtol=1e-6, atol=1e-9)
    assert SKConv(64).fc.out_features == 32
    assert SKConv(1024).fc.out_features == 64


def test_one_sample_in_training_is_refused_as_upstream():
    x = torch.randn(1, 16, 8, 8)
    messages = []
    for module in (SelectiveKernel(16), TimmSelectiveKernel(16)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as error:
            module.train()(x)
        messages.append(str(error.value))
        assert module.eval()(x).shape == x.shape
    assert messages[0] == messages[1]


def test_hooks_on_every_child_run():
    module, seen = SelectiveKernel(16), []
    for name, child in module.named_modules():
        if name and name != "paths":
            child.register_forward_hook(lambda *_, name=name: seen.append(name))
    module(torch.randn(2, 16, 8, 8))
    assert sorted(seen) == sorted(name for name, _ in module.named_modules() if name and name != "paths")


@pytest.mark.parametrize("training", [True, False])
def test_compiled_and_traced(training):
    torch.manual_seed(0)
    module = randomized(SelectiveKernel(8)).train(training)
    x = torch.randn(2, 8, 7, 6)
    want = module(x)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    if not training:
        torch.testing.assert_close(torch.jit.trace(module, x, check_trace=False)(x), want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectiveKernel(8, kernel_size=[3, 4]), r"kernel_size: expected 2 to 8 odd sizes of at least 3"),
        (lambda: SelectiveKernel(8, kernel_size=[1, 3]), r"kernel_size: .*got \[1, 3\]"),
        (lambda: SelectiveKernel(8, kernel_size=[3]), r"kernel_size: .*got \[3\]"),
        (lambda: SelectiveKernel(9, split_input=True), "in_channels: expected a multiple of the 2 paths, got 9"),
        (lambda: SelectiveKernel(8, groups=3), "groups: expected a divisor of 8 and 8, got 3"),
        (lambda: SKConv(64, paths=1), "SKConv: paths: expected 2 to 8, got 1"),
        (lambda: SKConv(40), "SKConv: groups: expected a divisor of 40, got 32"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
