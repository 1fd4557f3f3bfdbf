"""A plant that no model has seen, made to look like those it learned from: no label of it is needed, only frames.

Light, camera and material shift what the frozen trunk says of a plant, channel by channel, and a model of other plants
takes the shift for defects. So each plant's activations at the cut are brought to one mean and spread, those all plants
have on average, while the model learns; a new plant's are when it is met, by a factor and an offset a channel before
its branch. It is what adapting the statistics of BatchNorm does, for any backbone, where the trunk ends. Off by
default (`Recipe.align`), for models without a plant alone: a plant with a model of its own needs none of it.

It is guarded: the fewer frames, the nearer the statistics are held to the sources' mean, and under `MIN_FRAMES`
nothing is adapted. That it helped cannot be known without labels: it is no candidate for serving, and its first
verdicts want a person. Where classes fill the frame, their mix moves the statistics (README, Decisions).
Source: Li et al., Adaptive batch normalization for practical domain adaptation, Pattern Recognition 80, 2018;
Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jobs.activations import PlantData, RunData
from jobs.head import Head
from jobs.run import Fitted

MOST_INPUTS = 400
"""Inputs of a plant that its statistics are taken over, evenly spread over its rows."""
MIN_FRAMES = 20
"""Under so many frames of a new plant its statistics are chance (as of tones, see `plants.tones`)."""
PRIOR_FRAMES = 10
"""The sources' mean statistics count as so many frames of the new plant. Source: Schneider et al., 2020."""
TINY = 1e-3


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every channel [C, 1, ...] of some activations at a cut."""

    mean: Tensor
    std: Tensor

    def towards(self, other: Moments, *, share: float) -> Moments:
        """As much of `other` as `share` says in place of these: of means, and of the logarithms of spreads.

        Of variances a tenth of a coarse surface's would be most of a smooth one's.
        """
        mean = (1 - share) * self.mean + share * other.mean
        return Moments(mean, self.std ** (1 - share) * other.std**share)

    def onto(self, other: Moments) -> tuple[Tensor, Tensor]:
        """The factor and the offset that give activations of these moments the other's."""
        scale = other.std / self.std
        return scale, other.mean - self.mean * scale


def moments(data: PlantData, *, cut: int, most: int = MOST_INPUTS) -> Moments:
    """Of a plant's learning rows in their plain view, whatever their labels."""
    ids = np.unique(np.linspace(0, len(data.rows) - 1, min(most, len(data.rows))).round().astype(np.int64))
    seen = data.fetch(cut, ids=ids, views=np.zeros(len(ids), np.int64)).cpu()
    axes = [0, *range(2, seen.ndim)]
    mean, std = seen.mean(axes), seen.std(axes, correction=0).clamp_min(TINY)
    shape = (-1, *(1 for _ in range(seen.ndim - 2)))
    return Moments(mean.view(shape), std.view(shape))


@dataclass(frozen=True)
class AlignedData(RunData):
    """Rows whose activations have the same mean and spread in every channel, whatever plant they are of."""

    _known: dict[int, list[Moments]] = field(default_factory=dict)

    def of_plants(self, cut: int) -> list[Moments]:
        """Each plant's moments at a cut, in the order of the plants."""
        if cut not in self._known:
            self._known[cut] = [moments(source, cut=cut) for source in self.plants]
        return self._known[cut]

    def common(self, cut: int) -> Moments:
        """What all plants are brought to: the mean over them of their means and of their spreads."""
        found = self.of_plants(cut)
        return Moments(
            torch.stack([one.mean for one in found]).mean(0), torch.stack([one.std for one in found]).mean(0)
        )

    def fetch(self, cut: int, *, ids: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Activations float32 [len(ids), ...] as a plant of the common moments would show them."""
        seen = super().fetch(cut, ids=ids, views=views)
        onto = [one.onto(self.common(cut)) for one in self.of_plants(cut)]
        owner = torch.from_numpy(np.searchsorted(self.offsets, ids, side="right") - 1)
        scale, offset = (torch.stack(part)[owner].to(seen.device) for part in zip(*onto, strict=True))
        return seen * scale + offset


def meet(fitted: Fitted, *, sources: AlignedData, plant: PlantData) -> list[str]:
    """What was fitted now expects activations of a plant it has not seen; the sentences say what was done."""
    frames = plant.rows["frame"].nunique()
    if frames < MIN_FRAMES:
        return [f"not adapted to {plant.plant.name}: {frames} frames, fewer than {MIN_FRAMES}"]
    common, share = sources.common(fitted.cut), PRIOR_FRAMES / (PRIOR_FRAMES + frames)
    found = moments(plant, cut=fitted.cut).towards(common, share=share)
    fitted.state = with_aligned(fitted.state, onto=found.onto(common))
    return [
        f"adapted to {plant.plant.name} by {frames} frames without their labels, which cannot tell whether that helps: "
        "have people review its first verdicts"
    ]


def with_aligned(state: dict[str, Tensor], *, onto: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The branch's state with a factor and an offset before it; of a head alone they are part of its weights."""
    scale, offset = (one.contiguous() for one in onto)
    if scale.ndim > 1:
        return {**state, "align.scale": scale, "align.offset": offset}
    head = Head(state["head.weight"], state["head.bias"])
    return {**state, "head.weight": head.weight * scale, "head.bias": head.bias + head.weight @ offset}
