"""The criss-cross functions of CCNet: each pixel attends to the pixels of its row and its column."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from ... import backends
from .._autocast import autocasts
from . import reference, schema
from .checks import AFFINITY, AGGREGATE, ATTENTION, check_affinity, check_aggregate, check_attention

_CHECKING = ("cpu", "cuda", "emulated")  # the backends whose operators check all that the functions do


def criss_cross_affinity(query: Tensor, key: Tensor, *, backend: str = "auto") -> Tensor:
    """The energies of criss-cross attention (Huang et al. 2019, arXiv:1811.11721), in the official kernels' order.

    Args:
        query: [N, Cq, H, W], float32, float64, float16 or bfloat16, any strides.
        key: [N, Cq, H, W], as query.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, H+W-1, H, W] in query's dtype and memory format: at (h, w), entry j < W is the product of that query with
        the key at (h, j), entry W + i that with the key at (i, w) for i < h and at (i + 1, w) from there on.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ (under autocast both are cast).
        ValueError: ranks, shapes or devices do not match; a backend that cannot run here.
    """
    if chosen := backends.plain_backend(query, backend, (query, key), _on_gpu):
        try:
            if chosen not in _CHECKING:
                check_affinity(query, key)
            return schema.run_affinity(chosen, query, key)
        except (RuntimeError, LookupError, TypeError):
            pass  # wrong arguments: what follows names them
    if backends.overridden((query, key)):
        return handle_torch_function(criss_cross_affinity, (query, key), query, key, backend=backend)
    query, key = _autocast(query, key)
    check_affinity(query, key)
    chosen = backends.choose(AFFINITY, query, backend, (key,), on_gpu=_on_gpu)
    if chosen == "reference":
        return reference.affinities(query, key)
    return schema.run_affinity(chosen, query, key)


def criss_cross_aggregate(affinity: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """The values of each pixel's row and column summed with the weights of `affinity` (Huang et al. 2019).

    Args:
        affinity: [N, H+W-1, H, W] weights in the order of `criss_cross_affinity`, usually its softmax over dimension 1.
        value: [N, C, H, W], float32, float64, float16 or bfloat16, any strides.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in value's dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ (under autocast both are cast).
        ValueError: ranks, shapes or devices do not match; a backend that cannot run here.
    """
    if chosen := backends.plain_backend(value, backend, (affinity, value), _on_gpu):
        try:
            if chosen not in _CHECKING:
                check_aggregate(affinity, value)
            return schema.run_aggregate(chosen, affinity, value)
        except (RuntimeError, LookupError, TypeError):
            pass  # wrong arguments: what follows names them
    if backends.overridden((affinity, value)):
        return handle_torch_function(criss_cross_aggregate, (affinity, value), affinity, value, backend=backend)
    affinity, value = _autocast(affinity, value)
    check_aggregate(affinity, value)
    chosen = backends.choose(AGGREGATE, value, backend, (affinity,), on_gpu=_on_gpu)
    if chosen == "reference":
        return reference.aggregated(affinity, value)
    return schema.run_aggregate(chosen, affinity, value)


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """Criss-cross attention (Huang et al. 2019): affinity, softmax and aggregation in one.

    Nothing of size H + W - 1 per pixel is kept: the backward recomputes the probabilities from the saved query, key,
    value, result and one number per pixel. The energies are not scaled.

    Args:
        query: [N, Cq, H, W] or [N, Cq, D, H, W], float32, float64, float16 or bfloat16, any strides;
            channels_last runs natively, other maps are copied to it for the time of the call.
        key: as query.
        value: [N, C, H, W] or [N, C, D, H, W], with any number of channels.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        The attended values, in value's shape, dtype and memory format. In three dimensions each pixel attends to the
        H + W + D - 2 distinct pixels of its three axis lines.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ (under autocast all are cast).
        ValueError: ranks, shapes or devices do not match; a backend that cannot run here.
    """
    if chosen := backends.plain_backend(value, backend, (query, key, value), _attention_on_gpu):
        try:
            if chosen not in _CHECKING:
                check_attention(query, key, value)
            return schema.run_attention(chosen, query, key, value)
        except (RuntimeError, LookupError, TypeError):
            pass  # wrong arguments: what follows names them
    if backends.overridden((query, key, value)):
        return handle_torch_function(criss_cross_attention, (query, key, value), query, key, value, backend=backend)
    query, key, value = _autocast(query, key, value)
    check_attention(query, key, value)
    chosen = backends.choose(ATTENTION, value, backend, (query, key), on_gpu=_attention_on_gpu)
    if chosen == "reference":
        return reference.attended(query, key, value)
    return schema.run_attention(chosen, query, key, value)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, the tensors in its dtype, as for every matrix product; float64 is left alone, as there."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not autocasts(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype is not torch.float64 else x
        for x in tensors
    )


def _on_gpu(x: Tensor) -> tuple[str, ...]:
    """On an H100, 97 x 97, 64 and 512 channels, channels_last, forward of the attention by tiles: bfloat16 54 us by
    Triton, 77 by CUDA C++; float32, outside the tensor cores, 1179 and 228."""
    return ("triton", "cuda") if x.dtype.itemsize == 2 else ("cuda", "triton")


LONGEST_LINE = 128  # that the CUDA kernels take as a whole


def _attention_on_gpu(value: Tensor) -> tuple[str, ...]:
    """As above, bfloat16: forward 29 us by CUDA C++, which takes whole lines, and 48 by Triton; backward 67 and 148.
    Lines of 129 and 257 pixels: forward 359 and 273."""
    if value.dtype.itemsize == 2 and max(value.shape[2:], default=0) <= LONGEST_LINE:
        return ("cuda", "triton")
    return _on_gpu(value)


def _example(*channels: int):
    def example(device: str) -> tuple[tuple, dict]:
        return tuple(torch.zeros(1, count, 4, 4, device=device) for count in channels), {}

    return example


backends.register(backends.Operator(criss_cross_affinity, _example(8, 8)))
backends.register(backends.Operator(criss_cross_aggregate, _example(7, 8)))
backends.register(backends.Operator(criss_cross_attention, _example(8, 8, 16)))
