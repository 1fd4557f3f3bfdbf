"""Near duplicates: the same picture again after a crop, a small rotation, other compression or other brightness.

A copy that lies on both sides of a split flatters every figure; exact copies are found by their SHA-256 in
`plants.audit`. Two pictures of one material share their statistics but not their grain, so each candidate pair is laid
over the other and judged by how much of the overlap agrees, and by how much less it agrees with the other's mirror
images: brushing, weaves and fixtures agree with anything. Not for flips, quarter turns or crops below 80 % of a side,
and blind to pictures that hold nothing but noise or are mirror images of themselves.

Cost for N pictures: a thumbnail of 4 KiB each; products of 11 x [512, 63] by [63, N] for every 512 pictures, 1400 N^2
operations in all; at most `MAX_CANDIDATES` alignments a picture, 1 to 3 ms each, and three more a pair found. Memory:
7 KiB for every picture and blocks of 512 by N, so about 2 GiB for 100,000. Measured, one core: 10,000 pictures in 4 s
before alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from plants.errors import InputError

SIGNATURE = 2
"""Of what `signature` does: kept ones of another number are made anew."""

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

SIDE_PX = 64
SHADING_PX = 8.0
MAX_SPREADS = 4.0
"""How far, in spreads (MAD), a pixel may lie from the shading around it: grain decides, not a black corner."""
NUM_WAVES = 8
"""Cosines along each side of a descriptor; the signs of the same 63 values are the perceptual hash known as pHash."""
WINDOWS = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.9), (-0.1, -0.1, 0.9), (-0.1, 0.1, 0.9), (0.1, -0.1, 0.9), (0.1, 0.1, 0.9))
"""Centre y, centre x and half side of the parts of a picture, in [-1, 1], that another picture may be a copy of."""
MIN_LIKENESS = 0.5
MAX_CANDIDATES = 12
MIN_CONTRAST = 1.0
"""Standard deviation of a thumbnail in grey levels below which a picture holds nothing to be recognised by."""
MIN_SCORE = 0.55
"""Worth a look: how many were right where copies were planted stands in the README under Decisions."""
SURE_SCORE = 0.7
"""Enough to act upon without a look: chains of less sure ones tied 177 of 1,074 magnetic tiles together, not 55."""
MIN_MARGIN = 0.2
"""How much less a copy must agree with a mirrored one. Without it 158 pairs of different brushed parts were named among
400, with it 26; planted copies lost at most 3 %."""
WEAVE, WEAVE_CONTRAST, WEAVE_BLUR_PX = 0.5, 12.0, 1.6
"""Contrast of the coarsest level over that of the finest below which, and grey levels of the finest above which,
structure near the sampling limit rules, which no alignment can follow: it is blurred away."""
LEVELS = ((16, 6, 0.1), (32, 8, 0.2), (64, 6, 0.0))
"""Side in px of a level of the alignment, its steps, and the agreement without which a pair goes no further."""
MIN_CELL_CONTRAST, MIN_CELLS = 1.0, 6
_PRIOR, _BLOCK, _BATCH = 20, 512, 256


class Pair(NamedTuple):
    """Two pictures of which one is a copy of the other or of a part of it."""

    i: int
    j: int
    score: float
    """Share of agreement over the overlap after alignment, in [0, 1]."""


def signature(image: Pixels) -> Pixels:
    """The grey thumbnail uint8 [64, 64] by which a picture uint8 [H, W] or [H, W, 3] is recognised, sides squeezed."""
    grey = Image.fromarray(image).convert("L")
    small = np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), dtype=np.float32)
    weight = np.ones_like(small)
    for _ in range(3):
        blurred = ndimage.gaussian_filter(np.stack([small * weight, weight]), (0, SHADING_PX, SHADING_PX))
        shading = blurred[0] / np.maximum(blurred[1], 1e-6)
        grain = small - shading
        limit = MAX_SPREADS * max(1.4826 * float(np.median(np.abs(grain))), 0.5)
        weight = np.asarray(np.abs(grain) <= limit, dtype=np.float32)
    small = shading + np.clip(grain, -limit, limit)
    coarse, fine = (float(_level(small[None], size=size).std()) for size in (LEVELS[0][0], LEVELS[-1][0]))
    if coarse < WEAVE * fine and fine >= WEAVE_CONTRAST:
        small = ndimage.gaussian_filter(small, WEAVE_BLUR_PX)
    return np.asarray(np.clip(np.rint(small), 0, 255), dtype=np.uint8)


def near_duplicates(
    signatures: Sequence[Pixels] | Pixels,
    *,
    features: Floats | None = None,
    min_score: float = MIN_SCORE,
    num_asked: int | None = None,
) -> list[Pair]:
    """Every pair found whose pictures agree after alignment, i < j, in order.

    `features` are pooled features of a network, float32 [N, F]: their nearest neighbours are candidates as well.
    `num_asked`: Only pairs with one of the first so many pictures, all when absent.

    Raises:
        InputError: when there are not as many rows of features as pictures.
    """
    thumbs = np.asarray(signatures, dtype=np.uint8).reshape(-1, SIDE_PX, SIDE_PX)
    if features is not None and len(features) != len(thumbs):
        raise InputError(f"{len(features)} rows of features for {len(thumbs)} pictures")
    if len(thumbs) < 2:
        return []
    pairs = _candidates(thumbs, features=features, num_asked=len(thumbs) if num_asked is None else num_asked)
    found: list[tuple[list[int], float]] = []
    for batch in np.array_split(pairs, -(-len(pairs) // _BATCH) or 1):
        scores = _scores(thumbs, pairs=batch)
        alike = scores >= min_score
        batch, scores = batch[alike], scores[alike]
        is_own = scores >= _mirrored(thumbs, pairs=batch) + MIN_MARGIN
        found += zip(np.sort(batch[is_own], axis=1).tolist(), scores[is_own].tolist(), strict=True)
    return sorted(Pair(i, j, round(score, 3)) for (i, j), score in found)


# --- candidates ------------------------------------------------------------------------------------------------------


def _candidates(thumbs: Pixels, *, features: Floats | None, num_asked: int) -> Ints:
    """Pairs [P, 2], each once: a picture, and one that it may be a part of."""
    described = _described(thumbs)
    blocks = range(0, num_asked, _BLOCK)
    found = [_alike(described, first=first) for first in blocks]
    if features is not None:
        found += [_alike(_unit(features)[None], first=first) for first in blocks]
    pairs = np.concatenate(found)
    pairs = pairs[pairs.min(axis=1) < num_asked]
    _, once = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
    return np.asarray(pairs[once])


def _described(thumbs: Pixels) -> Floats:
    """Unit descriptors float32 [windows, N, 63]; zero where a picture holds nothing."""
    raw = np.stack([_waves(thumbs, window=window) for window in WINDOWS])
    n = len(thumbs)
    order = np.add.outer(np.arange(NUM_WAVES) ** 2, np.arange(NUM_WAVES) ** 2).ravel()[1:]
    mean = raw[0].sum(axis=0) / (n + _PRIOR)
    square = ((raw[0] - mean) ** 2).mean(axis=0)
    prior = (1 / order) * square.sum() / (1 / order).sum()
    spread = np.sqrt((n * square + _PRIOR * prior) / (n + _PRIOR)) + 1e-6
    scaled = (raw - mean) / spread
    contrast = np.concatenate([block.std(axis=(1, 2)) for block in np.array_split(thumbs, -(-n // _BLOCK))])
    scaled[:, contrast < MIN_CONTRAST] = 0
    return _unit(scaled)


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-9), dtype=np.float32)


def _waves(thumbs: Pixels, *, window: tuple[float, float, float]) -> Floats:
    y, x, half = window
    down, across = _cosines(y, half=half), _cosines(x, half=half)
    parts = [down @ block.astype(np.float32) @ across.T for block in np.array_split(thumbs, -(-len(thumbs) // _BLOCK))]
    return np.concatenate(parts).reshape(len(thumbs), -1)[:, 1:]


def _cosines(centre: float, *, half: float) -> Floats:
    """Cosines over a window [NUM_WAVES, SIDE_PX]; all but the first sum to zero."""
    u = (_axis(SIDE_PX) - centre) / half
    inside = np.clip((1 - np.abs(u)) * half * SIDE_PX / 2 + 0.5, 0, 1)
    waves = np.cos(np.pi * np.arange(NUM_WAVES)[:, None] * (u + 1) / 2) * inside
    waves[1:] -= inside * waves[1:].sum(axis=1, keepdims=True) / inside.sum()
    return np.asarray(waves / inside.sum(), dtype=np.float32)


def _alike(described: Floats, *, first: int) -> Ints:
    """The most alike others of a block of pictures, whichever of the two is the part and whichever the whole."""
    rows, whole = slice(first, first + _BLOCK), described[0]
    theirs_larger = whole[rows] @ whole.T
    mine_larger = theirs_larger.copy()
    for parts in described[1:]:
        np.maximum(theirs_larger, whole[rows] @ parts.T, out=theirs_larger)
        np.maximum(mine_larger, parts[rows] @ whole.T, out=mine_larger)
    like = np.maximum(theirs_larger, mine_larger)
    like[np.arange(len(like)), np.arange(len(like)) + first] = -1
    k = min(MAX_CANDIDATES, like.shape[1] - 1)
    top = np.argpartition(-like, k - 1, axis=1)[:, :k]
    r, c = np.nonzero(np.take_along_axis(like, top, axis=1) >= MIN_LIKENESS)
    mine, theirs = r + first, top[r, c]
    is_whole = mine_larger[r, theirs] > theirs_larger[r, theirs]
    return np.stack([np.where(is_whole, theirs, mine), np.where(is_whole, mine, theirs)], axis=1)


# --- alignment -------------------------------------------------------------------------------------------------------


def _axis(size: int) -> npt.NDArray[np.float64]:
    return (np.arange(size) + 0.5) * 2 / size - 1


def _scores(thumbs: Pixels, *, pairs: Ints) -> Floats:
    """The agreement of each pair [P] after alignment from coarse to fine; 0 where the coarse already says no."""
    scores, alive = np.zeros(len(pairs), dtype=np.float32), np.arange(len(pairs))
    agreement = scores
    starts = [np.array([[half, 0, y], [0, half, x]]) for y, x, half in WINDOWS]
    for size, steps, enough in LEVELS:
        if not len(alive):
            break
        fixed, moving = (_level(thumbs[pairs[alive, side]].astype(np.float32), size=size) for side in (0, 1))
        warps = np.stack([_aligned(fixed, moving, warp=start, steps=steps) for start in starts])
        agreements = np.stack([_agreement(fixed, moving, warp=warp) for warp in warps])
        best, which = agreements.argmax(axis=0), np.arange(len(alive))
        warp, agreement = warps[best, which], agreements[best, which]
        kept = agreement >= enough
        alive, starts, agreement = alive[kept], [warp[kept]], agreement[kept]
    scores[alive] = agreement
    return scores


def _mirrored(thumbs: Pixels, *, pairs: Ints) -> Floats:
    """The best agreement of each pair [P] when the second is mirrored, either way or both."""
    fixed, moving = thumbs[pairs[:, 0]], thumbs[pairs[:, 1]]
    places = np.arange(2 * len(pairs)).reshape(2, -1).T
    flips = (moving[:, ::-1], moving[:, :, ::-1], moving[:, ::-1, ::-1])
    return np.asarray(np.max([_scores(np.concatenate([fixed, flip]), pairs=places) for flip in flips], axis=0))


def _level(thumbs: Floats, *, size: int) -> Floats:
    """Thumbnails of `size` px without their shading."""
    k = SIDE_PX // size
    small = thumbs.reshape(len(thumbs), size, k, size, k).mean(axis=(2, 4))
    return np.asarray(small - ndimage.gaussian_filter(small, (0, size / 8, size / 8), mode="nearest"))


def _sampled(moving: Floats, *, warp: npt.NDArray[np.float64]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The moving pictures [P, S, S] as they lie over the fixed ones, and where they do."""
    num, size = moving.shape[:2]
    grid = np.stack([*(g.ravel() for g in np.meshgrid(_axis(size), _axis(size), indexing="ij")), np.ones(size * size)])
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


