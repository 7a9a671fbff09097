"""Selective kernel in plain PyTorch: the specification of `pooled_sum`, `select_branches` and `selective_kernel`
(Li et al. 2019, arXiv:1903.06586).

    s[n, c] = mean_hw sum_m U_m[n, c, h, w]                  pooled_sum (fuse)
    a[n, m, c] = softmax_m z[n, m, c]                        the logits z are a small network's, z = attention(s)
    V[n, c, h, w] = sum_m a[n, m, c] U_m[n, c, h, w]         select_branches (select)

Backward, for dV:

    da[n, m, c] = sum_hw dV U_m        dz_m = a_m (da_m - sum_k a_k da_k)        ds = (d attention / d s)^T dz
    dU_m = a_m dV + ds / (H W)

In reads and writes of the size of one branch: M to pool, M + 1 to select, M + 1 for dz, M + 1 for all dU_m.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def branch_list(branches: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    """The branches one by one: views where they come stacked, [N, M, C, H, W]."""
    return branches.unbind(1) if isinstance(branches, Tensor) else branches


def pooled(branches: list[Tensor]) -> Tensor:
    """pooled_sum in what torch.jit.script compiles."""
    total = branches[0]
    for branch in branches[1:]:
        total = total + branch
    return total.mean((2, 3))


def selected(branches: list[Tensor], logits: Tensor) -> Tensor:
    """select_branches in what torch.jit.script compiles."""
    weights = torch.softmax(logits, 1)[:, :, :, None, None].unbind(1)
    result = branches[0] * weights[0]
    for branch, weight in zip(branches[1:], weights[1:]):  # noqa: B905  (strict= is not in TorchScript)
        result = result + branch * weight
    return result


def pooled_branches(branches: Sequence[Tensor] | Tensor) -> Tensor:
    """pooled_sum of branches that have been checked."""
    return pooled(list(branch_list(branches)))


def selected_branches(branches: Sequence[Tensor] | Tensor, logits: Tensor) -> Tensor:
    """select_branches of arguments that have been checked."""
    return selected(list(branch_list(branches)), logits)
