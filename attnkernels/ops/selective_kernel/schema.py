"""The records of pooled_sum, select_branches and selective_kernel: their operators, their autograd Functions, and what
else the library knows of them.

The Functions take branches one after the other, M tensors [N, C, H, W] or a single stacked one, [N, M, C, H, W].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._autocast import autocasts
from .._autograd import Unsaved, differentiates_formula, distinct, needs_bits, needs_grad, reference_backward
from .._layout import rows_are_pixels, walk_format
from .._op import Op
from .._registry import Operator, accumulation_dtype
from . import reference
from .checks import check_branches, check_logits, check_select


def _pooled_sum_fake(branches):
    return branches[0].new_empty(branches[0].shape[:2])


def _select_branches_fake(branches, logits):
    x = branches[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=walk_format(rows_are_pixels(x)))
    return y, logits.new_empty(logits.shape, dtype=accumulation_dtype(x.dtype))


def _grad_logits_fake(grad_y, branches, weights):
    return weights.new_empty(weights.shape, dtype=grad_y.dtype)


def _grad_branches_fake(grad_y, weights, grad_pooled, stacked, channels_last, needs):
    count = weights.shape[1]
    samples, *rest = grad_y.shape
    if stacked:
        if channels_last:
            channels, height, width = rest
            grad = grad_y.new_empty((samples, height, width, count, channels)).permute(0, 3, 4, 1, 2)
        else:
            grad = grad_y.new_empty((samples, count, *rest))
        return [grad]
    layout = {"dtype": grad_y.dtype, "device": grad_y.device, "memory_format": walk_format(channels_last)}
    return [torch.empty(grad_y.shape, **layout) if needs >> m & 1 else grad_y.new_empty(0) for m in range(count)]


# branches: M tensors [N, C, H, W] of one dtype, views allowed. The first one decides the layout (rows_are_pixels);
# one of another layout, or in none of the two, is copied. -> [N, C] in the branches' dtype
_POOLED_SUM = Operator("pooled_sum(Tensor[] branches) -> Tensor pooled", _pooled_sum_fake)

# logits [N, M, C] in the branches' dtype; weights [N, M, C], their softmax, in the accumulation dtype
_SELECT = Operator(
    "select_branches(Tensor[] branches, Tensor logits) -> (Tensor y, Tensor weights)", _select_branches_fake
)

# -> [N, M, C] in the branches' dtype
_GRAD_LOGITS = Operator(
    "select_branches_grad_logits(Tensor grad_y, Tensor[] branches, Tensor weights) -> Tensor grad_logits",
    _grad_logits_fake,
)

# grad_branches[m] = weights[m] grad_y + grad_pooled / (H W); without grad_pooled [N, C] the first term alone.
# stacked: one result [N, M, C, H, W], in memory N, M, C, H, W or, channels_last, N, H, W, M, C; `needs` is ignored.
# Otherwise M results in the layout that channels_last says; where bit m of `needs` is not set, an empty one, [0].
_GRAD_BRANCHES = Operator(
    "select_branches_grad_branches(Tensor grad_y, Tensor weights, Tensor? grad_pooled, bool stacked,"
    " bool channels_last, int needs) -> Tensor[] grad_branches",
    _grad_branches_fake,
)


def one_by_one(branches: Sequence[Tensor]) -> Sequence[Tensor]:
    """The branches as the operators take them: a single stacked one, [N, M, C, H, W], as M views."""
    return branches[0].unbind(1) if len(branches) == 1 else branches


def _pooled_term(grad_pooled: Tensor, shape: Sequence[int]) -> Tensor:
    """grad_pooled / (H W) for every pixel of [N, (M,) C, H, W], without storing it."""
    term = (grad_pooled / (shape[-2] * shape[-1]))[..., None, None]
    return (term if len(shape) == 4 else term[:, None]).expand(shape)


class PooledSumFunction(torch.autograd.Function):
    """Saves nothing; the gradient of every branch is one [N, C] tensor, expanded."""

    @staticmethod
    def forward(ctx, backend, *branches):
        ctx.shape = branches[0].shape
        return _POOLED_SUM.on[backend](one_by_one(branches))

    @staticmethod
    def backward(ctx, grad_pooled):
        term = _pooled_term(grad_pooled, ctx.shape)
        return None, *(term if want else None for want in ctx.needs_input_grad[1:])


class SelectBranchesFunction(torch.autograd.Function):
    """Saves the branches and the weights [N, M, C]."""

    @staticmethod
    def forward(ctx, backend, logits, *branches):
        maps = one_by_one(branches)
        y, weights = _SELECT.on[backend](maps, logits)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.channels_last = backend, rows_are_pixels(maps[0])
        ctx.logits = Unsaved(logits)
        ctx.save_for_backward(weights, *branches)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        if grad_y is None:
            return (None,) * len(ctx.needs_input_grad)
        weights, *branches = ctx.saved_tensors
        if differentiates_formula(grad_y):
            (logits,) = ctx.logits.unchanged("select_branches", "logits")
            return None, *reference_backward(_reference_select, (logits, *branches), grad_y)
        _, wants_logits, *wanted = ctx.needs_input_grad
        grad_logits = None
        grad_branches = [None] * len(branches)
        if wants_logits:
            grad_logits = _GRAD_LOGITS.on[ctx.backend](grad_y, one_by_one(branches), weights)
        if any(wanted):
            grad_branches = _GRAD_BRANCHES.on[ctx.backend](
                grad_y, weights, None, branches[0].dim() == 5, ctx.channels_last, needs_bits(wanted)
            )
        return None, grad_logits, *(grad if want else None for grad, want in zip(grad_branches, wanted, strict=True))


class OpenFunction(torch.autograd.Function):
    """pooled_sum with two more results, through which CloseFunction sends it all that the branches' gradient needs.

    A branch's gradient has two terms, a_m dV from the selection and ds / (H W) from the pooling, and ds is known only
    after the selection and the attention network have run backward. Left to autograd, each term would be written, read
    again and added. Here the selection writes none: it returns dV as the gradient of `grad_y_slot` and the weights a as
    the "gradient" of `weights_slot`, and this node, which runs last, writes a_m dV + ds / (H W) once.
    The slots are never read: they exist for their gradients. They must reach exactly one CloseFunction, with the same
    branches; `selective_kernel` sees to that.
    """

    @staticmethod
    def forward(ctx, backend, *branches):
        maps = one_by_one(branches)
        x, count = maps[0], len(maps)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.shape, ctx.channels_last = backend, branches[0].shape, rows_are_pixels(x)
        pooled = _POOLED_SUM.on[backend](maps)
        # Of the right shapes at the least cost in time and memory: another view of a branch, and a few numbers.
        samples, channels, _, _ = x.shape
        weights_slot = x.new_empty((samples, count, channels), dtype=accumulation_dtype(x.dtype))
        return pooled, x.detach(), weights_slot

    @staticmethod
    def backward(ctx, grad_pooled, grad_y, weights):
        wanted = ctx.needs_input_grad[1:]
        stacked = len(ctx.shape) == 5
        if grad_y is None:
            term = None if grad_pooled is None else _pooled_term(grad_pooled, ctx.shape)
            return None, *(term if want else None for want in wanted)
        if differentiates_formula(grad_y) or (grad_pooled is not None and differentiates_formula(grad_pooled)):
            grads = _reference_grad_branches(grad_y, weights, grad_pooled)
            grads = [torch.stack(grads, 1)] if stacked else grads
        else:
            grads = _GRAD_BRANCHES.on[ctx.backend](
                grad_y, weights, grad_pooled, stacked, ctx.channels_last, needs_bits(wanted)
            )
        return None, *(grad if want else None for grad, want in zip(grads, wanted, strict=True))


class CloseFunction(torch.autograd.Function):
    """select_branches after OpenFunction (which see). Saves the branches and the weights [N, M, C]."""

    @staticmethod
    def forward(ctx, backend, grad_y_slot, weights_slot, logits, *branches):
        y, weights = _SELECT.on[backend](one_by_one(branches), logits)
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        ctx.logits = Unsaved(logits)
        ctx.save_for_backward(weights, *branches)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        if grad_y is None:
            return (None,) * len(ctx.needs_input_grad)
        weights, *branches = ctx.saved_tensors
        grad_logits = None
        if differentiates_formula(grad_y):
            (logits,) = ctx.logits.unchanged("selective_kernel", "logits")
            if logits.requires_grad:
                grad_logits = reference_backward(_reference_select, (logits, *branches), grad_y)[0]
            weights = torch.softmax(logits.to(weights.dtype), 1)
        elif ctx.needs_input_grad[3]:
            grad_logits = _GRAD_LOGITS.on[ctx.backend](grad_y, one_by_one(branches), weights)
        return None, grad_y, weights, grad_logits, *(None for _ in branches)


def _reference_select(logits: Tensor, *branches: Tensor) -> Tensor:
    return reference.selected(one_by_one(branches), logits)


def _reference_grad_branches(grad_y: Tensor, weights: Tensor, grad_pooled: Tensor | None) -> list[Tensor]:
    grads = [weight[:, :, None, None].to(grad_y.dtype) * grad_y for weight in weights.unbind(1)]
    if grad_pooled is not None:
        grads = [grad + _pooled_term(grad_pooled, grad_y.shape) for grad in grads]
    return grads


def _flat(branches: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    """The branches as the Functions take them.

    Raises:
        LookupError: one tensor that is not some branches stacked.
    """
    if not isinstance(branches, Tensor):
        return branches
    if branches.dim() != 5 or branches.shape[1] < 2:
        raise LookupError(branches.shape)
    return (branches,)


def _logits_as_branches(inputs: tuple) -> tuple:
    """Autocast of select_branches: what the attention network returns follows the branches."""
    branches, logits = inputs
    return branches, logits.to(branches[0].dtype) if isinstance(logits, Tensor) else logits


def _tensors(inputs: tuple) -> tuple:
    """The tensors among inputs of which the first is the branches as a user gives them, several or one stacked one."""
    branches, *others = inputs
    several = isinstance(branches, (list, tuple)) and len(branches) > 1
    return (*branches, *others) if several else (branches, *others)


class PooledSum(Op):
    def run(self, backend: str, inputs: tuple, options: tuple) -> Tensor:
        branches = _flat(*inputs)
        if needs_grad(*branches):
            return PooledSumFunction.apply(backend, *distinct(*branches))
        return _POOLED_SUM.on[backend](one_by_one(branches))


class SelectBranches(Op):
    def run(self, backend: str, inputs: tuple, options: tuple) -> Tensor:
        branches, logits = inputs
        branches = _flat(branches)
        if needs_grad(logits, *branches):
            return SelectBranchesFunction.apply(backend, *distinct(logits, *branches))
        return _SELECT.on[backend](one_by_one(branches), logits)[0]


Select = Callable[[Tensor], Tensor]


def _with_logits(branches: Sequence[Tensor] | Tensor, logits: Any) -> tuple:
    """The inputs of selective_kernel's second half, from what the attention network returned."""
    x = branches[0]
    if isinstance(logits, Tensor) and logits.dtype != x.dtype and autocasts(x):
        branches, logits = _logits_as_branches((branches, logits))
    check_logits("selective_kernel", branches, logits, "the result of attention")
    return branches, logits


