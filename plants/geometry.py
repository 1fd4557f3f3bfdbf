"""What a frame is and how it becomes model inputs, environment by environment: `plants.views` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from plants.config import Config

Interpolation = Literal["bilinear", "bicubic"]
"""How a region is brought to the model's input size; a trunk's is what its weights were trained with."""
Polygon = tuple[tuple[FiniteFloat, FiniteFloat], ...]
"""x, y of its corners in pixels of the frame."""


def _polygons(given: Any) -> Any:
    """A list of polygons: a single one may stand for itself."""
    is_one = isinstance(given, Sequence) and all(
        isinstance(point, Sequence) and len(point) == 2 and all(isinstance(value, int | float) for value in point)
        for point in given
    )
    return [given] if given and is_one else given


Polygons = Annotated[tuple[Polygon, ...], BeforeValidator(_polygons)]


class Geometry(Config):
    """How a frame of one environment becomes model inputs. All sizes in pixels of the frame."""

    roi: tuple[int, int, int, int] | None = None
    """x0, y0, x1, y1 of the region that is judged; the rest is cut away."""
    mask: Polygons = ()
    """What is judged, where that is no rectangle; all else is painted grey, tiles with under 1 % of it left out."""
    ignore: Polygons = ()
    """What is not judged within that: clamps, labels, stamped dates."""
    fit: Literal["whole", "letterbox", "tiles"] = "letterbox"
    tile_px: int | None = Field(default=None, ge=16, le=4096)
    overlap_px: int = Field(default=0, ge=0)
    top_k: int = Field(default=1, ge=1)
    """How many of the most suspicious tiles are averaged into a frame's score."""
    bit_depth: Literal[8, 12, 16] = 8
    window: tuple[int, int] | None = None
    """The raw values that become 0 and 255; the whole range of `bit_depth` when absent."""
    min_defect_px: int | None = Field(default=None, ge=1)
    min_defect_mm: float | None = Field(default=None, gt=0)
    """The same on the part, where `px_per_mm` is known."""
    px_per_mm: float | None = Field(default=None, gt=0)

    @property
    def smallest_px(self) -> float | None:
        """The longer side of the smallest defect that must be found, where one is declared."""
        if self.min_defect_mm is not None and self.px_per_mm is not None:
            return self.min_defect_mm * self.px_per_mm
        return self.min_defect_px

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.fit == "tiles" and self.tile_px is None:
            raise ValueError("fit: tiles needs tile_px")
        if self.tile_px is not None and self.overlap_px >= self.tile_px:
            raise ValueError("overlap_px must be smaller than tile_px")
        if self.roi and not (0 <= self.roi[0] < self.roi[2] and 0 <= self.roi[1] < self.roi[3]):
            raise ValueError("roi is x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        polygons = (*self.mask, *self.ignore)
        if any(len(polygon) < 3 or min(min(point) for point in polygon) < 0 for polygon in polygons):
            raise ValueError(
                "mask and ignore are polygons of three corners or more, each [[x, y], [x, y], [x, y], ...] in pixels"
            )
        if self.min_defect_mm is not None and (self.px_per_mm is None or self.min_defect_px is not None):
            raise ValueError("min_defect_mm needs px_per_mm, and stands in place of min_defect_px")
        if self.window and not 0 <= self.window[0] < self.window[1] < 2**self.bit_depth:
            raise ValueError(f"window is low, high within 0..{2**self.bit_depth - 1}")
        return self


class Photometry(Config):
    """What light and camera did, undone before the trunk: `255 * (gain * x / 255 + offset) ** gamma`, clipped."""

    gain: float = Field(default=1.0, gt=0, le=10)
    offset: float = Field(default=0.0, ge=-1, le=1)
    gamma: float = Field(default=1.0, gt=0.1, le=10)


class Environment(Config):
    """A station with its camera and light."""

    geometry: Geometry = Geometry()
    photometry: Photometry = Photometry()
    forbid: tuple[Literal["flip", "rotate", "brightness", "contrast", "noise"], ...] = ()
    """Augmentations that are physically impossible here."""
