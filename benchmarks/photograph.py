"""A real photograph, from a package that ships some: nothing is downloaded."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 224
# ImageNet's channel statistics, to which timm's and torchvision's models are accustomed.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def photograph() -> Tensor:
    """A cup of coffee, [3, 400, 600], 0 to 1."""
    from skimage import data

    return torch.from_numpy(data.coffee()).permute(2, 0, 1).float() / 255


def crop(left: float, size: int) -> Tensor:
    """A square of `size` pixels from the middle of the picture's height, `left` (0 to 1) of the way, scaled to SIZE."""
    picture = photograph()
    top, start = (picture.shape[1] - size) // 2, round(left * (picture.shape[2] - size))
    square = picture[None, :, top : top + size, start : start + size]
    return F.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True)[0].clamp(0, 1)


def batch(count: int) -> Tensor:
    """[count, 3, 224, 224], normalised: first the photograph's middle, then crops of it."""
    crops = [crop(0.5, 400)] + [crop(index / max(1, count - 2), 400 - 20 * index % 200) for index in range(count - 1)]
    images = torch.stack(crops)
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
