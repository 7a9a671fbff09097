"""Stand-ins for the modules of other projects: their children and keys, and their maths in other words.

Those of packages are in modules of the packages' names, by which `patch` knows them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from . import ai_med, copied, official


def _module(name: str, file: str) -> ModuleType:
    """A file of this folder under the name of a module, which need not be installed and is not imported."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ultralytics = _module("ultralytics.nn.modules.conv", "ultralytics.py")
smp = _module("segmentation_models_pytorch.base.modules", "smp.py")
fvcore = _module("fvcore.nn.squeeze_excitation", "fvcore.py")
monai = _module("monai.networks.blocks.squeeze_and_excitation", "monai.py")

__all__ = ["ai_med", "copied", "fvcore", "monai", "official", "smp", "ultralytics", "with_ties"]


def with_ties(*shape):
    """A map in which many elements are equal, as after a ReLU, and so are maxima of planes and of pixels."""
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=generator)).round().relu() / 2