def _aligned(fixed: Floats, moving: Floats, *, warp: npt.NDArray[np.float64], steps: int) -> npt.NDArray[np.float64]:
    """The affine maps [P, 2, 3] after some steps of Gauss-Newton.

    Source: the inverse compositional algorithm, Baker & Matthews, IJCV 56(3), 2004.
    """
    num, size = fixed.shape[:2]
    warp = np.broadcast_to(warp, (num, 2, 3))
    flat = fixed.reshape(num, -1)
    dy, dx = (g.reshape(num, -1) * (size / 2) for g in np.gradient(fixed, axis=(1, 2)))
    y, x = (g.ravel().astype(np.float32) for g in np.meshgrid(_axis(size), _axis(size), indexing="ij"))
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


def _agreement(fixed: Floats, moving: Floats, *, warp: npt.NDArray[np.float64]) -> Floats:
    """The lower quartile [P] of the correlations in 4 x 4 cells of the overlap: most of a copy agrees."""
    num, size = fixed.shape[:2]
    values, inside = _sampled(moving, warp=warp)
    cells = (num, 4, size // 4, 4, size // 4)
    f, v, weight = (one.reshape(cells).astype(np.float32) for one in (fixed, values, inside))
    n = weight.sum(axis=(2, 4), keepdims=True)
    f, v = ((one - (one * weight).sum(axis=(2, 4), keepdims=True) / np.maximum(n, 1)) * weight for one in (f, v))
    powers = [np.square(one).sum(axis=(2, 4)) for one in (f, v)]
    known = n[:, :, 0, :, 0] > 0.5 * (size // 4) ** 2
    textured = np.maximum(*powers) >= MIN_CELL_CONTRAST**2 * n[:, :, 0, :, 0]
    correlation = (f * v).sum(axis=(2, 4)) / np.maximum(np.sqrt(powers[0] * powers[1]), 1e-6)
    ranked = np.sort(np.where(known & textured, correlation, np.inf).reshape(num, -1), axis=1)
    counted = (known & textured).reshape(num, -1).sum(axis=1)
    quartile = ranked[np.arange(num), np.minimum(counted // 4, 15)]
    return np.asarray(np.where(counted >= MIN_CELLS, quartile, 0), dtype=np.float32)
