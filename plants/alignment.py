"""Two thumbnails laid over one another, and how much of the overlap agrees. For `plants.duplicates`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Warps = npt.NDArray[np.float64]
"""[P, 2, 3]: from y, x, 1 in the fixed picture to y, x in the moving one, both in [-1, 1]."""

SIDE_PX = 64
LEVELS = ((16, 6, 0.1), (32, 8, 0.2), (SIDE_PX, 6, 0.0))
"""Side in px of a level of the alignment, its steps, and the agreement without which a pair goes no further."""
MIN_CELL_CONTRAST, MIN_GRAIN_CONTRAST, MIN_CELLS = 1.0, 0.5, 6
"""Grey levels a cell must hold, with and without what runs straight through it, and how many cells must."""
_ROWS_AND_COLUMNS = ((4,), (2,)) * 2


def laid_over(
    thumbs: Pixels, *, pairs: Ints, windows: Sequence[tuple[float, float, float]]
) -> tuple[Floats, Floats, Warps]:
    """Agreement [P], grain [P] and warp of pairs [P, 2] of thumbnails [N, 64, 64], the first of each pair held fixed.

    Agreement and grain are 0 where a coarse level already says no. windows: Centre y, x and half side, in [-1, 1], of
    the part of the second picture from which alignment starts; the best of all goes on.
    """
    scores, alive = np.zeros((2, len(pairs)), dtype=np.float32), np.arange(len(pairs))
    warps = np.tile(np.eye(2, 3), (len(pairs), 1, 1))
    starts = [np.array([[half, 0, y], [0, half, x]]) for y, x, half in windows]
    for size, steps, enough in LEVELS:
        if not len(alive):
            break
        fixed, moving = (level(thumbs[pairs[alive, side]], size=size) for side in (0, 1))
        tried = np.stack([_aligned(fixed, moving, warp=start, steps=steps) for start in starts])
        agreements = np.stack([_agreement(fixed, moving, warp=warp) for warp in tried])
        best, which = agreements.argmax(axis=0), np.arange(len(alive))
        warp, agreement = tried[best, which], agreements[best, which]
        if size == SIDE_PX:
            scores[:, alive], warps[alive] = (agreement, _grain(fixed, moving, warp=warp)), warp
        kept = agreement >= enough
        alive, starts = alive[kept], [warp[kept]]
    return scores[0], scores[1], warps


def inverted(warps: Warps) -> Warps:
    """The same places from the moving picture to the fixed one."""
    square = np.concatenate([warps, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(warps), 1, 3))], axis=1)
    return np.asarray(np.linalg.inv(square)[:, :2])


def in_common(thumbs: Pixels, *, fixed: int, crowd: Ints) -> tuple[Floats, float]:
    """What a thumbnail of [N, 64, 64] shares with most of a crowd laid over it, [64 * 64], and how like that it is.

    Laid over one another to a pixel or so: the finest level takes most of the time and is left out.
    """
    warps = np.broadcast_to(np.eye(2, 3), (len(crowd), 2, 3))
    for size, steps, _ in LEVELS[:-1]:
        mine, theirs = (level(thumbs[at], size=size) for at in ([fixed], crowd))
        warps = _aligned(np.broadcast_to(mine, theirs.shape), theirs, warp=warps, steps=steps)
    own = level(thumbs[[fixed]], size=SIDE_PX).reshape(1, -1)
    values, inside = _sampled(level(thumbs[crowd], size=SIDE_PX), warp=warps)
    common = np.median(np.where(inside, _scaled(values, inside, like=own), own), axis=0)
    length = np.linalg.norm(own) * np.linalg.norm(common)
    return common, float(own[0] @ common / max(length, 1e-6))


def grain_beside(thumbs: Pixels, *, fixed: int, moving: Ints, warps: Warps, common: Floats) -> Floats:
    """The grain [P] of a thumbnail and of each that lies over it, without what is common [64 * 64]."""
    own, many = level(thumbs[[fixed]], size=SIDE_PX).reshape(1, -1), level(thumbs[moving], size=SIDE_PX)
    values, inside = _sampled(many, warp=warps)
    rests = own - common, _scaled(values, inside, like=own) - common
    return _mean(_correlations(*rests, inside, without=_ROWS_AND_COLUMNS, min_contrast=MIN_GRAIN_CONTRAST))


def _scaled(values: Floats, inside: npt.NDArray[np.bool_], *, like: Floats) -> Floats:
    """Values [P, S * S] with the contrast of others."""
    contrast = values.std(axis=1, where=inside, keepdims=True)
    return np.asarray(values * (like.std() / np.maximum(contrast, 1e-6)), dtype=np.float32)


def level(thumbs: Pixels, *, size: int) -> Floats:
    """Thumbnails of `size` px without their shading."""
    k = SIDE_PX // size
    small = thumbs.astype(np.float32).reshape(len(thumbs), size, k, size, k).mean(axis=(2, 4))
    return np.asarray(small - ndimage.gaussian_filter(small, (0, size / 8, size / 8), mode="nearest"))


def axis(size: int) -> npt.NDArray[np.float64]:
    """Middles of `size` pixels in [-1, 1]."""
    return (np.arange(size) + 0.5) * 2 / size - 1


def _sampled(moving: Floats, *, warp: Warps) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The moving pictures [P, S, S] as they lie over the fixed ones, and where they do."""
    num, size = moving.shape[:2]
    grid = np.stack([*(g.ravel() for g in np.meshgrid(axis(size), axis(size), indexing="ij")), np.ones(size * size)])
    place = (warp @ grid).astype(np.float32)
    inside = (np.abs(place) <= 1).all(axis=1)
    at = np.clip((place + 1) * (size / 2) - 0.5, 0, size - 1.001)
    corner = at.astype(np.int32)
    y, x = (at - corner).transpose(1, 0, 2)
    first = corner[:, 0] * size + corner[:, 1] + (np.arange(num, dtype=np.int32) * size * size)[:, None]
    flat = moving.ravel()
    above = flat[first] * (1 - x) + flat[first + 1] * x
    below = flat[first + size] * (1 - x) + flat[first + size + 1] * x
    return above * (1 - y) + below * y, inside


