"""The benchmarks measure what they say, and refuse what proves nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import attnkernels
from benchmarks import compare, demo, environment, folding, memory, models, plot, readme, report, timing
from benchmarks.__main__ import parser
from benchmarks.cases import Work, all_cases, parse_shape
from benchmarks.micro import Column, red_columns
from benchmarks.micro import run as run_micro
from tools import gpu

ROOT = Path(__file__).resolve().parent.parent


def micro(file: Path, *options: str) -> dict:
    common = ["--op", "squeeze_excite", "--variant", "plain", "--rounds", "3", "--columns", "eager,eager_channels_last"]
    assert run_micro(parser().parse_args(["micro", *common, "--json", str(file), *options])) == 0
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("benchmarks") / "sweep.json"
    shapes = "1x16x32x32x4,1x16x64x64x4,1x16x128x128x4"
    micro(file, "--shapes", shapes, "--layout", "nchw", "--direction", "forward")
    return file


def test_micro_writes_every_figure(tmp_path, capsys):
    document = micro(tmp_path / "micro.json", "--shapes", "2x8x6x6x4")
    assert [(row["layout"], row["direction"]) for row in document["rows"]] == [
        (layout, direction) for layout in ("nchw", "channels_last") for direction in ("forward", "training")
    ]
    for row in document["rows"]:
        assert all(len(times) == 3 and min(times) > 0 for times in row["seconds"].values())
        assert max(row["errors"].values()) < 1e-5
        assert row["floor"] > 0
        assert row["peak_bytes"]["eager"] >= 2 * 8 * 6 * 6 * 4 * (2 if row["direction"] == "training" else 1)
    place = document["environment"]
    assert place["versions"]["torch"] == torch.__version__
    assert {"commit", "device", "threads", "date", "attnkernels"} <= set(place)
    assert "2x8x6x6x4" in capsys.readouterr().out


ALTERNATIVES = [
    (case, name, shape)
    for case, shape in (
        (all_cases()["criss_cross_attention"], (2, 5, 4, 3, 6)),
        (all_cases()["selective_kernel"], (3, 2, 4, 5, 3)),
    )
    for name in case.alternatives
]


@pytest.mark.parametrize(("case", "name", "shape"), ALTERNATIVES, ids=[f"{c.op}-{name}" for c, name, _ in ALTERNATIVES])
def test_alternatives_compute_the_same(case, name, shape):
    torch.manual_seed(0)
    args, kwargs = case.make(lambda *sizes: torch.randn(sizes, dtype=torch.float64), shape, case.variants[0])
    expected = getattr(attnkernels.reference, case.op)(*args, **kwargs)
    for function in (case.eager, case.alternatives[name]):
        torch.testing.assert_close(function(*args, **kwargs), expected, rtol=1e-12, atol=1e-12)


def test_ours_is_a_fused_backend_or_an_error(tmp_path):
    """Where nothing was built, the reference must not be timed as if it were ours."""
    file = tmp_path / "ours.json"
    arguments = parser().parse_args(
        ["micro", "--op", "squeeze_excite", "--variant", "plain", "--shapes", "2x8x6x6x4", "--layout", "nchw",
         "--direction", "forward", "--rounds", "3", "--columns", "eager,ours", "--json", str(file)]
    )  # fmt: skip
    built = "cpu" in attnkernels.available_backends()
    assert run_micro(arguments) == (0 if built else 1)
    document = report.load(file)
    if built:
        assert document["rows"][0]["backend"] == "cpu"
        assert document["rows"][0]["ratios"]["eager"]["median"] > 0
    else:
        assert "no fused backend" in document["failed"][0]


def test_a_wrong_result_is_red_and_not_timed(tmp_path, monkeypatch):
    case = all_cases()["squeeze_excite"]
    wrong = {"squeeze_excite": type(case)(**{**vars(case), "eager": lambda x, *weights, **options: x * 0.5 + 0 * sum(
        weight.sum() for weight in weights)})}  # fmt: skip
    monkeypatch.setattr("benchmarks.micro.all_cases", lambda: wrong)
    monkeypatch.setattr(
        "benchmarks.micro.red_columns", lambda errors, dtype: red_columns({"ours": errors["eager"]}, dtype)
    )
    file = tmp_path / "red.json"
    options = [
        "--shapes",
        "2x8x6x6x4",
        "--rounds",
        "3",
        "--columns",
        "eager",
        "--variant",
        "plain",
        "--json",
        str(file),
    ]
    assert run_micro(parser().parse_args(["micro", *options])) == 1
    rows = report.load(file)["rows"]
    assert rows
    assert all("red" in row and "seconds" not in row for row in rows)


def test_red_columns_compares_with_the_noise_of_eager():
    measured = {"eager": [1e-7, 1e-4], "close": [1e-7, 1.9e-4], "far": [1e-7, 3e-4], "nan": [float("nan"), 0.0]}
    assert set(red_columns(measured, torch.float32)) == {"far", "nan"}


def test_every_case_file_is_consistent():
    """Each default shape has the axes it names, and each variant runs and counts its work."""
    for op, case in all_cases().items():
        assert callable(getattr(attnkernels, op))
        assert all(len(parse_shape(text)) == len(case.axes.split("x")) for of in case.shapes.values() for text in of)
        for variant in case.variants:
            shape = tuple(5 for _ in case.axes.split("x"))
            args, kwargs = case.make(torch.randn, shape, variant)
            expected = getattr(attnkernels.reference, op)(*args, **kwargs)
            torch.testing.assert_close(case.eager(*args, **kwargs), expected)
            work = case.work(shape, variant, 4)
            assert work.forward_bytes >= expected.nbytes
            assert work.backward_bytes > 0


def test_work_adds_up():
    work = Work(10, 20, 3, 4)
    assert (work.of("forward"), work.of("backward"), work.of("training")) == ((10, 3), (20, 4), (30, 7))


def test_interleaving_visits_every_column_once_a_round():
    seen: list[str] = []
    samplers = {name: lambda name=name: seen.append(name) or 1.0 for name in "abc"}
    times = timing.interleave(samplers, 3)
    assert seen == list("abcbcacab")
    assert times == {name: [1.0] * 3 for name in "abc"}
    assert timing.ratio([2.0, 4.0, 6.0], [1.0, 1.0, 1.0]) == {"median": 4.0, "low": 2.0, "high": 6.0}


@pytest.mark.parametrize(("rounds", "rank"), [(1, 1), (5, 1), (8, 1), (9, 2), (20, 6), (40, 14), (100, 40)])
def test_the_interval_of_a_median_is_that_of_the_tables(rounds, rank):
    """The ranks are those of the tables of the sign test at 5 %, two-sided."""
    ratio = timing.ratio([float(i) for i in range(rounds, 0, -1)], [1.0] * rounds)
    assert (ratio["low"], ratio["high"]) == (rank, rounds + 1 - rank)


def test_memory_sees_what_is_held_and_what_is_freed():
    def call() -> torch.Tensor:
        temporary = torch.ones(3 << 18)  # 3 MiB
        return temporary[: 1 << 18] * 2.0  # 1 MiB

    held, peak = memory.held_and_peak(call, torch.device("cpu"))
    assert held == pytest.approx(1 << 20, abs=4096)  # a scalar operand is a tensor too
    assert peak == pytest.approx(4 << 20, abs=4096)


def test_compare_and_plot(sweep, tmp_path, capsys):
    assert compare.run(parser().parse_args(["compare", str(sweep), str(sweep)])) == 0
    assert "1.00" in capsys.readouterr().out
    picture = tmp_path / "speedups.png"
    assert plot.run(parser().parse_args(["plot", str(sweep), "--out", str(picture)])) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_growth_finds_the_exponent(sweep, tmp_path):
    document = report.load(sweep)
    for row in document["rows"]:
        pixels = int(row["shape"].split("x")[2]) ** 2
        row["median"] = {"linear": 1e-9 * pixels, "quadratic": 1e-12 * pixels**2}
    (found,) = plot.growth(document).values()
    assert found["exponents"] == pytest.approx({"linear": 1.0, "quadratic": 2.0})
    picture = tmp_path / "growth.png"
    plot.draw_growth(document, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_model_rows_and_the_demo_picture(tmp_path, capsys):
    model = models.calibrate(models.load_model("mobilenet_v3_small"), torch.randn(2, 3, 64, 64))
    configuration = models.Configuration(
        "mobilenet_v3_small", 1, "nchw", torch.float32, "training", torch.device("cpu")
    )
    row = models.Measurement(configuration, model, ("eager", "patched")).row(timing.CpuTimer(), 2)
    assert row["replaced"] == 18  # nine excitations, nine blocks around them
    assert row["from_float64"]["patched"] < 1e-4
    assert row["peak_bytes"]["eager"] > 1 << 20
    document = {"kind": "demo", "environment": {"device": "d", "versions": {"torch": "t"}, "threads": 1},
                "rows": [row], "failed": []}  # fmt: skip
    plot.draw_demo(document, tmp_path / "demo.png")
    report.print_models(document)
    assert "mobilenet_v3_small b1" in capsys.readouterr().out


def test_folded_columns(monkeypatch):
    model = models.calibrate(models.load_model("mobilenet_v3_small"), torch.randn(2, 3, 64, 64))
    for direction, columns in (
        ("forward", ["eager", "folded", "folded_patched"]),
        ("training", ["eager"]),
    ):
        configuration = models.Configuration(
            "mobilenet_v3_small", 1, "nchw", torch.float32, direction, torch.device("cpu")
        )
        measurement = models.Measurement(configuration, model, ("eager", "folded", "folded_patched"))
        row = measurement.row(timing.CpuTimer(), 2)
        assert list(row["median"]) == columns
        assert ("folded / folded_patched" in row["ratios"]) == (direction == "forward")
        assert max(row["from_float64"].values()) < 1e-4
    assert not any(
        isinstance(module, nn.BatchNorm2d) for module in folding.folded(model, torch.randn(1, 3, 64, 64)).modules()
    )


def test_only_norms_that_follow_a_convolution_are_folded():
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4),
        shared, nn.BatchNorm2d(4), shared, timm.layers.BatchNormAct2d(4), nn.Conv2d(4, 4, 1),
        timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU),
    )  # fmt: skip
    x = torch.randn(2, 4, 6, 5)
    model.train()(x)
    found = folding.folded(model, x)
    assert [type(module).__name__ for module in found] == [
        "BatchNorm2d", "Conv2d", "Identity", "ReLU", "BatchNorm2d", "Conv2d", "BatchNorm2d", "Conv2d", "BatchNormAct2d",
        "Conv2d", "SiLU",
    ]  # fmt: skip
    torch.testing.assert_close(found(x), model.eval()(x))


def test_demo_covers_what_it_promises():
    plain, full = demo.configurations(compiled=False), demo.configurations(compiled=True)
    assert len(plain) == 4 * 2 * 2
    assert [(name, batch, layout) for name, batch, layout, columns in full if "compile_patched" in columns] == [
        ("mobilenet_v3_large", 1, "channels_last"), ("seresnet50", 1, "channels_last")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ("ran 3 of 3 cases\n========= ERROR SUMMARY: 0 errors\n", ""),
        ("ran 3 of 3 cases\n========= ERROR SUMMARY: 2 errors\n", "2 errors"),
        ("ran 3 of 3 cases\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", ""),
        ("ran 3 of 3 cases\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", "1 hazards"),
        ("ran 0 of 3 cases\n========= ERROR SUMMARY: 0 errors\n", "no case"),
        ("Segmentation fault\n", "no summary"),
    ],
)
def test_sanitizer_logs_are_read(log, problem):
    found = gpu.read_sanitizer(log)[1]
    assert problem in found if problem else found == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
def test_gpu_stages_fail_one_by_one(tmp_path):
    """Without a GPU each stage fails by itself, all are tried, and the figures are still written."""
    command = [sys.executable, "-m", "tools.gpu", "--stages", "sanitizer,graphs", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert set(stages) == {*gpu.SANITIZERS, "graphs"}
    assert all(stage["problem"] for stage in stages.values())


def test_channels_last_inputs_stay_so():
    column = Column(lambda x: x * 2, (torch.randn(1, 2, 3, 3, requires_grad=True),), {}, torch.ones(1, 2, 3, 3))
    assert torch.equal(column.training()[0], torch.full((1, 2, 3, 3), 2.0))
    assert not column.forward().requires_grad


def test_the_commit_of_a_copy_without_a_history(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    for told, expected in (
        ("", {"commit": None, "modified_files": None}),
        ("0123abc", {"commit": "0123abc", "modified_files": 0}),
        ("0123abc+4", {"commit": "0123abc", "modified_files": 4}),
    ):
        monkeypatch.setenv("ATTNKERNELS_COMMIT", told)
        assert environment._commit() == expected


def test_the_readme_holds_the_figures_of_result_files_from_clean_commits():
    text = (ROOT / "README.md").read_text()
    assert readme.write(text) == text
    for path in readme.RESULTS.glob("*.json"):
        place = report.load(path)["environment"]
        assert re.fullmatch("[0-9a-f]{40}", place["commit"]), path.name
        assert place["modified_files"] == 0, path.name
    for file, _ in readme.SECTIONS.values():
        line = next(line for line in text.splitlines() if f"[{file}]" in line)
        assert report.load(readme.RESULTS / file)["environment"]["commit"][:10] in line
