"""The convolution of cbam's statistics on every backend, against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attnkernels import testing
from attnkernels.ops.channel_spatial.operators import CONVOLUTION, CONVOLUTION_BACKWARD

# Maps smaller than the taps, ends of vectors, several blocks, no samples.
SIZES = [
    (2, 7, 7, 7),
    (1, 1, 1, 7),
    (3, 2, 3, 15),
    (2, 5, 6, 1),
    (2, 9, 70, 3),
    (1, 70, 45, 5),
    (0, 4, 4, 3),
    (5, 56, 56, 7),
]


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("samples", "height", "width", "taps"), SIZES)
@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
def test_convolution(backend, device, samples, height, width, taps, dtype):
    """Weights in every dtype, statistics in the one they are added up in; either order, logits and gates."""
    if backend == "emulated" and samples * height * width > 10000:
        pytest.skip("too large for the host emulation")
    generator = torch.Generator().manual_seed(samples + height + width)
    wide = torch.float64 if dtype is torch.float64 else torch.float32

    def normal(*shape, dtype=wide):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    statistics, weight = normal(samples, 2, height, width), (normal(1, 2, taps, taps) / taps).to(dtype)
    bias, grad = normal(1, dtype=dtype), normal(samples, height, width)
    exact = [x.double().requires_grad_() for x in (statistics, weight)]
    given = [x.to(device) for x in (statistics, weight)]
    if samples % 2:  # the weight of a channels_last module
        given[1] = given[1].to(memory_format=torch.channels_last)
    for mean_first in (0, 1):
        planes = exact[1].flip(1) if mean_first else exact[1]
        logits = F.conv2d(exact[0], planes, padding=taps // 2)[:, 0]
        for gated in (0, 1):
            want = (logits + bias.double()).sigmoid() if gated else logits + bias.double()
            bare = logits.sigmoid() if gated else logits
            want_grads = torch.autograd.grad(want, exact, grad.double(), retain_graph=True)
            with testing.uninitialized_is_nan():
                got = CONVOLUTION.on[backend](*given, bias.to(device), mean_first, gated)
                got_bare = CONVOLUTION.on[backend](*given, None, mean_first, gated)
                call = grad.to(device), *given, want.to(device, wide) if gated else None, mean_first
                grads = CONVOLUTION_BACKWARD.on[backend](*call, 3)
                alone = [CONVOLUTION_BACKWARD.on[backend](*call, 1 << i)[i] for i in range(2)]
            testing.assert_close_to_float64(got, want, "result")
            testing.assert_close_to_float64(got_bare, bare, "result without a bias")
            for x, found, one, want_grad in zip(given, grads, alone, want_grads, strict=True):
                assert (found.dtype, found.shape) == (x.dtype, x.shape)
                testing.assert_close_to_float64(found, want_grad, "gradient")
                assert torch.equal(found, one)


def test_wrong_arguments():
    statistics, weight = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 3, 3)
    convolve = CONVOLUTION.on["cpu"]
    for wrong in ((statistics[:, :1], weight), (statistics.half(), weight.half()), (statistics, weight[..., :2, :2]),
                  (statistics, weight.double()), (statistics, weight[0]), (statistics, torch.zeros(1, 2, 17, 17))):  # fmt: skip
        with pytest.raises(RuntimeError, match="channel_spatial_convolution: (statistics|weight): expected"):
            convolve(*wrong, None, 0, 0)
