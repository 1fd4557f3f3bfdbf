"""The runs of kind `classical`: hand-made features and a linear model, what was done before networks.

The features are of the very inputs that a network sees, so a difference between the two is not one of cropping or size.
No bundle holds such a model: serving has no extractor for it. It is a floor in reports, never a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.activations import PlantData, RunData
from jobs.caching import prepare
from jobs.model import Branch
from jobs.plan import RunSpec
from jobs.recipe import Recipe
from jobs.train import Fitted, fit

if TYPE_CHECKING:
    from jobs.material import Material

WAY = "hog-lbp-grey-colour-1"
"""Named anew when the features change: then no cache and no model of before fits."""
GRID = 4
"""Cells a side in which patterns and greys are counted: a small defect fills one of them."""
LEVELS = 16
"""Shades that greys and colours are counted in."""
NUM_TEXTURE = 212
NUM_LAYOUT = 7 * 7 * 36
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Grey of red, green and blue. Source: ITU-R BT.601."""


class HandMade:
    """Hand-made features in the place of a trunk's activations: at "cut" 0 of texture, at 1 with the layout too."""

    weights_digest = WAY

    device = torch.device("cpu")

    def activations(self, images: Tensor) -> Mapping[int, Tensor]:
        """Features float32 [N, 212] and [N, 1976] of images uint8 [N, S, S, 3]."""
        found = np.array([_features(image) for image in images.numpy()], dtype=np.float32)
        whole = torch.from_numpy(found.reshape(-1, NUM_TEXTURE + NUM_LAYOUT))
        return {0: whole[:, :NUM_TEXTURE], 1: whole}


def features(images: np.ndarray, *, num: int) -> np.ndarray:
    """The first `num` features float32 [N, num] of images uint8 [N, S, S, 3]: what a model of so many was fitted to."""
    made = HandMade().activations(torch.from_numpy(images)).values()
    return next(found for found in made if found.shape[1] == num).numpy()


def _features(image: np.ndarray) -> np.ndarray:
    """Texture first: gradients (HOG), local binary patterns and greys, each as mean and maximum over places; colours.

    Then the layout: HOG block by block. Sources: Dalal and Triggs, CVPR 2005; Ojala et al., PAMI 24, 2002.
    """
    from skimage.feature import hog, local_binary_pattern

    grey = np.rint(image @ LUMA).clip(0, 255).astype(np.uint8)
    side = grey.shape[0]
    cell = (side // 8, side // 8)
    trimmed = grey[: 8 * cell[0], : 8 * cell[1]]
    blocks = hog(trimmed, orientations=9, pixels_per_cell=cell, cells_per_block=(2, 2), feature_vector=False)
    blocks = blocks.reshape(49, 36)
    patterns = [_shares(local_binary_pattern(grey, 8, radius, "uniform").astype(np.intp), 10) for radius in (1, 2, 4)]
    greys = _shares(grey.astype(np.intp) * LEVELS // 256, LEVELS)
    colours = [np.bincount(image[..., c].ravel() // (256 // LEVELS), minlength=LEVELS) / side**2 for c in range(3)]
    places = [blocks, np.concatenate(patterns, axis=1), greys]
    pooled = [pool for table in places for pool in (table.mean(0), table.max(0))]
    return np.concatenate([*pooled, *colours, blocks.ravel()])


def _shares(values: np.ndarray, count: int) -> np.ndarray:
    """How often each of `count` values occurs in each cell of the grid [GRID * GRID, count], as a share of the cell."""
    at = np.arange(len(values)) * GRID // len(values)
    cells = at[:, None] * GRID + at[None, :]
    table = np.bincount((cells * count + values).ravel(), minlength=GRID**2 * count).reshape(-1, count)
    return table / table.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class _Chosen(PlantData):
    """A plant's rows with one of its two sets of features, as a run looks them up: at cut 0."""

    features: int = 0

    def fetch(self, cut: int, *, ids: np.ndarray, views: np.ndarray) -> Tensor:
        return super().fetch(self.features, ids=ids, views=views)


class _Heads:
    """Makes linear heads on so many features."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def new_branch(
        self, cut: int, leaves: Any, *, seed: int = 0, dropout: float = 0.3, freeze_norm: bool = False
    ) -> Any:
        """A linear head, its dropout without effect as nothing is trained by steps."""
        given = {"cut": 0, "leaves": leaves, "stage_of": {}, "seed": seed, "dropout": dropout, "freeze_norm": True}
        return Branch(nn.Identity(), feature_dim=self.num_features, **given)


def fit_classical(
    spec: RunSpec, *, material: Material, on_epoch: Callable[[dict[str, Any]], None] | None = None
) -> Fitted:
    """A linear model of the run's plant on texture alone or with the layout, whichever is likelier on select.

    Its strength, its folds and its rows are those of the frozen baseline; only the features are others.
    """
    (name,) = spec.plants
    made = prepare(**material.source(name), trunk=HandMade(), cuts=(0, 1), views=1)
    whole = _Chosen(**vars(made))
    sizes = {"texture": NUM_TEXTURE, "texture and layout": NUM_TEXTURE + NUM_LAYOUT}
    found = []
    for number, (words, size) in enumerate(sizes.items()):
        fitted = fit(
            _Heads(size),
            data=RunData((replace(whole, features=number),)),
            leaf_sets=material.leaf_sets(spec.plants),
            leaves=material.leaves(spec.plants),
            recipe=Recipe.model_validate(spec.recipe),
            seed=spec.seed,
            on_epoch=on_epoch,
        )
        strength = fitted.notes[0].rpartition(", ")[2]
        found.append(replace(fitted, notes=[f"linear model of hand-made features of {words}, {strength}"]))
    first, second = found
    return second if second.score.nll is not None and second.score.beats(first.score) else first
