"""Operator schemas, shape functions and the autograd Functions of pooled_sum, select_branches and selective_kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._autograd import Unsaved, differentiates_formula, distinct, needs_grad, reference_backward
from .._registry import accumulation_dtype, define, overload
from . import reference

_TRITON = "attnkernels.ops.selective_kernel.triton_impl"


def is_channels_last(x: Tensor) -> bool:
    """Whether the kernels walk x [N, C, H, W] pixel by pixel: its channels are adjacent and its planes are not.

    Only the inner order counts, so that a view of some channels of a channels_last tensor is channels_last too.
    csrc/selective_kernel/selective_kernel_binding.h has the same rule.
    """
    if x.is_contiguous():
        return False
    _, channels, height, width = x.shape
    _, channel_stride, row_stride, column_stride = x.stride()
    if (width == 1 or column_stride == 1) and (height == 1 or row_stride == width):
        return False
    dense_pixels = height == 1 or width == 1 or row_stride == width * column_stride
    return (channels == 1 or channel_stride == 1) and dense_pixels


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _pooled_sum_fake(branches):
    return branches[0].new_empty(branches[0].shape[:2])


def _select_branches_fake(branches, logits):
    x = branches[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_format(is_channels_last(x)))
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
    layout = {"dtype": grad_y.dtype, "device": grad_y.device, "memory_format": _format(channels_last)}
    return [torch.empty(grad_y.shape, **layout) if needs >> m & 1 else grad_y.new_empty(0) for m in range(count)]


# branches: M tensors [N, C, H, W] of one dtype, views allowed. The first one decides the layout (is_channels_last);
# one of another layout, or in none of the two, is copied. -> [N, C] in the branches' dtype
define("pooled_sum", "(Tensor[] branches) -> Tensor pooled", _pooled_sum_fake, f"{_TRITON}:pooled_sum")

# logits [N, M, C] in the branches' dtype; weights [N, M, C], their softmax, in the accumulation dtype
define(
    "select_branches",
    "(Tensor[] branches, Tensor logits) -> (Tensor y, Tensor weights)",
    _select_branches_fake,
    f"{_TRITON}:select_branches",
)

# -> [N, M, C] in the branches' dtype
define(
    "select_branches_grad_logits",
    "(Tensor grad_y, Tensor[] branches, Tensor weights) -> Tensor grad_logits",
    _grad_logits_fake,
    f"{_TRITON}:select_branches_grad_logits",
)

# grad_branches[m] = weights[m] grad_y + grad_pooled / (H W); without grad_pooled [N, C] the first term alone.
# stacked: one result [N, M, C, H, W], in memory N, M, C, H, W or, channels_last, N, H, W, M, C; `needs` is ignored.
# Otherwise M results in the layout that channels_last says; where bit m of `needs` is not set, an empty one, [0].
define(
    "select_branches_grad_branches",
    "(Tensor grad_y, Tensor weights, Tensor? grad_pooled, bool stacked, bool channels_last, int needs)"
    " -> Tensor[] grad_branches",
    _grad_branches_fake,
    f"{_TRITON}:select_branches_grad_branches",
)


def _needs(wanted: Sequence[bool]) -> int:
    return sum(want << m for m, want in enumerate(wanted))


def listed(branches: Sequence[Tensor]) -> Sequence[Tensor]:
    """The branches one by one, of M tensors [N, C, H, W] or of a single stacked one, [N, M, C, H, W]."""
    return branches[0].unbind(1) if branches[0].dim() == 5 else branches


def _pooled_term(grad_pooled: Tensor, shape: Sequence[int]) -> Tensor:
    """grad_pooled / (H W) for every pixel of [N, (M,) C, H, W], without storing it."""
    term = (grad_pooled / (shape[-2] * shape[-1]))[..., None, None]
    return (term if len(shape) == 4 else term[:, None]).expand(shape)


class PooledSumFunction(torch.autograd.Function):
    """Saves nothing; the gradient of every branch is one [N, C] tensor, expanded."""

    @staticmethod
    def forward(ctx, backend, *branches):
        ctx.shape = branches[0].shape
        return overload(backend, "pooled_sum")(listed(branches))

    @staticmethod
    def backward(ctx, grad_pooled):
        term = _pooled_term(grad_pooled, ctx.shape)
        return None, *(term if want else None for want in ctx.needs_input_grad[1:])


class SelectBranchesFunction(torch.autograd.Function):
    """Saves the branches and the weights [N, M, C]."""

    @staticmethod
    def forward(ctx, backend, logits, *branches):
        one_by_one = listed(branches)
        y, weights = overload(backend, "select_branches")(one_by_one, logits)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.channels_last = backend, is_channels_last(one_by_one[0])
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
            grad_logits = overload(ctx.backend, "select_branches_grad_logits")(grad_y, listed(branches), weights)
        if any(wanted):
            grad_branches = overload(ctx.backend, "select_branches_grad_branches")(
                grad_y, weights, None, branches[0].dim() == 5, ctx.channels_last, _needs(wanted)
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
        one_by_one = listed(branches)
        x, count = one_by_one[0], len(one_by_one)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.shape, ctx.channels_last = backend, branches[0].shape, is_channels_last(x)
        pooled = overload(backend, "pooled_sum")(one_by_one)
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
            grads = overload(ctx.backend, "select_branches_grad_branches")(
                grad_y, weights, grad_pooled, stacked, ctx.channels_last, _needs(wanted)
            )
        return None, *(grad if want else None for grad, want in zip(grads, wanted, strict=True))


class CloseFunction(torch.autograd.Function):
    """select_branches after OpenFunction (which see). Saves the branches and the weights [N, M, C]."""

    @staticmethod
    def forward(ctx, backend, grad_y_slot, weights_slot, logits, *branches):
        y, weights = overload(backend, "select_branches")(listed(branches), logits)
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
            grad_logits = overload(ctx.backend, "select_branches_grad_logits")(grad_y, listed(branches), weights)
        return None, grad_y, weights, grad_logits, *(None for _ in branches)


def _reference_select(logits: Tensor, *branches: Tensor) -> Tensor:
    return reference.selected(listed(branches), logits)


def _reference_grad_branches(grad_y: Tensor, weights: Tensor, grad_pooled: Tensor | None) -> list[Tensor]:
    grads = [weight[:, :, None, None].to(grad_y.dtype) * grad_y for weight in weights.unbind(1)]
    if grad_pooled is not None:
        grads = [grad + _pooled_term(grad_pooled, grad_y.shape) for grad in grads]
    return grads


def run_pooled_sum(backend: str, branches: Sequence[Tensor]) -> Tensor:
    """pooled_sum on a backend of kernels, recorded where autograd wants it; `branches` as of `checked_branches`."""
    if needs_grad(*branches):
        return PooledSumFunction.apply(backend, *distinct(*branches))
    return overload(backend, "pooled_sum")(listed(branches))


def run_select_branches(backend: str, branches: Sequence[Tensor], logits: Tensor) -> Tensor:
    """The same for select_branches."""
    if needs_grad(logits, *branches):
        return SelectBranchesFunction.apply(backend, *distinct(logits, *branches))
    return overload(backend, "select_branches")(listed(branches), logits)[0]


def run_open(backend: str, branches: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The same for selective_kernel's first half; returns pooled, and the second half, a function of the logits."""
    if not needs_grad(*branches):
        pooled = overload(backend, "pooled_sum")(listed(branches))
        return pooled, lambda logits: run_select_branches(backend, branches, logits)
    branches = distinct(*branches)
    pooled, *slots = OpenFunction.apply(backend, *branches)
    return pooled, lambda logits: CloseFunction.apply(backend, *slots, logits, *branches)
