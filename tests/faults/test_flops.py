"""FlopCounterMode counts a fused call as it counts the formula, and a patched model as the original."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from faults.wiring import independent, wired
from torch.utils.flop_counter import FlopCounterMode

import attnkernels
from attnkernels import testing
from attnkernels.ops import _registry

CALLS = [
    pytest.param(case, backend, device, frozen, id=f"{case}-{backend}-{frozen}")
    for case in testing.cases(small=True)
    # einsum makes no matrix product of a single channel or a line of one pixel, where the official code has one
    if "no_" not in case.name
    and not ((case.op.startswith("criss_cross") and "one_" in case.name) or "flat" in case.name)
    for backend, device in testing.fused_backends()
    for frozen in ("nothing", "the first", "all but the first")
    if frozen != "the first" or len(list(testing.tensors_of(case.make()))) > 1
]


def counted(call, leaves):
    with FlopCounterMode(display=False) as forward:
        output = call()
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(output.sum(), wanted, allow_unused=True)
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(("case", "backend", "device", "frozen"), CALLS)
def test_counts_are_those_of_the_formula(case, backend, device, frozen):
    leaves, call = wired(case, torch.float32, independent, device)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_({"nothing": True, "the first": i > 0, "all but the first": i == 0}[frozen])
    got = counted(lambda: call(leaves, backend), leaves)
    want = counted(lambda: call(leaves, "formula"), leaves)
    assert got == want


def test_every_operator_has_a_count():
    from torch.utils.flop_counter import flop_registry

    for operator in _registry.OPERATORS.values():
        for overload in operator.on.values():
            assert overload.overloadpacket in flop_registry


@pytest.mark.parametrize("name", ["seresnet18", "efficientnet_b0", "skresnet18", "resnest14d", "ese_vovnet19b_dw"])
def test_patched_networks_count_as_the_original(name):
    timm = pytest.importorskip("timm")
    model, x = timm.create_model(name, num_classes=3).eval(), torch.randn(1, 3, 64, 64)

    def counts():
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad(), FlopCounterMode(display=False) as inference:
            model(x)
        return inference.get_total_flops(), *counted(lambda: model(x), parameters)

    want = counts()
    assert attnkernels.patch(model).replaced
    assert counts() == want


def test_counts_whichever_is_imported_first():
    code = """
import torch, sys
{}
x, w = torch.ones(2, 8, 4, 4), torch.ones(8, 8)
with FlopCounterMode(display=False) as counter:
    attnkernels.squeeze_excite(x, w, None, w, None)
print(counter.get_total_flops())
"""
    first = "import attnkernels; from torch.utils.flop_counter import FlopCounterMode"
    last = "from torch.utils.flop_counter import FlopCounterMode; import attnkernels"
    for order in (first, last):
        done = subprocess.run([sys.executable, "-c", code.format(order)], capture_output=True, text=True)
        assert done.stdout.strip() == str(2 * 2 * (64 + 64)), done.stderr
