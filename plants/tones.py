"""How bright an environment's frames are, and the photometry that makes them as bright as another's.

Light and camera change tones; where they do, a model of one station is poor at the next. The tones of a frame are
quantiles of its values; of an environment, their medians over frames, so that defects and faulty frames count little.
Compare environments that show the same parts only: a dark product looks like a dim lamp.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from plants.geometry import Photometry
from plants.views import photometry_lut

Floats = npt.NDArray[np.float64]

SHARES = np.linspace(0.02, 0.98, 25)
SIDE_PX = 256
"""So many pixels of a side are enough for quantiles."""
GAP = 10.0
"""Grey levels between two environments, on average over the quantiles, from which photometry is offered."""
MIN_FRAMES = 20
"""Of each of the two environments: with 6 to 14 the tones of two halves of one lay up to 14 levels apart."""
NEUTRAL = 0.02
"""Weight of a photometry's own size beside one quantile's distance."""


def tones(pixels: npt.NDArray[np.uint8], *, roi: Sequence[int] | None = None) -> Floats:
    """The quantiles [25] of a frame uint8 [H, W] or [H, W, 3], all channels alike, 0..255."""
    x0, y0, x1, y1 = roi or (0, 0, pixels.shape[1], pixels.shape[0])
    part = pixels[y0:y1, x0:x1]
    step = max(1, -(-max(part.shape[:2]) // SIDE_PX))
    return np.asarray(np.quantile(part[::step, ::step], SHARES), dtype=np.float64)


def seen_by(values: Floats, photometry: Photometry) -> Floats:
    """What these grey values become by a photometry."""
    table = photometry_lut(photometry)
    return values if table is None else np.interp(values, np.arange(256), table.astype(np.float64))


def gap(a: Floats, b: Floats) -> float:
    """Mean distance of two environments' tones in grey levels."""
    return float(np.abs(a - b).mean())


def match(source: Floats, reference: Floats) -> Photometry:
    """The photometry that brings tones nearest to the reference's, by least squares over the quantiles.

    Gain and gamma can stand for one another where tones span little: of equal ones that nearest to none is taken.
    """

    def away(x: Floats) -> Floats:
        gain, offset, gamma = np.exp(x[0]), x[1], np.exp(x[2])
        rest = np.clip(gain * source / 255 + offset, 1e-6, 1) ** gamma - reference / 255
        return np.concatenate([rest, NEUTRAL * np.asarray(x)])

    starts = [(0.0, 0.0, at) for at in (-0.5, 0.0, 0.5)]
    bounds = (np.log(0.1), -1, np.log(0.2)), (np.log(10), 1, np.log(5))
    found = [least_squares(away, start, bounds=bounds) for start in starts]
    x = min(found, key=lambda one: float(one.cost)).x
    return Photometry(gain=_rounded(np.exp(x[0])), offset=_rounded(x[1]), gamma=_rounded(np.exp(x[2])))


def _rounded(value: float) -> float:
    return round(float(value), 3)
