"""The runs of kind `scratch`: the same net on the same rows, from random weights. What transfer is worth is told by it.

Its backbone is made anew from the run's seed and never sees a pretrained number: no activation of the trunk, no head
fitted on one. The images come from the pack, freshly augmented whenever they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jobs.activations import PlantData
from jobs.model import CutModel, load_model
from jobs.recipe import Recipe, Stage
from jobs.stream import Stream
from plants.errors import InputError

if TYPE_CHECKING:
    from jobs.material import Material

EPOCHS = 30
STEPS = 600
"""Where few images make short epochs, there are as many more of them, up to `MAX_EPOCHS`."""
MAX_EPOCHS = 500
RATE = 2e-3
"""Of AdamW, for every layer: none of them knows anything yet."""


def scratch_recipe(recipe: Recipe, *, cut: int, num_parts: int) -> Recipe:
    """The recipe of the same run from random weights: the same images, batches and losses; one stage for the whole net.

    cut: the backbone's deepest; num_parts: parts to learn from. Training goes to the end of its schedule, as the low
    rates there bring much of what is learned; the epoch that was best on select is kept.
    """
    epochs = min(max(EPOCHS, math.ceil(STEPS * recipe.batch / num_parts)), MAX_EPOCHS)
    stage = Stage(cut=cut, epochs=epochs, lr_head=RATE, lr_backbone=RATE, warmup_epochs=max(1, epochs // 20))
    changes = {"init": "random", "layer_decay": 1.0, "freeze_norm": False, "schedule": "cosine", "patience": epochs}
    changes |= {
        "l2_sp": 0,
        "replay": 0,
        "lora_rank": None,
        "average_epochs": False,
        "tasks": {},
        "task_weights": "fixed",
    }
    return Recipe.model_validate({**recipe.model_dump(), **changes, "stages": (stage.model_dump(),)})


def deepest_cut(model: CutModel) -> int:
    """The cut above which the whole net lies. Raises InputError where the fleet does not allow it."""
    backbone = model.spec.backbone
    try:
        cut = model.max_cut
    except InputError as error:
        remedy = "Train without --baselines, or use another backbone"
        raise InputError(
            f"nothing can be trained from scratch: {error.detail}", field="trunks", remedy=remedy
        ) from None
    if cut not in model.cuts:
        remedy = (
            f"Add {cut} to `cuts` of `trunks:` in the fleet's file, and name the stages of all other runs with "
            "--recipe, as the default unfreezes down to every cut. All runs are trained anew then"
        )
        raise InputError(f"training {backbone} from scratch needs its cut {cut}", field="trunks.cuts", remedy=remedy)
    return cut


def scratch_model(material: Material, *, seed: int) -> CutModel:
    """The trunk's backbone as timm initialises it, by this seed."""
    model = load_model(material.trunk.model_copy(update={"weights": "none"}), seed=seed)
    return model.to(material.learner.trunk.scale.device)


@dataclass(frozen=True)
class Normalised:
    """In the place of a trunk: what crosses the deepest cut, which no weight has touched."""

    normalise: Callable[[Tensor], Tensor]
    device: torch.device

    def activations(self, images: Tensor, *, cut: int) -> Mapping[int, Tensor]:
        """Images float32 [N, 3, S, S] of uint8 [N, S, S, 3]."""
        return {cut: self.normalise(images)}


def pixels(name: str, *, material: Material, recipe: Recipe) -> PlantData:
    """The plant's learning rows as images, without any of the trunk's activations."""
    source, cut = material.source(name), recipe.stages[0].cut
    plant, rows = source["plant"], source["rows"]
    below = material.learner.trunk
    trunk = Normalised(below.normalise, below.scale.device)
    return PlantData(
        plant=plant,
        rows=rows,
        num_train=int((rows["role"] == "train").sum()),
        folder=source["cache"],
        cuts=(),
        views=recipe.views,
        stream=Stream(plant, rows, source["pack"], trunk, recipe.augment, cuts=frozenset([cut])),
    )
