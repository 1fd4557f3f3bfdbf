"""Light and camera: turns a surface into the picture a station would take of it.

The same groove is a dark line under coaxial light, a bright one under a ring light, a pair of flanks under grazing
light, and a bright gap in front of a backlight, where `height` is thickness.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from plants.surfaces import Field, Rng, Surface


@dataclass(frozen=True, slots=True)
class Light:
    """Where light comes from. coaxial: slopes look dark; ring: slopes look bright; grazing: one flank each; back."""

    kind: Literal["coaxial", "ring", "grazing", "back"]
    angle: float = 0.0
    strength: float = 1.0


def shade(surface: Surface, *, light: Light) -> Field:
    """Intensity [H, W], about 0..1."""
    height, albedo = surface.height, surface.albedo
    if light.kind == "back":
        return np.asarray(albedo * np.exp(-1.1 * light.strength * np.maximum(height, 0.0)), dtype=np.float32)
    slope_x, slope_y = np.zeros_like(height), height[1:] - height[:-1]
    np.subtract(height[:, 1:], height[:, :-1], out=slope_x[:, :-1])
    if light.kind == "grazing":
        turn, strength = math.radians(light.angle), 0.8 * light.strength
        facing = slope_x
        facing *= np.float32(strength * math.cos(turn))
        slope_y *= np.float32(strength * math.sin(turn))
        facing[:-1] += slope_y
        facing += np.float32(0.5)
        np.clip(facing, 0.03, 1.2, out=facing)
        facing *= albedo
        return facing
    steep = slope_x**2
    steep[:-1] += slope_y**2
    mirror = np.exp(steep * np.float32(-2.5 * light.strength))
    if light.kind == "coaxial":
        return np.asarray(albedo * (0.15 + 0.65 * mirror), dtype=np.float32)
    return np.asarray(0.3 * albedo + 0.7 * (1.0 - mirror) * np.sqrt(np.maximum(albedo, 0.0)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Camera:
    """What a station's camera does to light. `tint` None is a mono camera; `turns` are quarter turns of its mount."""

    gain: float = 1.0
    gamma: float = 1.0
    blur_px: float = 0.0
    noise: float = 0.015
    tint: tuple[float, float, float] | None = None
    turns: int = 0
    falloff: float = 0.15


def expose(intensity: Field, rng: Rng, *, camera: Camera, grain: Field) -> npt.NDArray[np.uint8]:
    """The picture, uint8 [H, W] or [H, W, 3]. `grain` is unit noise, larger than the frame; a window of it is used."""
    high, wide = intensity.shape
    image = gaussian_filter(intensity, camera.blur_px, truncate=2.5) if camera.blur_px > 0 else intensity.copy()
    tilt_y, tilt_x = rng.uniform(-camera.falloff, camera.falloff, size=2)
    image *= (1.0 + tilt_y * np.linspace(-1, 1, high, dtype=np.float32))[:, None].astype(np.float32)
    gain = 255.0 * camera.gain * rng.uniform(0.93, 1.07)
    image *= (gain * (1.0 + tilt_x * np.linspace(-1, 1, wide, dtype=np.float32)))[None, :].astype(np.float32)
    top, left = (int(rng.integers(n - m + 1)) for n, m in zip(grain.shape, intensity.shape, strict=True))
    image += np.float32(255.0 * camera.noise) * grain[top : top + high, left : left + wide]
    np.clip(image, 0, 255, out=image)
    curve = 255 * (np.arange(256) / 255.0) ** camera.gamma
    grey = image.astype(np.uint8)
    if camera.tint is None:
        return np.asarray(np.clip(curve, 0, 255).astype(np.uint8)[grey])
    tint = np.asarray(camera.tint) * rng.uniform(0.97, 1.03, size=3)
    return np.asarray(np.clip(curve[:, None] * tint, 0, 255).astype(np.uint8)[grey])


def encode(pixels: npt.NDArray[np.uint8], *, suffix: str) -> bytes:
    """The file's bytes: PNG, or JPEG at quality 95."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if suffix == "png":
        image.save(buffer, format="PNG", compress_level=1)
    else:
        image.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()
