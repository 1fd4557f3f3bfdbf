"""What the plant's good parts look like in pooled features, and how far from them a view is.

Needs no labelled defect, so it judges on the first day and sees kinds of defects no class exists for. Fitted for each
environment, whose camera and light are its own; a part's novelty is the largest distance of its views. Not a
classifier: a new batch of perfectly good but different parts is far away as well, and should be looked at.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plants.errors import InputError

Floats = npt.NDArray[np.float32]
Place = tuple[str, str]
"""A plant and one of its environments, or ALL of them."""

ALL = ""
FEW_DEFECTS = 20
"""Labelled defects of a plant below which the distance to good parts may be its model. Source: PRACTICE.md, D3."""
ENOUGH_VIEWS = 50
"""Good views that an environment needs for a normality of its own; with fewer, all of its plant's stand for it."""
MAX_VIEWS = 10_000
USUAL, NUM_FOLDS = 0.95, 5

MAX_COMPONENTS = 256
FLOOR = 0.01
"""No direction varies less than this fraction of the mean variance: a feature that is constant among the good parts
seen must not make everything else infinitely far."""
TINY = 1e-10
"""Of the largest variance: a direction with less has none."""
_FIELDS = ("mean", "components", "variances", "rest", "unit")


@dataclass(frozen=True, eq=False)
class Normality:
    """Mahalanobis distance to good parts, divided by sqrt(F) and by the unit.

    The covariance is shrunk towards a ball as Ledoit and Wolf found best for few samples (J. Multivariate Analysis 88,
    2004), and kept as its leading directions and one variance for all the rest.
    """

    mean: Floats
    """[F], of scaled features."""
    components: Floats
    """[K, F], orthonormal."""
    variances: Floats
    """[K], along the components."""
    rest: float
    """Variance in every direction outside the components."""
    unit: float = 1.0
    """What counts as distance 1."""
    scale: Floats | None = None
    """[F], what features are multiplied by first; None is ones."""

    @classmethod
    def fit(
        cls,
        features: npt.NDArray[np.floating],
        *,
        groups: Sequence[Any] | npt.NDArray[Any] | None = None,
        max_components: int = MAX_COMPONENTS,
        num_blocks: int = 1,
    ) -> Normality:
        """The normality of these good views [N, F], of at most MAX_VIEWS of them, evenly spread.

        num_blocks: equal stretches of the features, e.g. means and maxima over a view; each is scaled to vary as much.

        groups [N], e.g. lots: distance 1 is then what one in twenty good views of a group not seen exceeds, so that
        environments with few and with many views can be compared. Without groups, or with one, the unit is 1.
        Raises InputError for fewer than two views, or for broken features.
        """
        wide = np.asarray(features, dtype=np.float64)
        if wide.ndim != 2 or len(wide) < 2:
            raise InputError("normality needs the features of at least two good parts")
        if not np.isfinite(wide).all():
            raise InputError("features of good parts hold values that are not numbers")
        at = np.linspace(0, len(wide) - 1, min(len(wide), MAX_VIEWS)).astype(np.intp)
        wide, scale = wide[at], None
        if num_blocks > 1:
            scale = _evened(wide, num_blocks=num_blocks)
            wide = wide * scale
        found = replace(cls._of(wide, max_components=max_components), scale=scale)
        if groups is None:
            return found
        _, group = np.unique(np.asarray(groups, dtype=object)[at].astype(str), return_inverse=True)
        folds = [(wide[group % NUM_FOLDS != k], wide[group % NUM_FOLDS == k]) for k in range(NUM_FOLDS)]
        unseen = [
            cls._of(seen, max_components=max_components).score(rest)
            for seen, rest in folds
            if len(seen) > 1 and len(rest) and np.ptp(seen, axis=0).any()
        ]
        unit = float(np.quantile(np.concatenate(unseen), USUAL)) if unseen else 0.0
        return replace(found, unit=unit or 1.0)

    @classmethod
    def _of(cls, wide: npt.NDArray[np.float64], *, max_components: int) -> Normality:
        mean = wide.mean(axis=0)
        centered = wide - mean
        average = float((centered**2).mean())
        if average == 0:
            raise InputError("the features of all good parts are equal", remedy="Check that the frames differ")
        variances, directions = _axes(centered)
        shrinkage = _shrinkage(centered, variances=variances)
        kept = min(max_components, int((variances > TINY * variances[0]).sum()))
        left = wide.shape[1] - kept
        outside = float(variances[kept:].sum()) / left if left else 0.0
        least = FLOOR * average
        return cls(
            mean=mean.astype(np.float32),
            components=directions[:kept].astype(np.float32),
            variances=np.maximum((1 - shrinkage) * variances[:kept] + shrinkage * average, least).astype(np.float32),
            rest=max((1 - shrinkage) * outside + shrinkage * average, least),
        )

    def score(self, features: npt.NDArray[np.floating]) -> Floats:
        """Distances [N] of features [N, F] from the good parts; NaN for broken features."""
        wide = np.asarray(features, dtype=np.float64)
        centered = (wide if self.scale is None else wide * self.scale) - self.mean
        along = centered @ self.components.T
        outside = np.maximum((centered**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        squared = (along**2 / self.variances).sum(axis=1) + outside / self.rest
        distance: Floats = (np.sqrt(squared / len(self.mean)) / self.unit).astype(np.float32)
        return distance


@dataclass(frozen=True, eq=False)
class Normalities:
    """What is normal at some places: an environment each, and ALL of a plant's for those that have none of their own.

    Where a plant names no good class, as steel mills do that label defects only, all its known classes are its normal:
    novelty is then the distance from everything that is known there, and says nothing about good or bad.
    """

    by_place: Mapping[Place, Normality] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        plant: str,
        features: npt.NDArray[np.floating],
        *,
        environments: npt.NDArray[Any],
        lots: npt.NDArray[Any],
        num_blocks: int = 1,
    ) -> Normalities:
        """The plant's normality and that of each environment with ENOUGH_VIEWS, from good views [N, F] and two columns.

        Raises InputError as `Normality.fit` does.
        """
        found = {(plant, ALL): Normality.fit(features, groups=lots, num_blocks=num_blocks)}
        names, counts = np.unique(environments.astype(str), return_counts=True)
        for name in names[counts >= ENOUGH_VIEWS] if len(names) > 1 else ():
            here = environments == name
            if not np.ptp(features[here], axis=0).any():
                continue  # a stuck camera
            found[plant, str(name)] = Normality.fit(features[here], groups=lots[here], num_blocks=num_blocks)
        return cls(found)

    def knows(self, plant: str) -> bool:
        """Whether the plant's normality is known."""
        return (plant, ALL) in self.by_place

    def borrowed(self, plant: str, environments: Collection[str]) -> list[str]:
        """Those of several environments that are judged by all of the plant's, for want of good views of their own."""
        alone = len(environments) < 2 or not self.knows(plant)
        return [] if alone else [name for name in sorted(environments) if (plant, name) not in self.by_place]

    def score(self, features: npt.NDArray[np.floating], places: Sequence[Place]) -> Floats:
        """Novelties [N] of features [N, F], each by its place's good parts; NaN at a plant that is not known."""
        novelty = np.full(len(features), np.nan, dtype=np.float32)
        for place in set(places):
            one = self.by_place.get(place) or self.by_place.get((place[0], ALL))
            if one is not None:
                here = np.fromiter((other == place for other in places), dtype=bool, count=len(places))
                novelty[here] = one.score(features[here])
        return novelty

    def save(self, path: str | Path) -> None:
        """The file at `path` holds these normalities, as arrays only; equal ones give equal bytes."""
        places = sorted(self.by_place)
        arrays: dict[str, Any] = {"places": np.array(json.dumps(places))}
        for i, place in enumerate(places):
            one = self.by_place[place]
            arrays |= {f"{name}.{i}": np.asarray(getattr(one, name)) for name in _FIELDS}
            arrays |= {} if one.scale is None else {f"scale.{i}": one.scale}
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Normalities:
        """The normalities in a file. Raises InputError for anything else; nothing is unpickled."""
        file = Path(path)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                places = [(str(plant), str(name)) for plant, name in json.loads(str(arrays["places"]))]
                found = [[arrays[f"{name}.{i}"] for name in _FIELDS] for i in range(len(places))]
                scales = [arrays.get(f"scale.{i}") for i in range(len(places))]
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"is no normality file ({type(error).__name__})", file=str(file), remedy="Fetch the bundle again"
            ) from None
        for (mean, components, variances, rest, unit), scale in zip(found, scales, strict=True):
            is_whole = scale is None or scale.shape == mean.shape
            if components.shape != (len(variances), len(mean)) or rest.shape or unit.shape or not is_whole:
                raise InputError("its arrays do not fit together", file=str(file), remedy="Export the bundle again")
        fields = [(*one[:3], *map(float, one[3:]), scale) for one, scale in zip(found, scales, strict=True)]
        return cls({at: Normality(*one) for at, one in zip(places, fields, strict=True)})


