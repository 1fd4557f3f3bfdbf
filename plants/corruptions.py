"""What may befall a camera and its light, done to the inputs of a model: uint8 [N, S, S, 3] in and out. Pure.

For robustness suites: how much worse a model gets when the world does. The kinds follow Hendrycks and Dietterich,
Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, 2019; the strengths are milder and in
physical units, as a line is stopped long before a picture looks like ImageNet-C. Every input is changed by itself: of a
frame that is cut into tiles every tile is turned and covered. Not for training: `jobs.augment` draws views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels, float, np.random.Generator], npt.NDArray[np.floating]]
"""An input [S, S, 3], the strength and a source of randomness -> grey levels [S, S, 3], not yet rounded or clipped."""

COVERED_LEVEL = 40
"""Grey level of what covers a part of an occluded input: dirt, a cable, a hand."""


@dataclass(frozen=True)
class Corruption:
    """One kind of change at a few strengths, from mild to strong."""

    kind: str
    strengths: tuple[float, ...]
    words: str
    """What a strength means, to be filled in."""
    change: Change
    forbidden_by: str | None = None
    """The `forbid` of an environment that says that this cannot happen there."""

    def says(self, strength: float) -> str:
        """The strength in words."""
        return self.words.format(strength, 100 * strength)


def _scaled(image: Pixels, factor: float, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    return image * np.float32(factor)


def _blurred(image: Pixels, sigma_px: float, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)), dtype=np.float32)


def _noisy(image: Pixels, sigma_levels: float, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    noise = rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    return image + np.float32(sigma_levels) * noise


def _turned(image: Pixels, angle_deg: float, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """About its centre; what comes in at the corners is mirrored."""
    angle = np.deg2rad(angle_deg if rng.random() < 0.5 else -angle_deg)
    size = image.shape[0]
    rim, centre, cos, sin = size // 4, size / 2, float(np.cos(angle)), float(np.sin(angle))
    wide = Image.fromarray(np.pad(image, ((rim, rim), (rim, rim), (0, 0)), mode="symmetric"))
    from_x, from_y = rim + centre * (1 - cos + sin), rim + centre * (1 - sin - cos)
    affine = (cos, -sin, from_x, sin, cos, from_y)
    turned = wide.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(turned, dtype=np.float32)


def _covered(image: Pixels, area_share: float, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    high, wide = image.shape[:2]
    side = max(1, round((area_share * high * wide) ** 0.5))
    y, x = rng.integers(0, max(1, high - side + 1)), rng.integers(0, max(1, wide - side + 1))
    out = image.astype(np.float32)
    out[y : y + side, x : x + side] = COVERED_LEVEL
    return out


def _flat(image: Pixels, share: float, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    mean = image.mean(dtype=np.float32)
    found: npt.NDArray[np.floating] = mean + np.float32(share) * (image - mean)
    return found


CORRUPTIONS = (
    Corruption("dark", (0.8, 0.5), "{1:.0f} % of the grey level", _scaled, "brightness"),
    Corruption("bright", (1.25, 1.6), "{1:.0f} % of the grey level, clipped", _scaled, "brightness"),
    Corruption("low contrast", (0.7, 0.4), "{1:.0f} % of the contrast", _flat, "contrast"),
    Corruption("blur", (0.8, 1.6), "{0:g} px of the model's input (sigma)", _blurred),
    Corruption("noise", (6.0, 15.0), "{0:g} grey levels (sigma)", _noisy, "noise"),
    Corruption("rotation", (5.0, 15.0), "{0:g} degrees to either side", _turned, "rotate"),
    Corruption("occlusion", (0.04, 0.12), "{1:.0f} % of the input covered, dark", _covered),
)


def corrupted(images: Pixels, corruption: Corruption, *, strength: float, seed: int) -> Pixels:
    """The inputs [N, S, S, 3] after this has befallen each of them; the same for the same seed."""
    rng = np.random.default_rng(seed)
    out = np.empty_like(images)
    for i, image in enumerate(images):
        out[i] = np.clip(np.rint(corruption.change(image, strength, rng)), 0, 255).astype(np.uint8)
    return out
