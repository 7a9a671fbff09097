"""Patched models against the same models unpatched: outputs, gradients, buffers, state_dict."""

from __future__ import annotations

import copy

import pytest
import torch

import attnkernels

from .conftest import MODELS, exact, randomized


def _run(model, x):
    """Output, gradients and buffers of one training step."""
    torch.manual_seed(0)  # dropout and stochastic depth draw the same numbers
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    results = {"output": y.detach(), "grad x": x.grad}
    results |= {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    results |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    return results


@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_gradients_and_state(name, x, calls):
    make, attentions, blocks = MODELS[name]
    torch.manual_seed(0)
    unpatched = randomized(make().double()).train()
    model = copy.deepcopy(unpatched)
    report = attnkernels.patch(model)

    assert sum(r.fuses == "the module" for r in report.replaced) == attentions
    assert sum(r.fuses != "the module" for r in report.replaced) == blocks
    assert not report.skipped
    assert list(model.state_dict()) == list(unpatched.state_dict())
    expected, got = _run(exact(unpatched), x), _run(model, x)
    assert len(calls) == attentions, "each attention module runs as one call of the op"
    residual_blocks = blocks if name.startswith(("resnet", "senet")) else 0
    assert sum(call.get("residual") is not None for call in calls) == residual_blocks
    assert got.keys() == expected.keys()
    for what, value in expected.items():
        scale = max(value.abs().max().item(), 1.0 if what.startswith("grad") else 0.0)
        assert torch.allclose(got[what].double(), value.double(), rtol=1e-8, atol=1e-9 * scale), what


@pytest.mark.parametrize("name", ["resnet bottleneck", "timm efficientnet_b0", "torchvision mobilenet_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_inference(name, dtype, x):
    torch.manual_seed(0)
    model = randomized(MODELS[name][0]()).eval().to(dtype=dtype, memory_format=torch.channels_last)
    x = x.to(dtype=dtype, memory_format=torch.channels_last)
    features = {}
    for key in ("unpatched", "patched"):
        with torch.inference_mode():
            features[key] = model(x).double()
        attnkernels.patch(model)
    error = (features["patched"] - features["unpatched"]).abs().max() / features["unpatched"].abs().max()
    # bfloat16: the original model rounds after each of its steps, the fused op once
    assert error <= {torch.float32: 2e-5, torch.bfloat16: 5e-2}[dtype]


def test_autocast(model, x):
    model, x = model.float(), x.float()
    expected = model(x)
    attnkernels.patch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert (y.float() - expected).abs().max() <= 5e-2 * expected.abs().max()
    assert all(parameter.grad is not None for parameter in model.parameters())
