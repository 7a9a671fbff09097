"""Ways in which the tensors of a call hang together in the graph around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnkernels import testing


def independent(leaves: list[Tensor]) -> list[Tensor]:
    return leaves


def equal(leaves: list[Tensor]) -> list[Tensor]:
    """One tensor in the place of all that have its shape."""
    first: dict[torch.Size, Tensor] = {}
    return [first.setdefault(leaf.shape, leaf) for leaf in leaves]


def connected(leaves: list[Tensor]) -> list[Tensor]:
    """Each tensor is computed from its own leaf and from the tensor before it."""
    values = [leaves[0]]
    for leaf in leaves[1:]:
        before = values[-1]
        same = before.shape == leaf.shape
        values.append(leaf + 0.5 * torch.sin(before) if same else leaf + 0.5 * torch.sin(before.mean()))
    return values


WIRINGS = (independent, equal, connected)


def wired(
    case: testing.OpCase, dtype: torch.dtype, wiring: Callable[[list[Tensor]], list[Tensor]], device: str = "cpu"
) -> tuple[list[Tensor], Callable[[list[Tensor], str], Tensor]]:
    """A case's leaves, and a function of leaves and a backend that makes the call; "formula" calls the reference."""
    made = case.make(dtype, device)
    leaves = [tensor.detach().requires_grad_() for tensor in testing.tensors_of(made)]

    def call(leaves: list[Tensor], backend: str) -> Tensor:
        values = iter(wiring(leaves))
        args, kwargs = testing.map_tensors(made, lambda _: next(values))
        return testing.run(case.op, args, kwargs, "reference" if backend == "formula" else backend)

    return leaves, call


def weights_like(tensor: Tensor, seed: int) -> Tensor:
    """Random numbers of a tensor's shape, the same for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, dtype=torch.float64, generator=generator).to(tensor.device, tensor.dtype)
