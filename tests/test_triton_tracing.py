"""torch.compile, export and make_fx see the Triton backends as their operators, traced here with tensors that are not."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnkernels import backends, testing

pytest.importorskip("triton")
ONE_PER_OP = [pytest.param(of_op[0], id=op) for op, of_op in testing.CASES.items()]
needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch")


@pytest.fixture
def fakes(monkeypatch):
    """Fake CUDA tensors of a case; no GPU is asked for."""
    monkeypatch.setattr(backends, "triton_missing", lambda: "")

    def make(case, mode):
        args, kwargs = case.make()
        with mode:
            fake = lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
            return testing.map_tensors((args, kwargs), fake)

    return make


def _calls(graph) -> list:
    return [node for node in graph.nodes if "attnkernels_triton" in str(node.target)]


@needs_cuda_build
@pytest.mark.parametrize("case", ONE_PER_OP)
def test_operator_in_the_graph(case, fakes):
    mode = FakeTensorMode()
    args, kwargs = fakes(case, mode)

    class Module(torch.nn.Module):
        def forward(self, *values):
            return testing.run(case.op, values, kwargs, "triton")

    with mode:
        traced = make_fx(Module())(*args)
        exported = torch.export.export(Module(), args)
    assert _calls(traced.graph)
    assert _calls(exported.graph)


@needs_cuda_build
@pytest.mark.parametrize("case", ONE_PER_OP)
def test_compile_without_graph_breaks(case, fakes):
    torch._dynamo.reset()
    mode = FakeTensorMode()
    args, kwargs = fakes(case, mode)
    compiled = torch.compile(
        lambda *v: testing.run(case.op, v, kwargs, "triton") * 2, fullgraph=True, backend="aot_eager"
    )
    with mode:
        got = compiled(*args)
        want = testing.run(case.op, args, kwargs, "triton")
    assert got.device.type == "cuda"
    assert got.shape == want.shape
    assert got.stride() == want.stride()
