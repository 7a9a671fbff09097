"""Small modules in float32, and the fixture of tests/patching that gives classes back."""

from __future__ import annotations

import pytest
import torch
from patching.conftest import own_forwards, tiny_seresnet  # noqa: F401
from timm.layers.squeeze_excite import SEModule
from torch import nn


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_seresnet().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def se() -> nn.Module:
    torch.manual_seed(0)
    return SEModule(8, rd_channels=4).eval()


@pytest.fixture
def feature() -> torch.Tensor:
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(1))
