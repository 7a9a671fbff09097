"""Uses an installed attnkernels as a stranger would: run by tools/check_install.py in the environments it makes.

The argument is "yes", where the CPU library is to be there, or a part of the reason why it is not.
"""

from __future__ import annotations

import sys

import torch
import torchvision

import attnkernels
from attnkernels import info


def main(cpu_library: str) -> None:
    there = cpu_library == "yes"
    told = info.text(info.collect())
    print(told)
    line = next(line for line in told.splitlines() if line.startswith("  cpu"))
    assert line.startswith("  cpu     ready") if there else cpu_library in " ".join(told.split()), told
    assert all(len(line) <= 120 for line in told.splitlines()), told

    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 7)
    w1, b1, w2, b2 = torch.randn(4, 16), torch.randn(4), torch.randn(16, 4), torch.randn(16)
    assert attnkernels.backend_of("squeeze_excite", x, w1, b1, w2, b2) == ("cpu" if there else "reference")
    found = attnkernels.squeeze_excite(x, w1, b1, w2, b2)
    pooled = x.double().mean((2, 3))
    gate = torch.sigmoid(torch.relu(pooled @ w1.double().T + b1) @ w2.double().T + b2)
    torch.testing.assert_close(found.double(), x.double() * gate[:, :, None, None], rtol=1e-5, atol=1e-5)
    if there:  # an exception of the library becomes one of Python
        try:
            torch.ops.attnkernels.squeeze_excite(x, w2, b1, w1, b2, None, 0, 0, 0)
        except RuntimeError as refused:
            told = str(refused)
        assert "expected" in told, told

    query, key, value = torch.randn(1, 8, 5, 6), torch.randn(1, 8, 5, 6), torch.randn(1, 16, 5, 6, requires_grad=True)
    attended = attnkernels.criss_cross_attention(query, key, value)
    attended.sum().backward()
    torch.testing.assert_close(value.grad.sum(), torch.tensor(16.0 * 30))  # the weights of a pixel sum to one
    _check_compiling((query, key, value.detach()), attended.detach(), there)
    branches = [torch.randn(2, 8, 5, 5) for _ in range(2)]
    chosen = attnkernels.select_branches(branches, torch.zeros(2, 2, 8))
    torch.testing.assert_close(chosen, (branches[0] + branches[1]) / 2)

    model = torchvision.models.mobilenet_v3_small().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        report = attnkernels.patch(model)
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    if there:
        assert report.replaced, report
        assert {entry.backend for entry in report.replaced} == {"cpu"}
    else:  # patching would not make it faster
        assert not report.replaced, report
        assert report.skipped, report
    print(report)


def _check_compiling(maps: tuple[torch.Tensor, ...], expected: torch.Tensor, there: bool) -> None:
    """torch.compile takes the operator in one graph, and compiles anew for another backend."""
    targets: list[str] = []

    def look(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(attnkernels.criss_cross_attention, fullgraph=True, backend=look)
    torch.testing.assert_close(compiled(*maps), expected)
    assert any("criss_cross_attention" in target for target in targets) == there, targets
    targets.clear()
    with attnkernels.use_backend("reference"):
        torch.testing.assert_close(compiled(*maps), expected)
    assert not any("criss_cross_attention" in target for target in targets), targets
    assert bool(targets) == there, targets


if __name__ == "__main__":
    main(sys.argv[1])
