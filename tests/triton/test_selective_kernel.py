"""The Triton backend of selective_kernel: branches that are not laid out alike."""

from __future__ import annotations

import torch

from attnkernels import testing
from attnkernels.ops.selective_kernel import triton_impl


def test_branches_of_other_strides_and_layouts():
    (case,) = (case for case in testing.CASES["select_branches"] if case.name == "plain")
    (branches, logits), _ = case.make(torch.float32, "cuda")
    mixed = [branches[0], branches[1].contiguous(memory_format=torch.channels_last)]
    sliced = [torch.cat([b, b], 1)[:, : b.shape[1]] for b in branches]
    y, _ = triton_impl.select_branches(branches, logits)
    for others in (mixed, sliced):
        assert torch.equal(triton_impl.select_branches(others, logits)[0], y)
