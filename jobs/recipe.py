"""What is done to a backbone: stages, rates, augmentation. Read from YAML; refuses nonsense, adjusts nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from plants.config import Config
from plants.errors import ManyInputErrors

MAX_BACKBONE_RATE = 1e-3
"""Above this, pretrained layers forget more than they learn (PRACTICE F3); adapters forget nothing."""

LORA_RANKS = (4, 32)
"""Below, adapters hardly bend a layer; above, they are no longer small (PRACTICE F7)."""


class Augment(Config):
    """What may happen to a training image. `strength` scales everything; 0 is off, above 1 is refused."""

    strength: float = Field(default=0.5, ge=0, le=1)
    rotate_deg: float = Field(default=10, ge=0, le=30)
    flip: bool = True
    brightness: float = Field(default=0.2, ge=0, le=0.5)
    contrast: float = Field(default=0.2, ge=0, le=0.5)
    noise: float = Field(default=0.02, ge=0, le=0.1)


class Stage(Config):
    """One depth of unfreezing: the cut (stages above it learn), its rates and its patience."""

    cut: int = Field(ge=1)
    epochs: int = Field(default=20, ge=0, le=500)
    """At most; of 0 nothing above the cut but the head is fitted, as in a refresh with little new."""
    lr_head: float = Field(default=3e-3, gt=0, le=0.1)
    lr_backbone: float = Field(default=1e-3, gt=0, le=0.1)
    warmup_epochs: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _is_not_all_warm_up(self) -> Self:
        faults = []
        if self.epochs and self.warmup_epochs >= self.epochs:
            faults.append(
                f"warmup_epochs {self.warmup_epochs} is all of the run's epochs ({self.epochs}), so it would be all "
                f"warm-up: write warmup_epochs {self.epochs - 1} or less, or more epochs"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class Recipe(Config):
    """How a branch is fine-tuned. The head is first fitted on frozen features (L-BFGS), then each stage in turn."""

    init: Literal["pretrained", "random"] = "pretrained"
    """random: nothing is transferred. One stage trains the whole net, see `jobs.scratch`."""
    stages: tuple[Stage, ...] = (Stage(cut=1),)
    views: int = Field(default=4, ge=1, le=16)
    """Augmented copies of a training image in the cache, the plain one included."""
    source: Literal["auto", "cache", "stream"] = "auto"
    """Whether activations come from the cache, or fresh from the trunk at every step; auto: cached where they fit."""
    compute: Literal["auto", "float32"] = "auto"
    """In what a step is computed: what is fastest on each machine, or the same everywhere."""
    augment: Augment = Augment()
    batch: int = Field(default=16, ge=1, le=4096)
    """Images a step, of all processes together where they fit a run together."""
    accumulate: int = Field(default=1, ge=1, le=256)
    """Portions that a batch is computed in, one after the other, where it does not fit. The step is the same but for
    dropout's draws and statistics that are learned."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    layer_decay: float = Field(default=0.5, gt=0, le=1)
    """Rate of a stage as a fraction of the stage above it."""
    loss: Literal["weighted", "focal", "cost"] = "weighted"
    """What stages minimise: likelihood, focal loss, or likelihood and the expected cost in the plant's money."""
    gamma: float = Field(default=2, ge=0, le=5)
    """Of the focal loss: how little an image that is known well still teaches."""
    balance: Literal["weights", "sampling", "none"] = "weights"
    """Plants alike and rare classes more: by weight, by drawing their images more often, or not at all."""
    max_class_weight: float = Field(default=5, ge=1, le=20)
    """Rare classes count up to this much more than the most frequent; 1 is no weighting of classes."""
    tasks: dict[Literal["severity"], Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """What stages learn beside the class, and its share of the loss; the class has the rest. Kept where it harms no
    class and pays (`jobs.tasks`), which takes a second training. A severity head is fitted without this, too."""
    task_weights: Literal["fixed", "learned"] = "fixed"
    """Whether the shares stay as they are or are learned as each task's noise."""
    schedule: Literal["cosine", "plateau"] = "cosine"
    on_jump: Literal["halve", "ignore"] = "ignore"
    """What is done about a select loss that jumps about: the rate is halved from there on, or it is only said."""
    patience: int = Field(default=10, ge=1)
    freeze_norm: bool = True
    """Keep the pretrained statistics of BatchNorm: an unfrozen stage then starts exactly where the frozen one stood."""
    align: bool = False
    """Models without a plant (`train --leave-out`) learn from activations that have one mean and spread at every plant,
    and the new plant's are brought to these by its frames without labels, see `jobs.align`; no other run changes."""
    average_epochs: bool = False
    """Beside each epoch of a stage's second half, the mean of these epochs' weights is judged, and may be kept."""
    lora_rank: int | None = None
    """Rank of adapters that learn in place of the stages' own layers, all at `lr_backbone`; None: the layers learn."""

    l2_sp: float = Field(default=0, ge=0, le=10)
    """Pull of the stages towards where they started, the parent's weights or the pretrained ones; 0 is none."""
    replay: float = Field(default=0, ge=0, lt=1)
    """Share of what a run with a parent learns from, in its head's fit and in every step, that is the parent's other
    plants' rows; its own rows stay as many."""

    @model_validator(mode="after")
    def _stages_descend(self) -> Self:
        cuts, faults = [stage.cut for stage in self.stages], []
        if cuts != sorted(set(cuts)):
            faults.append("stages must unfreeze deeper and deeper: cuts strictly increasing")
        if self.accumulate > self.batch:
            faults.append(f"accumulate {self.accumulate} is more than the batch ({self.batch}) has images: lower it")
        if self.init == "random" and (len(self.stages) != 1 or self.freeze_norm):
            faults.append("init: random needs one stage and freeze_norm: false, as no layer knows anything yet")
        if self.average_epochs and not self.freeze_norm:
            faults.append("average_epochs: the mean's norms would be nobody's; freeze_norm must be true")
        if self.task_weights == "learned" and not self.tasks:
            faults.append("task_weights: learned has no task to weigh: name one, as in tasks: {severity: 0.3}")
        if self.init == "random" and (self.l2_sp or self.replay):
            faults.append("init: random has nothing to stay near to: leave out l2_sp and replay")
        faults += self._faults_of_adapters() if self.lora_rank is not None else []
        for stage in self.stages if self.init == "pretrained" and self.lora_rank is None else ():
            if stage.lr_backbone > MAX_BACKBONE_RATE:
                faults.append(
                    f"lr_backbone {stage.lr_backbone:g} at cut {stage.cut} is above {MAX_BACKBONE_RATE:g} on "
                    f"pretrained layers, which forget more than they learn: write {MAX_BACKBONE_RATE:g} or less"
                )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_adapters(self) -> list[str]:
        low, high = LORA_RANKS
        faults = []
        if self.lora_rank is not None and not low <= self.lora_rank <= high:
            faults.append(f"lora_rank {self.lora_rank} is outside {low}..{high}: take 8, or leave it out")
        if not self.freeze_norm or self.init == "random":
            faults.append("lora_rank leaves all that is pretrained as it is: freeze_norm must be true, init pretrained")
        if self.l2_sp:
            faults.append("l2_sp has nothing to hold where lora_rank leaves the stages as they are: leave one out")
        return faults

    @property
    def without_tasks(self) -> Recipe:
        """The same, of stages that learn the class alone."""
        return self.model_copy(update={"tasks": {}, "task_weights": "fixed"})

    @property
    def digest(self) -> str:
        """Names the recipe: equal settings, equal digest."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def default_recipe(cuts: Sequence[int], **stage: Any) -> Recipe:
    """Progressive unfreezing through all the cuts that a trunk allows; stage: other settings of every `Stage`."""
    return Recipe(stages=tuple(Stage(cut=cut, **stage) for cut in sorted(set(cuts)) if cut > 0))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. Raises InputError with every fault at once."""
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        if isinstance(raw, dict) and raw.get("init") == "random":
            remedy = "`train --baselines` makes such runs"
            raise ManyInputErrors([f"file {file}: field init: random is not for recipe files. {remedy}"])
        return Recipe.model_validate(raw)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise ManyInputErrors([f"file {file}: {reason}"]) from None
    except ValidationError as error:
        faults = [
            f"file {file}: field {'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ManyInputErrors(faults) from None


def save_recipe(recipe: Recipe, path: str | Path, *, header: str = "") -> None:
    """The recipe is on disk in the form that `train --recipe` reads, below a comment that says where it came from."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    Path(path).write_text(comment + text, encoding="utf-8")