def _selective_kernel(branches: Sequence[Tensor] | Tensor) -> tuple[Tensor, Select]:
    pooled = reference.pooled_branches(branches)
    return pooled, lambda logits: reference.selected_branches(*_with_logits(branches, logits))


class SelectiveKernel(Op):
    """selective_kernel up to its attention network: gives the pooled branches and, as a function of the logits, the
    rest of the op."""

    def run(self, backend: str, inputs: tuple, options: tuple) -> tuple[Tensor, Select]:
        branches = _flat(*inputs)
        if not needs_grad(*branches):
            pooled = _POOLED_SUM.on[backend](one_by_one(branches))
            return pooled, lambda logits: SELECT_BRANCHES.run(backend, _with_logits(*inputs, logits), ())
        branches = distinct(*branches)
        pooled, *slots = OpenFunction.apply(backend, *branches)

        def select(logits: Tensor) -> Tensor:
            _, logits = _with_logits(*inputs, logits)
            return CloseFunction.apply(backend, *slots, logits, *branches)

        return pooled, select

    def as_reference(self, backend: str, tensors: tuple, inputs: tuple, options: tuple) -> tuple[Tensor, Select]:
        pooled, select = super().as_reference(backend, tensors, inputs, options)
        if self.checks_reference(tensors):
            return pooled, select
        return pooled, lambda logits: reference.selected_branches(*inputs, logits)

    def hand_over(self, tensors: tuple, backend: str, inputs: tuple, options: tuple) -> tuple[Tensor, Select]:
        """Each half goes by the override: `attention` is no argument of one."""
        (branches,) = inputs
        pooled = POOLED_SUM.function(branches, backend=backend)
        return pooled, lambda logits: SELECT_BRANCHES.function(branches, logits, backend=backend)


