"""The embedded backbone: weights that ship with the project, so that it works without a network."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from plants.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED: dict[str, Any] = {
    "backbone": "test_resnet",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bilinear",
    "size_px": 96,
    "file": "embedded.safetensors",
    "sha256": "12747b8527ab8380276f85bcca38863995de612af429bc3f5958672351503c09",
}
"""What the file is for; `jobs/weights/README.md` is its card. Mean and deviation are those of timm's `test_resnet`."""


def load_embedded(backbone: str) -> dict[str, Tensor]:
    """The embedded weights as a float32 state_dict, for `timm.create_model(backbone, num_classes=0)`.

    Raises InputError where `backbone` is not the one they are for, or the file is missing or has changed.
    """
    if backbone != EMBEDDED["backbone"]:
        raise InputError(
            f"the embedded weights are for {EMBEDDED['backbone']}, not {backbone}",
            field="trunks.weights",
            remedy=f"Set backbone: {EMBEDDED['backbone']}, or weights: hub, a path, or none",
        )
    from safetensors.torch import load

    data = read_embedded()
    return {name: value.float() if value.is_floating_point() else value for name, value in load(data).items()}


def read_embedded() -> bytes:
    """The bytes of the embedded file, digest checked. Raises InputError where it is missing or has changed."""
    file = resources.files(__name__) / EMBEDDED["file"]
    rebuild = "Reinstall crossplant, or rebuild: python -m jobs.pretrain --out jobs/weights/embedded.safetensors"
    if not file.is_file():
        raise InputError("the embedded weights are not installed", file=EMBEDDED["file"], remedy=rebuild)
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != EMBEDDED["sha256"]:
        raise InputError(
            f"has digest {digest[:12]}, expected {EMBEDDED['sha256'][:12]}", file=EMBEDDED["file"], remedy=rebuild
        )
    return data