def _axes(centered: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Variances, the largest first, and the directions in which rows [N, F] have them, as far as they have any.

    By the smaller of the two products of the rows with themselves: a third of a singular value decomposition's time.
    """
    is_long = len(centered) > centered.shape[1]
    values, vectors = np.linalg.eigh(centered.T @ centered if is_long else centered @ centered.T)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if is_long:
        return values / len(centered), vectors.T
    lengths = np.sqrt(np.maximum(values, TINY * values[0]))
    return values / len(centered), (vectors.T @ centered) / lengths[:, None]


def _shrinkage(centered: npt.NDArray[np.float64], *, variances: npt.NDArray[np.float64]) -> float:
    """Of a covariance with these eigenvalues towards equal variances, 0 to 1.

    Source: Ledoit and Wolf, J. Multivariate Analysis 88, 2004, lemma 3.4; scikit-learn's takes as long to import as all
    normalities of a small fleet take to fit.
    """
    num, width = centered.shape
    away = float((variances**2).sum()) - float(variances.sum()) ** 2 / width
    scatter = float(((centered**2).sum(axis=1) ** 2).sum()) / num**2 - float((variances**2).sum()) / num
    return min(scatter / away, 1.0) if away > 0 and scatter > 0 else 0.0


def _evened(wide: npt.NDArray[np.float64], *, num_blocks: int) -> Floats:
    """Factors [F] by which every block of features varies as much as the first; 1 for what does not vary."""
    spreads = np.sqrt(wide.var(axis=0).reshape(num_blocks, -1).mean(axis=1))
    factors = (
        np.where(spreads > 0, spreads[0] / np.where(spreads > 0, spreads, 1), 1) if spreads[0] > 0 else spreads + 1
    )
    return np.repeat(factors, wide.shape[1] // num_blocks).astype(np.float32)


def evenly(good: Floats, leaves: Collection[str]) -> Floats:
    """The goodness [N] of views, divided among the good leaves [N, L]: which of them it is, distance does not say."""
    shared: Floats = np.repeat(good[:, None] / np.float32(len(leaves)), len(leaves), axis=1)
    return shared


def goodness(novelty: Floats) -> Floats:
    """Between 0 and 1, falling with the distance, one half at distance 1. It ranks views and is no probability."""
    good: Floats = (1 / (1 + novelty.astype(np.float64) ** 4)).astype(np.float32)
    return good
