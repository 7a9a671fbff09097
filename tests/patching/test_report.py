"""The report of patch: what it says in print, what it hints at, and what it answers who takes it for the model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.layers.squeeze_excite import SEModule
from timm.models.resnet import BasicBlock
from torch import nn

import attnkernels
from attnkernels.patching import Replaced, Report, Skipped

from .conftest import MODELS, tiny_seresnet

DOCS = Path(__file__).resolve().parents[2] / "docs" / "patching.md"
SE = "timm.layers.squeeze_excite.SEModule"
NARROWEST = 100

REAL = {
    **{
        name: lambda name=name: timm.create_model(name)
        for name in (
            "seresnet50",
            "skresnet18",
            "resnest50d",
            "mobilenetv3_large_100",
            "efficientnet_b0",
            "regnety_032",
        )
    },
    **{
        f"torchvision {name}": lambda name=name: torchvision.models.get_model(name)
        for name in ("mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf")
    },
}


def listed(text: str) -> list[str]:
    """The module names that a group of the report lists, written out."""
    names = []
    for pattern in re.split(r", (?![^{]*\})", text):
        parts = re.split(r"\{(.*?)\}", pattern)
        parts[1::2] = map(numbers, parts[1::2])
        parts[::2] = [[part] for part in parts[::2]]
        names += map("".join, itertools.product(*parts))
    return names


def numbers(braced: str) -> list[str]:
    """ "0-2,5" written out."""
    found = []
    for run in braced.split(","):
        first, _, last = run.partition("-")
        found += map(str, range(int(first), int(last or first) + 1))
    return found


def groups(report: Report) -> dict[str, list[str]]:
    """The groups of modules in print: the heading of each, and the names listed below it."""
    found = {}
    for section in str(report).split("\n\n"):
        if re.match(r"\d+ x ", section):
            lines = section.splitlines()
            names = [line.strip() for line in lines if re.match(r" {4}\S", line)]
            heading = [line.strip() for line in lines if not re.match(r" {4}\S", line)]
            found[" ".join(heading)] = listed(" ".join(names))
    return found


def named(*names: str, original: str = SE) -> Report:
    """The report of modules with these names."""
    return Report(tuple(Replaced(name, original, "squeeze_excite", "cpu") for name in names), (), ())


@pytest.mark.parametrize("name", REAL)
def test_real_models_in_print(name):
    model = REAL[name]()
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(model, dry_run=True)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= NARROWEST
    assert len(lines) <= 25
    # the blocks are parents of the others
    blocks = {r.name for r in report.replaced if any(o.name.startswith(f"{r.name}.") for o in report.replaced)}
    gates = [r for r in report.replaced if r.name not in blocks]
    around = f", and {len(blocks)} blocks around them" if blocks else ""
    assert lines[0] == f"{len(gates)} attention modules would be replaced{around}; 0 left alone"
    assert ("A block is served together with the attention module in it" in str(report)) is bool(blocks)
    shown = [name for names in groups(report).values() for name in names]
    assert sorted(shown) == sorted(record.name for record in report.replaced)


def test_groups_of_a_class():
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(timm.create_model("seresnet50"))
    by_heading = groups(report)
    assert list(by_heading) == [
        "16 x timm SEModule -> squeeze_excite, reference",
        "16 x timm Bottleneck (block) -> squeeze_excite, reference: se, residual sum, act3; in inference on a CPU the "
        "normalisation as well",
    ]
    assert "    layer1.{0-2}.se, layer2.{0-3}.se, layer3.{0-5}.se, layer4.{0-2}.se" in str(report).splitlines()
    for names, kind in zip(by_heading.values(), (SE, "timm.models.resnet.Bottleneck"), strict=True):
        assert names == [record.name for record in report.replaced if record.original == kind]


@pytest.mark.parametrize("name", ["resnet basic", "timm ese_vovnet", "torchvision regnet"])
def test_counts_are_of_attention_modules(name):
    make, gates, blocks = MODELS[name]
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(make())
    around = f", and {blocks} blocks around them" if blocks else ""
    assert str(report).splitlines()[0] == f"{gates} attention modules replaced{around}; 0 left alone"


def test_left_alone_in_print(model):
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(model, exclude=["layer[12].*", "layer4.0"])
        assert (
            str(report).splitlines()[0]
            == "2 attention modules replaced, and 1 block around them; 3 left alone, and 1 block"
        )
        assert groups(report) == {
            "2 x timm SEModule -> squeeze_excite, reference": ["layer3.0.se", "layer4.0.se"],
            "1 x timm BasicBlock (block) -> squeeze_excite, reference: se, residual sum, act2; in inference on a CPU "
            "the normalisation as well": ["layer3.0"],
            "3 x timm SEModule left alone: excluded by 'layer[12].*'": ["layer1.0.se", "layer2.0.se", "layer2.1.se"],
            "1 x timm BasicBlock (block) left alone: excluded by 'layer4.0'": ["layer4.0"],
        }
        assert "the batch normalisation" not in str(attnkernels.patch(model, include=[], dry_run=True))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a.0.se", "a.1.se", "a.2.se", "b.0.se"], "a.{0-2}.se, b.0.se"),
        (["s1.b1", "s1.b2", "s2.b1", "s2.b2"], "s{1-2}.b{1-2}"),
        (["a.0", "a.2", "a.3", "a.4", "a.9"], "a.{0,2-4,9}"),
        (["a.01", "a.02", "a.3"], "a.{01,02,3}"),
        (["", "se"], "(the model), se"),
        (["a", "b", "c", "d", "e", "f", "g", "h"], "a, b, c, d, e, f, g, h"),
        (["a", "b", "c", "d", "e", "f", "g", "h", "k.1", "k.2", "l"], "a, b, c, d, e, f, g, h, and 3 more"),
        (["a.1.x", "a.1", "a.2.x"], "a.1.x, a.1, a.2.x"),
    ],
)
def test_names_are_listed_compactly(names, shown):
    assert str(named(*names)).splitlines()[-1] == f"    {shown}"


@pytest.mark.parametrize(
    "name", ["x" * 5000, ".".join("long_name" for _ in range(900)), "9" * 6000, "with spaces " * 40, "a\nb\tc"]
)
def test_no_line_is_too_wide(name):
    strange = f"{name}.{name}"
    report = Report(
        tuple(Replaced(f"{name}{i}x", strange, name, name, name) for i in range(30)),
        tuple(Skipped(f"{name}{i}x", strange, name) for i in range(30)),
        (strange, f"*.{name}"),
        hints=(name,),
    )
    assert max(map(len, str(report).splitlines())) <= NARROWEST
    nothing = Report((), (), report.recognised, hints=report.hints)
    assert max(map(len, str(nothing).splitlines())) <= NARROWEST


def test_names_stay_whole():
    names = [f"{letter}-branch-of-the-network" for letter in "abcdefgh"]
    shown = " ".join(str(named(*names)).splitlines()[3:]).split()
    assert [name.rstrip(",") for name in shown] == names


def test_classes_of_the_running_program():
    assert "1 x __main__ Gate -> " in str(named("gate", original="__main__.make.<locals>.Gate"))


def test_classes_that_are_known_in_print():
    lines = str(attnkernels.patch(nn.Sequential(nn.ReLU()))).splitlines()
    assert lines[1:] == [
        "    timm: CbamModule, CecaModule, ChannelAttn, EcaModule, EffectiveSEModule, SEModule,",
        "    SelectiveKernel, SpatialAttn, SplitAttn, SqueezeExcite, SqueezeExciteCl",
        "    torchvision: SqueezeExcitation",
        "    monai: ChannelSELayer",
        "    fvcore: ChannelSpatialSqueezeExcitation, SpatialSqueezeExcitation, SqueezeExcitation",
        "    ultralytics: CBAM, ChannelAttention, SpatialAttention",
        "    any package: CBAM, CC_module, ChannelSELayer, ChannelSpatialSELayer, CrissCross,",
        "    CrissCrossAttention",
        "    segmentation_models_pytorch: SCSEModule",
        "    mmcv: CrissCrossAttention",
    ]
    assert max(map(len, lines)) <= NARROWEST


def test_the_documentation_shows_what_is_printed():
    if "cpu" not in attnkernels.available_backends():
        pytest.skip("the CPU library was not built")
    examples = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(examples) == 2
    for program, printed in examples:
        with contextlib.redirect_stdout(io.StringIO()) as out, attnkernels.use_backend("auto"):
            exec(program, {})
        assert out.getvalue() == printed


# Hints


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["layer2", "layer[23]", "layer2.0", "*ayer2", ""])
def test_a_container_is_no_attention_module(model, argument, pattern):
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(model, dry_run=True, **{argument: pattern})
        (hint,) = report.hints
        assert hint.startswith(f"{argument} {pattern!r} matches containers only")
        assert f"Hint: {hint}" in str(report).splitlines()
        better = re.search(r"match '(.*)'$", hint).group(1)
        assert better == (f"{pattern}.*" if pattern else "*")
        again = attnkernels.patch(model, dry_run=True, **{argument: better})
    assert again.hints == ()
    gates = {record.name for record in again.replaced if record.original == SE}
    inside = {name for name, module in model.named_modules() if type(module) is SEModule and "layer2.0" in name}
    assert inside <= gates if argument == "include" else not inside & gates


@pytest.mark.parametrize("kind", [nn.Sequential, BasicBlock])
def test_a_class_of_containers(model, kind):
    report = attnkernels.patch(model, include=kind)
    assert not report.replaced
    assert report.hints == (
        f"include {kind.__name__} matches containers only; the attention modules in them are of class SEModule",
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include": "*"},
        {"include": "layer1.*", "exclude": "*.1.se"},
        {"include": ["layer1.0", "layer1.0.se"]},
        {"include": [nn.Sequential, SEModule]},
        {"include": "layer1.0.conv1"},
        {"exclude": ["layer2", "layer2.*"]},
        {"exclude": "fc"},
    ],
)
def test_nothing_to_hint_at(model, options):
    assert attnkernels.patch(model, **options).hints == ()


def test_scripted_modules_are_hinted_at():
    scripted = torch.jit.script(SEModule(16))
    for model in (scripted, nn.Sequential(scripted)):
        assert "which patch cannot change" in str(attnkernels.patch(model))
        assert attnkernels.unpatch(model) is model


def test_compiled_models_are_patched_by_their_own_names(model):
    compiled = torch.compile(model, backend="eager")
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(compiled, include="*layer1.*")
    assert [record.name for record in report.replaced] == ["_orig_mod.layer1.0", "_orig_mod.layer1.0.se"]


# A report that is taken for the model


def test_calling_the_report_says_what_to_do(model, x):
    report = attnkernels.patch(model)
    for call in (lambda: report(x), lambda: report(), lambda: report(x, y=1)):
        with pytest.raises(
            TypeError, match=r"changes the model in place and returns a report: .*model\(x\)`$"
        ) as raised:
            call()
        assert len(str(raised.value)) <= 300


@pytest.mark.parametrize(
    "name", ["eval", "train", "to", "cuda", "parameters", "state_dict", "forward", "training", "_modules"]
)
def test_what_models_have_the_report_has_not(name):
    report = attnkernels.patch(nn.ReLU())
    with pytest.raises(AttributeError, match="keep the model") as raised:
        getattr(report, name)
    assert len(str(raised.value)) <= 300
    assert not hasattr(report, name)


def test_other_attributes_are_missing_as_ever():
    report = attnkernels.patch(nn.ReLU())
    for name in ("replced", "fc", "__wrapped__", "__setstate__"):
        with pytest.raises(AttributeError, match=f"^'Report' object has no attribute '{name}'$"):
            getattr(report, name)


@pytest.mark.parametrize(
    "same", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), dataclasses.replace]
)
def test_the_report_is_data_as_ever(model, same):
    report = attnkernels.patch(model, include="layer1")
    other = same(report)
    assert other == report
    assert hash(other) == hash(report)
    assert str(other) == str(report)
    assert dataclasses.asdict(other)["hints"] == report.hints


def test_repr_is_short():
    with attnkernels.use_backend("reference"):
        report = attnkernels.patch(tiny_seresnet(), exclude="layer1.*")
    assert repr(report) == (
        "<attnkernels.patch report: 4 attention modules replaced, and 4 blocks around them; 1 left alone; "
        "print it for more>"
    )
