"""What the Triton kernels of fully connected layers share: block sizes, and the tiles of a layer and of its gradients.

A weight is [outputs, inputs]. Products are sums in the accumulation dtype, in a fixed order: no atomics, no tf32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._fully_connected import ACTIVATIONS
from ._triton import ceil_div, power_of_2, relu, sigmoid

# Products a program of a fully connected layer holds: 32 for each of its 128 threads.
PRODUCTS = 4096
# Samples that share one read of a weight. More would leave too few products for the reduction.
_SAMPLES = 4
# Rows and columns of a tile of `product_tile`, 8 a thread, and the terms that it sums per step: 16 is the least that a
# matrix product takes, and 32 doubled the registers.
PRODUCT_BLOCK, PRODUCT_TERMS = 32, 16

_RELU = tl.constexpr(ACTIVATIONS.index("relu"))
IDENTITY = 2  # an ACTIVATION besides the schema's: the input of the last layer without a hidden one
_IDENTITY = tl.constexpr(IDENTITY)


def layer_blocks(samples: int, outputs: int, terms: int) -> tuple[int, int, int, tuple[int]]:
    """Blocks of samples, outputs and terms of a fully connected layer, and the grid.

    Up to 4 samples share a weight, then as many terms as there are, up to 1024 products, so that few rounds of loads
    follow each other; what is left of the 4096 products is outputs.
    """
    block_samples = power_of_2(samples, _SAMPLES)
    block_terms = power_of_2(terms, PRODUCTS // 4 // block_samples)
    block_outputs = power_of_2(outputs, PRODUCTS // (block_samples * block_terms))
    grid = (ceil_div(samples, block_samples) * max(1, ceil_div(outputs, block_outputs)),)
    return block_samples, block_outputs, block_terms, grid


def product_tiles(rows: int, columns: int) -> int:
    """Programs of a matrix of `product_tile`."""
    return ceil_div(rows, PRODUCT_BLOCK) * max(1, ceil_div(columns, PRODUCT_BLOCK))


@triton.jit
def activation(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == _IDENTITY:
        return u
    elif ACTIVATION == _RELU:
        return relu(u)
    else:
        return u * sigmoid(u)


@triton.jit
def activation_grad(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == _IDENTITY:
        return tl.full(u.shape, 1, u.dtype)
    elif ACTIVATION == _RELU:
        return tl.where(u <= 0, 0, 1).to(u.dtype)
    else:
        s = sigmoid(u)
        return s * (1 + u * (1 - s))


@triton.jit
def layer_place(outputs, BLOCK_SAMPLES: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr):
    """The samples, the tile of outputs and the outputs of this program of a grid (sample tiles * output tiles)."""
    tiles = tl.maximum(tl.cdiv(outputs, BLOCK_OUTPUTS), 1)
    tile = tl.program_id(0) % tiles
    sample = tl.program_id(0) // tiles * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    return sample, tile, tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)


@triton.jit
def load_weight(weight_ptr, output, i, outputs, inputs, accumulation: tl.constexpr):
    """weight[o, i]"""
    mask = (output < outputs)[:, None] & (i < inputs)[None, :]
    at = output.to(tl.int64)[:, None] * inputs + i[None, :]
    return tl.load(weight_ptr + at, mask=mask, other=0).to(accumulation)


# out[i, j] = sum_t a[t / A_REPEATS, i] activation(b[t, j]), bias[i] = sum_t a[t / A_REPEATS, i]; a, b and out have the
# given strides
@triton.jit
def product_tile(
    a_ptr, a_term, a_row, b_ptr, b_term, out_ptr, out_row, bias_ptr, tile, rows, columns, terms,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TERMS: tl.constexpr, accumulation: tl.constexpr,
    A_REPEATS: tl.constexpr = 1,
):  # fmt: skip
    column_tiles = tl.maximum(tl.cdiv(columns, BLOCK), 1)
    i = tile // column_tiles * BLOCK + tl.arange(0, BLOCK)
    j = tile % column_tiles * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], accumulation)
    bias = tl.zeros([BLOCK], accumulation)
    for start in range(0, terms, BLOCK_TERMS):
        term = start + tl.arange(0, BLOCK_TERMS)
        t, in_terms = term.to(tl.int64), term < terms
        at = (term // A_REPEATS).to(tl.int64)[None, :] * a_term + i.to(tl.int64)[:, None] * a_row
        a = tl.load(a_ptr + at, mask=(i < rows)[:, None] & in_terms[None, :], other=0)
        b_mask = in_terms[:, None] & (j < columns)[None, :]
        b = tl.load(b_ptr + t[:, None] * b_term + j[None, :], mask=b_mask, other=0).to(accumulation)
        total = tl.dot(a, activation(b, ACTIVATION), total, input_precision="ieee", out_dtype=accumulation)
        bias += tl.sum(a, 1)
    out = out_ptr + i.to(tl.int64)[:, None] * out_row + j[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=(i < rows)[:, None] & (j < columns)[None, :])
    if bias_ptr is not None:
        tl.store(bias_ptr + i, bias.to(bias_ptr.dtype.element_ty), mask=(i < rows) & (tile % column_tiles == 0))
