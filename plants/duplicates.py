"""Near duplicates: the same picture again after a crop, a small rotation, other compression or other brightness.

A copy that lies on both sides of a split flatters every figure; exact copies are found by their SHA-256 in
`plants.audit`. Two pictures of one material share their statistics but not their grain, so each candidate pair is laid
over the other and judged by how much of the overlap agrees, with and without what runs straight through it: brushing,
threads and the edges of a fixture agree with anything. Not for flips, quarter turns or crops below 80 % of a side, and
blind to pictures that hold nothing but noise, or nothing but straight lines.

Parts of one print or shape that outshines their grain are told apart by what is left without it. Where there are fewer
than about 15 of them that is not known, and they may be taken for copies; more than a dozen copies of one picture are
taken for such parts, unless their signatures are equal.

Networks' features, which other tools choose candidates by, are not asked: of 1,080 copies planted at nine plants the
signs of the thumbnails left out 4, and what decides is the alignment.

Cost for N pictures: a thumbnail of 4 KiB each; products of 11 x [512, 63] by [63, N] for every 512 pictures, 1400 N^2
operations in all; at most two times `MAX_CANDIDATES` alignments a picture, 1 to 3 ms each, and 15 ms for every picture
of a pair. Memory: 4 KiB for every picture, 1.5 KiB for its descriptors and some times that while they are made: 1.4 GB
for 100,000. Measured, one core, real grain: 512 asked about among 100,000 in 34 s, 6 s of it before alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from plants.alignment import (
    LEVELS,
    SIDE_PX,
    Floats,
    Ints,
    Pixels,
    Warps,
    axis,
    grain_beside,
    in_common,
    inverted,
    laid_over,
    level,
)

SIGNATURE = 3
"""Of what `signature` does: kept ones of another number are made anew."""

SHADING_PX = 8.0
MAX_SPREADS = 4.0
"""How far, in spreads (MAD), a pixel may lie from the shading around it: grain decides, not a black corner."""
MIN_SPREAD, MAX_STRETCH = 8.0, 8.0
"""Grey levels to which fainter grain is stretched, as it would be lost in rounding, and by how much at most."""
NUM_WAVES = 8
"""Cosines along each side of a descriptor; the signs of the same 63 values are the perceptual hash known as pHash."""
WINDOWS = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.9), (-0.1, -0.1, 0.9), (-0.1, 0.1, 0.9), (0.1, -0.1, 0.9), (0.1, 0.1, 0.9))
"""Centre y, centre x and half side of the parts of a picture, in [-1, 1], that another picture may be a copy of."""
MIN_LIKENESS = 0.5
MAX_CANDIDATES = 12
MIN_CONTRAST = 1.0
"""Standard deviation of a thumbnail in grey levels below which a picture holds nothing to be recognised by."""
MIN_SCORE = 0.55
"""How many were right where copies were planted stands in the README under Decisions."""
MIN_GRAIN = 0.45
"""Agreement without what runs straight. 98 % of planted copies had 0.53 or more (90 % of brushed ones), 98 % of other
pairs 0.4 or less."""
CROWD, MIN_CROWD = 16, 5
"""Pictures that tell what a picture shares with others like it, and how few still tell it."""
WEAVE, WEAVE_CONTRAST, WEAVE_BLUR_PX = (0.7, 0.3), (8.0, 16.0), 1.6
"""Contrast of the coarsest level over that of the finest, and grey levels of the finest, from where to where structure
near the sampling limit, which no alignment can follow, is more and more blurred: a copy as much as its original."""
_PRIOR, _BLOCK, _BATCH = 20, 512, 256
_CELLS = 1 << 24
"""Pictures of a block times all pictures, at most: 64 MiB for each product of descriptors."""


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
    grain = np.clip(grain, -limit, limit)
    small = shading + grain * np.clip(MIN_SPREAD / max(float(grain.std()), 1e-6), 1, MAX_STRETCH)
    coarse, fine = (float(level(small[None], size=size).std()) for size in (LEVELS[0][0], LEVELS[-1][0]))
    share = np.interp(-coarse / max(fine, 1e-6), np.negative(WEAVE), (0, 1)) * np.interp(fine, WEAVE_CONTRAST, (0, 1))
    small += share * (ndimage.gaussian_filter(small, WEAVE_BLUR_PX) - small)
    return np.asarray(np.clip(np.rint(small), 0, 255), dtype=np.uint8)


def near_duplicates(signatures: Sequence[Pixels] | Pixels, *, num_asked: int | None = None) -> list[Pair]:
    """Every pair found whose pictures agree after alignment, i < j, in order.

    num_asked: Only pairs with one of the first so many pictures, all when absent.
    """
    thumbs = np.asarray(signatures, dtype=np.uint8).reshape(-1, SIDE_PX, SIDE_PX)
    if len(thumbs) < 2:
        return []
    pairs = _candidates(thumbs, num_asked=len(thumbs) if num_asked is None else num_asked)
    batches = np.array_split(pairs, -(-len(pairs) // _BATCH) or 1)
    laid = [_laid(thumbs, pairs=batch) for batch in batches]
    scores, grain, warps = (np.concatenate(column) for column in zip(*laid, strict=True))
    kept = _margin(scores, grain) >= 1
    if not kept.any():
        return []
    pairs, scores, warps = pairs[kept], scores[kept], warps[kept]
    is_same = (thumbs[pairs[:, 0]] == thumbs[pairs[:, 1]]).all(axis=(1, 2))
    own = is_same | _own(thumbs, pairs=pairs, warps=warps)
    found = zip(np.sort(pairs[own], axis=1).tolist(), scores[own].tolist(), strict=True)
    return sorted(Pair(i, j, round(score, 3)) for (i, j), score in found)


def _laid(thumbs: Pixels, *, pairs: Ints) -> tuple[Floats, Floats, Warps]:
    """Agreement, grain and warp of pairs; where the first cannot be laid over the second, the second over the first."""
    scores, grain, warps = laid_over(thumbs, pairs=pairs, windows=WINDOWS)
    again = np.flatnonzero((scores < MIN_SCORE) | (grain < MIN_GRAIN))
    others = laid_over(thumbs, pairs=pairs[again, ::-1], windows=WINDOWS)
    better = _margin(*others[:2]) > _margin(scores[again], grain[again])
    at = again[better]
    scores[at], grain[at], warps[at] = others[0][better], others[1][better], inverted(others[2][better])
    return scores, grain, warps


def _margin(scores: Floats, grain: Floats) -> Floats:
    """At least 1 where both suffice."""
    return np.asarray(np.minimum(scores / MIN_SCORE, grain / MIN_GRAIN), dtype=np.float32)


def _own(thumbs: Pixels, *, pairs: Ints, warps: Warps) -> npt.NDArray[np.bool_]:
    """Which pairs [P] agree also in what is theirs alone, not in what most pictures like them show.

    Judged on that picture of the two which is more like the others: a crop lies on none of them.
    """
    grain, like = np.ones((2, len(pairs)), dtype=np.float32), np.zeros((2, len(pairs)), dtype=np.float32)
    for i, crowd in _crowds(thumbs, pairs=pairs).items():
        common, likeness = in_common(thumbs, fixed=i, crowd=crowd)
        for side in (0, 1):
            places = np.flatnonzero(pairs[:, side] == i)
            for at in (places[first : first + _BATCH] for first in range(0, len(places), _BATCH)):
                laid = warps[at] if side == 0 else inverted(warps[at])
                others = pairs[at, 1 - side]
                grain[side, at] = grain_beside(thumbs, fixed=i, moving=others, warps=laid, common=common)
                like[side, at] = likeness
    return np.asarray(np.where(like[0] >= like[1], grain[0], grain[1]) >= MIN_GRAIN)


def _crowds(thumbs: Pixels, *, pairs: Ints) -> dict[int, Ints]:
    """The others most like each picture of a pair, at the coarsest level; of pictures that have enough.

    Without those it is paired with, lest copies be their own crowd, unless these are as many as copies never are.
    """
    blocks = np.array_split(thumbs, -(-len(thumbs) // _BLOCK))
    coarse = _unit(np.concatenate([level(block, size=LEVELS[0][0]) for block in blocks]).reshape(len(thumbs), -1))
    found: dict[int, Ints] = {}
    for i in np.unique(pairs).tolist():
        like = coarse @ coarse[i]
        like[i] = -2
        is_mine = (pairs == i).any(axis=1)
        if is_mine.sum() < MAX_CANDIDATES:
            like[pairs[is_mine].ravel()] = -2
        crowd = np.argpartition(-like, min(CROWD, len(like) - 1))[:CROWD]
        crowd = crowd[like[crowd] > -2]
        if len(crowd) >= MIN_CROWD:
            found[i] = crowd
    return found


# --- candidates ------------------------------------------------------------------------------------------------------


def _candidates(thumbs: Pixels, *, num_asked: int) -> Ints:
    """Pairs [P, 2], each once: a picture, and one that it may be a part of."""
    described = _described(thumbs)
    step = max(1, min(_BLOCK, _CELLS // len(thumbs)))
    blocks = [slice(first, min(first + step, num_asked)) for first in range(0, num_asked, step)]
    pairs = np.concatenate([_alike(described, rows=rows) for rows in blocks])
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
    u = (axis(SIDE_PX) - centre) / half
    inside = np.clip((1 - np.abs(u)) * half * SIDE_PX / 2 + 0.5, 0, 1)
    waves = np.cos(np.pi * np.arange(NUM_WAVES)[:, None] * (u + 1) / 2) * inside
    waves[1:] -= inside * waves[1:].sum(axis=1, keepdims=True) / inside.sum()
    return np.asarray(waves / inside.sum(), dtype=np.float32)


def _alike(described: Floats, *, rows: slice) -> Ints:
    """The most alike others of a block of pictures, whichever of the two is the part and whichever the whole."""
    whole = described[0]
    theirs_larger = whole[rows] @ whole.T
    mine_larger = theirs_larger.copy()
    for parts in described[1:]:
        np.maximum(theirs_larger, whole[rows] @ parts.T, out=theirs_larger)
        np.maximum(mine_larger, parts[rows] @ whole.T, out=mine_larger)
    like = np.maximum(theirs_larger, mine_larger)
    like[np.arange(len(like)), np.arange(len(like)) + rows.start] = -1
    k = min(MAX_CANDIDATES, like.shape[1] - 1)
    top = np.argpartition(-like, k - 1, axis=1)[:, :k]
    r, c = np.nonzero(np.take_along_axis(like, top, axis=1) >= MIN_LIKENESS)
    mine, theirs = r + rows.start, top[r, c]
    is_whole = mine_larger[r, theirs] > theirs_larger[r, theirs]
    return np.stack([np.where(is_whole, theirs, mine), np.where(is_whole, mine, theirs)], axis=1)