# Inductor makes as few passes and fuses them with their neighbours, and where it changes a graph's layout it copies the
# inputs of an opaque op (8x128x56x56, training: contiguous 1.55 times the plain formula's time, channels_last 0.7
# times; inference 0.9 and 0.8 times).
_WHEN_COMPILED = "torch.compile fuses the plain formula into its neighbours"


def _example_branches(device: str) -> list[Tensor]:
    return [torch.zeros(1, 8, 4, 4, device=device) for _ in range(2)]


def _example_attention(pooled: Tensor) -> Tensor:
    return torch.stack([pooled, -pooled], 1)


POOLED_SUM = PooledSum(
    name="pooled_sum",
    inputs=("branches",),
    tensors=_tensors,
    formula=reference.pooled_branches,
    check=functools.partial(check_branches, "pooled_sum"),
    when_compiled=_WHEN_COMPILED,
    example=lambda device: ((_example_branches(device),), {}),
)
SELECT_BRANCHES = SelectBranches(
    name="select_branches",
    inputs=("branches", "logits"),
    tensors=_tensors,
    formula=reference.selected_branches,
    check=functools.partial(check_select, "select_branches"),
    autocast=_logits_as_branches,
    when_compiled=_WHEN_COMPILED,
    example=lambda device: ((_example_branches(device), torch.zeros(1, 2, 8, device=device)), {}),
)
SELECTIVE_KERNEL = SelectiveKernel(
    name="selective_kernel",
    inputs=("branches",),
    tensors=_tensors,
    formula=_selective_kernel,
    check=functools.partial(check_branches, "selective_kernel"),
    when_compiled=_WHEN_COMPILED,
    example=lambda device: ((_example_branches(device), _example_attention), {}),
)
