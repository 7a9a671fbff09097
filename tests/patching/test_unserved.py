"""Where nothing but the formula could serve a module, it runs its own forward: patch slows nothing down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.layers.squeeze_excite import SEModule
from torch import nn

import attnkernels
from attnkernels import backends
from attnkernels.patching import _patch, selective_kernel
from attnkernels.patching._dispatch import is_flagged

from .conftest import MISSING, tiny_seresnet

PACKAGE = Path(attnkernels.__file__).parent

MODELS = {
    "resnet": tiny_seresnet,
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "selective kernel": lambda: timm.create_model("skresnet18", num_classes=10, layers=(1, 1, 1, 1)),
    "split attention": lambda: timm.create_model("resnest14d", num_classes=10),
}

PROGRAM = """
import copy, timm, torch, torchvision
import attnkernels
from attnkernels import backends

assert attnkernels.available_backends() == ("reference",)
torch.manual_seed(0)
models = [timm.create_model("seresnet18"), timm.create_model("skresnet18"), torchvision.models.mobilenet_v3_small()]
x = torch.randn(2, 3, 64, 64)
for model in models:
    forwards = {type(module): type(module).forward for module in model.modules()}
    model.eval()
    with torch.no_grad():
        expected = model(x)
        report = attnkernels.patch(model)
        with torch.autograd.profiler.profile(use_kineto=False) as profile:
            assert torch.equal(model(x), expected)
    assert not [event.name for event in profile.function_events if event.name.startswith("attnkernels::")]
    assert all(cls.forward is forward for cls, forward in forwards.items())
    assert not any("_attnkernels" in module.__dict__ for module in model.modules())
    assert not report.replaced
    attention = [module for module in model.modules() if type(module).__name__ in (
        "SEModule", "SqueezeExcitation", "SelectiveKernel")]
    assert len(report.skipped) == len(attention) > 0
    for text in ("this copy of the package was not built", "python -m attnkernels.info"):
        assert all(text in record.reason for record in report.skipped), report.skipped
        assert text in " ".join(str(report).split())

    for ask in (dict(backend="reference"), {}):
        if ask:
            report = attnkernels.patch(model, **ask)
        else:
            with attnkernels.use_backend("reference"):
                report = attnkernels.patch(model)
        assert {record.backend for record in report.replaced} == {"reference"}
        assert not report.skipped
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        attnkernels.unpatch(model)
print("done")
"""

ENVIRONMENT = """
import attnkernels, timm
report = attnkernels.patch(timm.create_model("seresnet18"))
assert {record.backend for record in report.replaced} == {"reference"} and not report.skipped
print("done")
"""


@pytest.fixture(scope="module")
def installed_without_libraries(tmp_path_factory) -> Path:
    """A folder with the package as it is where there was no compiler."""
    folder = tmp_path_factory.mktemp("without")
    ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(PACKAGE, folder / "attnkernels", ignore=ignore)
    return folder


@pytest.mark.parametrize(("program", "forced"), [(PROGRAM, ""), (ENVIRONMENT, "reference")])
def test_installed_without_libraries(installed_without_libraries, program, forced):
    environment = {
        "PYTHONPATH": str(installed_without_libraries), "CUDA_VISIBLE_DEVICES": "", "ATTNKERNELS_BACKEND": forced,
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=installed_without_libraries, env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@pytest.fixture
def branch_calls(monkeypatch) -> list[dict]:
    """The keyword arguments of each call of selective_kernel that a patched module makes."""
    made: list[dict] = []
    op = selective_kernel.selective_kernel

    def recorded(*args, **kwargs):
        made.append(kwargs)
        return op(*args, **kwargs)

    monkeypatch.setattr(selective_kernel, "selective_kernel", recorded)
    return made


def prepared(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return MODELS[name]().eval(), torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("name", MODELS)
def test_left_alone_without_libraries(no_libraries, name):
    model, _ = prepared(name)
    for candidate in (model, model.to("meta")):
        report = attnkernels.patch(candidate)
        assert not report.replaced
        assert {record.reason for record in report.skipped} == {
            f"{MISSING}; `python -m attnkernels.info` tells how to get it"
        }
        assert not any(map(is_flagged, candidate.modules()))


def test_what_is_missing_for_a_gpu_is_said_too(no_libraries, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "triton_missing", lambda: "triton is not installed")
    (skipped,) = attnkernels.patch(SEModule(16)).skipped
    for text in (MISSING, "_C_cuda.so was not built", "triton is not installed"):
        assert text in skipped.reason


def test_other_reasons_come_first(no_libraries):
    model = nn.Sequential(SEModule(16), SEModule(16), SEModule(16, add_maxpool=True))
    reasons = [record.reason for record in attnkernels.patch(model, exclude="0").skipped]
    assert reasons[0] == "excluded by '0'"
    assert reasons[1].startswith(MISSING)
    assert reasons[2].startswith("add_maxpool")


@pytest.mark.parametrize("name", MODELS)
def test_the_own_forward_runs_until_the_model_is_moved(elsewhere, name, calls, branch_calls):
    model, x = prepared(name)
    for training in (False, True):
        with torch.set_grad_enabled(training):
            expected = model(x)
            report = attnkernels.patch(model)
            assert report.replaced
            assert not report.skipped
            assert report.hints == (
                "no backend takes tensors on cpu here; modules take that of the device they are moved to",
            )
            assert torch.equal(model(x), expected)
            assert not calls
            assert not branch_calls
            with attnkernels.use_backend("reference"):
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
            assert calls or branch_calls
            calls.clear(), branch_calls.clear()
            assert attnkernels.patch(model, backend="reference").hints == ()
            model(x)
            assert calls or branch_calls
            calls.clear(), branch_calls.clear()
            attnkernels.unpatch(model)


def test_a_library_that_is_there_serves(calls):
    if "cpu" not in attnkernels.available_backends():
        pytest.skip("the CPU library was not built")
    model, x = prepared("resnet")
    with attnkernels.use_backend("auto"):
        report = attnkernels.patch(model)
        assert report.hints == ()
        assert {record.backend for record in report.replaced} == {"cpu"}
        model(x)
        assert len(calls) == 5
        meta = attnkernels.patch(model.to("meta"))
    assert {record.backend for record in meta.replaced} == {"reference"}
    assert meta.hints == ("no backend takes tensors on meta here; modules take that of the device they are moved to",)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda:0", "old libraries; no triton; `python -m attnkernels.info` tells how to get it"),
        ("mps", "no backend takes tensors on mps"),
        ("xpu:0", "no backend takes tensors on xpu"),
    ],
)
def test_devices_that_nothing_serves(monkeypatch, device, reason):
    monkeypatch.setattr(_patch, "device_of", lambda module: torch.device(device))
    monkeypatch.setattr(backends, "cuda_missing", lambda index: "old libraries")
    monkeypatch.setattr(backends, "triton_missing", lambda: "no triton")
    with attnkernels.use_backend("auto"):
        report = attnkernels.patch(SEModule(16))
    assert not report.replaced
    assert [record.reason for record in report.skipped] == [reason]


def test_a_module_patched_before_keeps_its_forward(no_libraries, calls):
    module, x = SEModule(16), torch.randn(2, 16, 5, 5)
    expected = module(x)
    attnkernels.patch(module, backend="reference")
    report = attnkernels.patch(module)
    assert report.skipped[0].reason.endswith("(it stays as an earlier patch left it)")
    torch.testing.assert_close(module(x), expected)
    assert [call["backend"] for call in calls] == ["reference"]
