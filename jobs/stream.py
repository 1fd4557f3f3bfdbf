"""Activations computed when they are asked for: a fresh augmentation every time, and nothing on disk but the pixels.

For cuts whose activations would not fit the cache, and for the deepest cut, where the image itself crosses and nothing
is saved by keeping it. A shallow cut is cheaper cached: one pass of the trunk then feeds every run and epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jobs.augment import augment
from jobs.recipe import Augment
from plants.plant import Plant

DRAWS = 1 << 31
"""Views that a streamed cut has: as good as never the same one twice."""


class Pixels(Protocol):
    """A plant's decoded inputs."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Pixels uint8 [n, S, S, 3] of these rows."""


class Below(Protocol):
    """What computes the trunk, and where."""

    device: torch.device

    def activations(self, images: Tensor, *, cut: int) -> Mapping[int, Tensor]:
        """Activations float32 [N, ...] at a cut of images uint8 [N, S, S, 3]."""


@dataclass(frozen=True)
class Stream:
    """One plant's rows as pixels, and how they become activations."""

    plant: Plant
    rows: pd.DataFrame
    """Of `jobs.activations.PlantData`: `input` is the index into the pixels."""
    pixels: Pixels
    trunk: Below
    policy: Augment
    cuts: frozenset[int]

    def fetch(self, cut: int, *, ids: np.ndarray, views: np.ndarray) -> Tensor:
        """Activations float32 [len(ids), ...] at a cut, where the trunk is.

        View 0 is the plain image, any other an augmentation's seed.
        """
        images = torch.from_numpy(self.pixels.take(self.rows["input"].to_numpy()[ids])).to(self.trunk.device)
        at = np.flatnonzero(views)
        if len(at):
            forbids = [self._forbidden(name) for name in self.rows["environment"].to_numpy()[ids[at]]]
            seeds = [b"%d" % view for view in views[at]]
            here = torch.from_numpy(at).to(images.device)
            images[here] = augment(images[here], policy=self.policy, seeds=seeds, forbids=forbids)
        return self.trunk.activations(images, cut=cut)[cut]

    def _forbidden(self, environment: str) -> frozenset[str]:
        known = self.plant.environments.get(environment)
        return frozenset(known.forbid) if known else frozenset()


def cached_bytes(shapes: Mapping[int, Sequence[int]], cut: int, *, inputs: int, views: int) -> int:
    """What the activations of so many inputs at a cut take on disk, in float16."""
    return 2 * math.prod(shapes[cut]) * inputs * views


def streamed_cuts(
    shapes: Mapping[int, Sequence[int]],
    *,
    cuts: Sequence[int],
    inputs: int,
    views: int,
    deepest: int,
    budget_bytes: float,
    source: str,
) -> tuple[int, ...]:
    """Which of the cuts are streamed: the deepest of all, and from the shallowest on those that no longer fit.

    source: `cache` keeps all but the deepest; `stream` keeps none but the pooled features of cut 0, which heads need.
    """
    streamed, left = [], budget_bytes
    for cut in sorted(cuts):
        needed = cached_bytes(shapes, cut, inputs=inputs, views=views)
        fits = cut == 0 or source == "cache" or (source == "auto" and needed <= left)
        if cut == deepest or not fits:
            streamed.append(cut)
        else:
            left -= needed
    return tuple(streamed)