def _aligned(fixed: Floats, moving: Floats, *, warp: Warps, steps: int) -> Warps:
    """The affine maps [P, 2, 3] after some steps of Gauss-Newton.

    Source: the inverse compositional algorithm, Baker & Matthews, IJCV 56(3), 2004.
    """
    num, size = fixed.shape[:2]
    warp = np.broadcast_to(warp, (num, 2, 3))
    flat = fixed.reshape(num, -1)
    dy, dx = (g.reshape(num, -1) * (size / 2) for g in np.gradient(fixed, axis=(1, 2)))
    y, x = (g.ravel().astype(np.float32) for g in np.meshgrid(axis(size), axis(size), indexing="ij"))
    steep = np.stack([dy * y, dy * x, dy, dx * y, dx * x, dx], axis=1).astype(np.float32)
    hessian = (steep @ steep.transpose(0, 2, 1)).astype(np.float64)
    hessian += np.eye(6) * (1e-3 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] / 6 + 1e-9)
    inverse = np.linalg.inv(hessian)
    for _ in range(steps):
        values, inside = _sampled(moving, warp=warp)
        weight = inside.astype(np.float32)
        n = np.maximum(weight.sum(axis=1, keepdims=True), 1)
        v = (values - (values * weight).sum(axis=1, keepdims=True) / n) * weight
        f = (flat - (flat * weight).sum(axis=1, keepdims=True) / n) * weight
        gain = np.sqrt((f * f).sum(axis=1, keepdims=True) / np.maximum((v * v).sum(axis=1, keepdims=True), 1e-9))
        step = inverse @ (steep @ (gain * v - f)[:, :, None])
        change = np.zeros((num, 3, 3))
        change[:, :2] = np.clip(step, -0.2, 0.2).reshape(num, 2, 3)
        warp = warp @ np.linalg.inv(np.eye(3) + change)
        warp = np.clip(warp, [[0.6, -0.3, -0.4], [-0.3, 0.6, -0.4]], [[1.6, 0.3, 0.4], [0.3, 1.6, 0.4]])
    return warp


def _agreement(fixed: Floats, moving: Floats, *, warp: Warps) -> Floats:
    """The lower quartile [P] of the cells' correlations: most of a copy agrees."""
    found = _correlations(fixed, *_sampled(moving, warp=warp), without=((2, 4),), min_contrast=MIN_CELL_CONTRAST)
    counted = np.isfinite(found).sum(axis=1)
    quartile = np.sort(found, axis=1)[np.arange(len(found)), np.minimum(counted // 4, 15)]
    return np.asarray(np.where(counted >= MIN_CELLS, quartile, 0), dtype=np.float32)


def _grain(fixed: Floats, moving: Floats, *, warp: Warps) -> Floats:
    """The mean [P] of the cells' correlations without the means of their rows and columns."""
    sampled = _sampled(moving, warp=warp)
    return _mean(_correlations(fixed, *sampled, without=_ROWS_AND_COLUMNS, min_contrast=MIN_GRAIN_CONTRAST))


def _mean(correlations: Floats) -> Floats:
    counted = np.isfinite(correlations)
    mean = np.where(counted, correlations, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return np.asarray(np.where(counted.sum(axis=1) >= MIN_CELLS, mean, 0), dtype=np.float32)


def _correlations(
    fixed: Floats,
    values: Floats,
    inside: npt.NDArray[np.bool_],
    *,
    without: Sequence[tuple[int, ...]],
    min_contrast: float,
) -> Floats:
    """Correlations in 4 x 4 cells of the overlap [P, 16], infinite where too little is known or to be seen.

    without: Axes of [P, 4, S/4, 4, S/4] whose means are taken away, one after the other.
    """
    num = len(values)
    k = math.isqrt(values.shape[1]) // 4
    f, v, weight = (one.reshape(-1, 4, k, 4, k).astype(np.float32) for one in (fixed, values, inside))
    for axes in without:
        n = np.maximum(weight.sum(axis=axes, keepdims=True), 1)
        f, v = ((one - (one * weight).sum(axis=axes, keepdims=True) / n) * weight for one in (f, v))
    powers, n = [np.square(one).sum(axis=(2, 4)) for one in (f, v)], weight.sum(axis=(2, 4))
    is_seen = (n > 0.5 * k**2) & (np.maximum(*powers) >= min_contrast**2 * n)
    correlation = (f * v).sum(axis=(2, 4)) / np.maximum(np.sqrt(powers[0] * powers[1]), 1e-6)
    return np.asarray(np.where(is_seen, correlation, np.inf).reshape(num, -1), dtype=np.float32)
