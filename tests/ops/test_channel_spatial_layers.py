"""The fully connected layers of the channel gates on every backend, against the plain formula in float64."""

from __future__ import annotations

import pytest
import torch

from attnkernels import testing
from attnkernels.ops.channel_spatial import reference
from attnkernels.ops.channel_spatial.operators import LAYERS, LAYERS_BACKWARD

# Samples, pools, channels, hidden channels (0: a single layer): ends of vectors, one of each, several blocks and tiles
# of weights, more samples than are taken together, no samples.
SIZES = [
    (2, 2, 64, 4),
    (3, 1, 24, 6),
    (1, 1, 1, 1),
    (5, 2, 37, 3),
    (2, 3, 130, 17),
    (1, 2, 520, 65),
    (2, 1, 2048, 128),
    (19, 2, 72, 9),
    (3, 1, 40, 0),
    (2, 2, 33, 0),
    (1, 1, 300, 0),
    (0, 2, 16, 4),
]


def make(size, dtype, biases, squares):
    samples, pools, channels, width = size
    generator = torch.Generator().manual_seed(sum(size))
    wide = torch.float64 if dtype is torch.float64 else torch.float32

    def normal(*shape, dtype=dtype, scale=1.0):
        return (torch.randn(shape, dtype=torch.float64, generator=generator) * scale).to(dtype)

    after = (1, 1) if squares else ()
    layers = [
        normal(width, channels, *after, scale=channels**-0.5) if width else None,
        normal(width) if width and biases else None,
        normal(channels, width or channels, *after, scale=(width or channels) ** -0.5),
        normal(channels) if biases else None,
    ]
    return normal(samples, pools, channels, dtype=wide), layers, normal(samples, channels, dtype=wide)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
def test_layers(backend, device, size, dtype):
    for biases, squares in ((True, False), (False, True)):
        pooled, layers, grad = make(size, dtype, biases, squares)
        exact = [None if x is None else x.double().requires_grad_() for x in (pooled, *layers)]
        want = reference.channel_gate(*exact)
        want_hidden = None
        if exact[1] is not None:
            bias = 0 if exact[2] is None else exact[2]
            want_hidden = (exact[0] @ exact[1].flatten(1).T + bias).relu()
        present = [i for i, x in enumerate(exact) if x is not None]
        want_grads = dict(
            zip(present, torch.autograd.grad(want, [exact[i] for i in present], grad.double()), strict=True)
        )
        pooled, grad, *layers = (None if x is None else x.to(device) for x in (pooled, grad, *layers))
        with testing.uninitialized_is_nan():
            gate, hidden = LAYERS.on[backend](pooled, *layers)
            call = grad, pooled, gate, hidden, layers[0], layers[2]
            needs = sum(1 << i for i in present)
            grads = LAYERS_BACKWARD.on[backend](*call, needs)
            alone = [LAYERS_BACKWARD.on[backend](*call, 1 << i)[i] for i in present]
            again = LAYERS_BACKWARD.on[backend](*call, needs)
        testing.assert_close_to_float64(gate, want, "gate")
        if want_hidden is None:
            assert hidden.shape == (0,)
        else:
            testing.assert_close_to_float64(hidden, want_hidden, "hidden")
        for i, one in zip(present, alone, strict=True):
            like = (pooled, *layers)[i]
            assert (grads[i].dtype, grads[i].shape) == (like.dtype, like.shape)
            testing.assert_close_to_float64(grads[i], want_grads[i], f"gradient {i}")
            assert torch.equal(grads[i], one)
            assert torch.equal(grads[i], again[i])
        assert all(grads[i].shape == (0,) for i in range(5) if i not in present)


@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
def test_strided_and_nan(backend, device):
    """Inputs that are views; a NaN passes the ReLU, forward and backward, as PyTorch's."""
    pooled, layers, grad = make((3, 3, 40, 8), torch.float32, True, False)
    pooled[1, 1, 5] = float("nan")
    part = pooled[:, 1:]
    want_in = [x.double().requires_grad_() for x in (part, *layers)]
    want = reference.channel_gate(*want_in)
    want_grads = torch.autograd.grad(want, want_in, grad.double())
    part, grad, *layers = (x.to(device) for x in (part, grad, *layers))
    layers[2] = layers[2].T.contiguous().T
    gate, hidden = LAYERS.on[backend](part, *layers)
    grads = LAYERS_BACKWARD.on[backend](grad, part, gate, hidden, layers[0], layers[2], 0b11111)
    for got, wanted in zip((gate, *grads), (want, *want_grads), strict=True):
        assert torch.equal(got.cpu().isnan(), wanted.isnan())
        testing.assert_close_to_float64(got.nan_to_num(), wanted.nan_to_num(), "result")


def test_wrong_arguments():
    pooled, reduce, expand = torch.zeros(2, 1, 8), torch.zeros(2, 8), torch.zeros(8, 2)
    for wrong in ((pooled[:, 0], reduce, None, expand, None), (pooled.half(), reduce, None, expand, None),
                  (pooled, reduce.double(), None, expand, None), (pooled, expand, None, expand, None),
                  (pooled, reduce, torch.zeros(3), expand, None), (pooled, reduce, None, reduce, None),
                  (pooled, reduce, None, expand, torch.zeros(2)), (pooled, None, torch.zeros(2), expand, None)):  # fmt: skip
        with pytest.raises(RuntimeError, match="channel_spatial_layers: (pooled|reduce|expand)[_a-z]*: expected"):
            LAYERS.on["cpu"](*wrong)
