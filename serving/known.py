"""What good parts look like at some plants, as scorers ask for it: known at none, or in a bundle's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from plants.normality import Normalities, Place
from serving.sessions import FileRef, Recency

Floats = npt.NDArray[np.float32]


class Known(Protocol):
    """What good parts look like at some plants: `plants.normality.Normalities`, or a file of them."""

    @property
    def is_empty(self) -> bool:
        """Whether no plant's good parts are known."""

    def knows(self, plant: str, /) -> bool:
        """Whether the plant's good parts are known."""

    def score(self, features: Floats, places: Sequence[Place], /) -> Floats:
        """Novelties [N]; NaN at a plant that is not known."""


class Nobody:
    """Good parts of no plant are known."""

    is_empty = True

    def knows(self, plant: str, /) -> bool:
        """No."""
        return False

    def score(self, features: Floats, places: Sequence[Place], /) -> Floats:
        """NaN [N]."""
        return np.full(len(features), np.nan, dtype=np.float32)


NOBODY = Nobody()


@dataclass(frozen=True, slots=True)
class KnownFile:
    """The good parts of a bundle's plants, in its `normality.npz`: half a megabyte a place, so kept by recency."""

    file: FileRef
    size_mb: float
    plants: frozenset[str]
    recency: Recency[Normalities]
    is_empty: bool = False

    def knows(self, plant: str, /) -> bool:
        """Whether the plant's good parts are known."""
        return plant in self.plants

    def score(self, features: Floats, places: Sequence[Place], /) -> Floats:
        """Novelties [N]; NaN at a plant that is not known. Raises InputError where the file is not there any more."""
        return self.recency.get(self.file, size_mb=self.size_mb).score(features, places)
