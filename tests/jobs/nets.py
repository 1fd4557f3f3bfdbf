"""Backbones with norms as training leaves them: at random initialisation layers do nothing and parity is empty."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from jobs.backbone import load_backbone
from jobs.model import CutModel
from plants.plant import Trunk

WEIGHTS = Path(os.environ.get("CROSSPLANT_WEIGHTS", "../shared/weights"))
MOBILENET_035 = WEIGHTS / "mobilenetv2_035.keras_in1k_notop.safetensors"


@torch.no_grad()
def randomise(net: torch.nn.Module, *, seed: int = 0) -> None:
    """Scales, biases and statistics of every layer are away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and (value.ndim <= 1 or "gamma" in name):
            u = torch.rand(value.shape, generator=generator)
            value.copy_((u - 0.5) * 0.4 if "bias" in name or "mean" in name else 0.5 + u)


def model_of(backbone: str = "test_resnet", *, cuts=(0, 1, 2), size_px: int = 32, **options) -> CutModel:
    """A backbone with random weights and randomised norms, cut."""
    trunk = Trunk(backbone=backbone, weights="none", size_px=size_px, cuts=cuts, options=options)
    loaded = load_backbone(trunk)
    randomise(loaded.net)
    return CutModel(trunk, loaded)


def images(num: int = 3, *, size_px: int = 32, seed: int = 0) -> np.ndarray:
    """Noise, uint8 [num, S, S, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)
