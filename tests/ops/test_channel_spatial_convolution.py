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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("samples", "height", "width", "taps"), SIZES)
@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
def test_convolution(backend, device, samples, height, width, taps, dtype):
    if backend == "emulated" and samples * height * width > 10000:
        pytest.skip("too large for the host emulation")
    generator = torch.Generator().manual_seed(samples + height + width)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    statistics, weight, bias = normal(samples, 2, height, width), normal(2, taps, taps), normal(1)
    grad = normal(samples, height, width)
    wide = [x.double().requires_grad_() for x in (statistics, weight, bias)]
    want = F.conv2d(wide[0], wide[1][None], wide[2], padding=taps // 2)[:, 0]
    want_grads = torch.autograd.grad(want, wide[:2], grad.double())
    given = [x.to(device) for x in (statistics, weight, bias)]
    with testing.uninitialized_is_nan():
        got = CONVOLUTION.on[backend](*given)
        bare = CONVOLUTION.on[backend](*given[:2], None)
        grads = CONVOLUTION_BACKWARD.on[backend](grad.to(device), *given[:2], 3)
        alone = [CONVOLUTION_BACKWARD.on[backend](grad.to(device), *given[:2], 1 << i)[i] for i in range(2)]
    testing.assert_close_to_float64(got, want, "logits")
    testing.assert_close_to_float64(bare, want - wide[2], "logits without a bias")
    for grad, one, want_grad in zip(grads, alone, want_grads, strict=True):
        testing.assert_close_to_float64(grad, want_grad, "gradient")
        assert torch.equal(grad, one)


def test_wrong_arguments():
    statistics, weight = torch.zeros(1, 2, 4, 4), torch.zeros(2, 3, 3)
    convolve = CONVOLUTION.on["cpu"]
    for wrong in ((statistics[:, :1], weight), (statistics.half(), weight.half()), (statistics, weight[:, :2, :2]),
                  (statistics, weight.double()), (statistics, torch.zeros(2, 17, 17))):  # fmt: skip
        with pytest.raises(RuntimeError, match="channel_spatial_convolution: (statistics|weight): expected"):
            convolve(*wrong, None)
