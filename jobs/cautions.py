"""What is odd about a recipe, though allowed: a line each; and what a fleet cannot be trained by."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.recipe import Recipe
from plants.errors import ManyInputErrors
from plants.plant import Plant

BATCH = (8, 256)
PATIENCE = 10
HEAD_RATE = (1e-3, 1e-2)
DROPOUT = 0.5
HEAD_OVER_BACKBONE = (3, 100)
"""How much faster the head may learn than the stage below it. The guides say 10 to 100 times; the default is 3, so that
only what is nearer than it is said."""


def cautions(recipe: Recipe) -> list[str]:
    """A line for every setting outside the range that is known to work, with what to expect; often nothing.

    Source of the ranges: PRACTICE F2-F6. Dropout below 0.3 and rotation below 15 degrees are milder than the guides'
    and not said; rotation above 30 is refused by the recipe.
    """
    said = []
    if not BATCH[0] <= recipe.batch <= BATCH[1]:
        said.append(f"batch {recipe.batch} is outside {BATCH[0]}..{BATCH[1]}: expect noisy or slow learning")
    if recipe.patience > PATIENCE:
        said.append(f"patience {recipe.patience} is above {PATIENCE}: expect wasted epochs")
    if recipe.dropout > DROPOUT:
        said.append(f"dropout {recipe.dropout:g} is above {DROPOUT:g}: expect a head that learns too little")
    if not recipe.stages and recipe.loss != "weighted":
        said.append(f"loss {recipe.loss} has no effect without stages: heads on frozen features take the likelihood")
    if recipe.loss != "focal" and recipe.gamma != Recipe.model_fields["gamma"].default:
        said.append(f"gamma has no effect with loss {recipe.loss}: it is of focal")
    if recipe.balance == "none" and recipe.max_class_weight != Recipe.model_fields["max_class_weight"].default:
        said.append("max_class_weight has no effect with balance none")
    for number, stage in enumerate(recipe.stages):
        at, ratio = f"stages.{number}.", stage.lr_head / stage.lr_backbone
        if not HEAD_RATE[0] <= stage.lr_head <= HEAD_RATE[1]:
            low, high = HEAD_RATE
            said.append(f"{at}lr_head {stage.lr_head:g} is outside {low:g}..{high:g}: expect a head that lags or jumps")
        if recipe.lora_rank:
            continue  # adapters start from nothing, and what is pretrained stands still
        if ratio < HEAD_OVER_BACKBONE[0] * (1 - 1e-9):
            what = f"only {ratio:.2g} times below lr_head ({stage.lr_head:g})"
            said.append(f"{at}lr_backbone {stage.lr_backbone:g} is {what}: expect stages that forget")
        if ratio > HEAD_OVER_BACKBONE[1] * (1 + 1e-9):
            what = f"{ratio:,.0f} times below lr_head ({stage.lr_head:g})"
            said.append(f"{at}lr_backbone {stage.lr_backbone:g} is {what}: expect stages that hardly learn")
    return [f"recipe: {line}" for line in said]


def check_money(recipe: Recipe, *, plants: Sequence[Plant]) -> None:
    """Raises InputError with every plant whose money cannot be learned by, where the recipe's loss is `cost`."""
    if recipe.loss != "cost":
        return
    remedy = "or write loss: weighted or loss: focal in the recipe"
    faults = []
    for plant in plants:
        rate, costs = plant.costs.defect_rate[2], plant.costs
        if not plant.ok:
            faults.append(f"plant {plant.name}: field ok: loss cost needs a class that is good. Name one, {remedy}")
        elif min(rate * costs.miss, (1 - rate) * costs.false_alarm) <= 0 or 0 in costs.miss_by_class.values():
            what = "loss cost needs a miss, a false alarm and a defect rate that cost something"
            faults.append(f"plant {plant.name}: field costs: {what}. Say what they cost, {remedy}")
    if faults:
        raise ManyInputErrors(faults)
