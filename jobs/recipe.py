"""What is done to a backbone: stages, rates, augmentation. Read from YAML; refuses nonsense, adjusts nothing."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

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
    epochs: int = Field(default=8, ge=1, le=500)
    lr_head: float = Field(default=3e-3, gt=0, le=0.1)
    lr_backbone: float = Field(default=1e-3, gt=0, le=0.1)
    warmup_epochs: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _leaves_the_warmup(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs must be smaller than epochs: the run would be all warm-up")
        return self


class Recipe(Config):
    """How a branch is fine-tuned. The head is first fitted on frozen features (L-BFGS), then each stage in turn."""

    stages: tuple[Stage, ...] = (Stage(cut=1),)
    views: int = Field(default=4, ge=1, le=16)
    """Augmented copies of a training image in the cache, the plain one included."""
    augment: Augment = Augment()
    batch: int = Field(default=16, ge=1, le=4096)
    """Images a step, of all processes together where they fit a run together."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    layer_decay: float = Field(default=0.5, gt=0, le=1)
    """Rate of a stage as a fraction of the stage above it."""
    max_class_weight: float = Field(default=5, ge=1, le=20)
    """Rare classes weigh up to this much more than the most frequent; 1 is no weighting."""
    schedule: Literal["cosine", "plateau"] = "cosine"
    patience: int = Field(default=5, ge=1)
    freeze_norm: bool = True
    """Keep the pretrained statistics of BatchNorm: an unfrozen stage then starts exactly where the frozen one stood."""
    lora_rank: int | None = None
    """Rank of adapters that learn in place of the stages' own layers, all at `lr_backbone`; None: the layers learn."""

    @model_validator(mode="after")
    def _stages_descend(self) -> Self:
        cuts = [stage.cut for stage in self.stages]
        if cuts != sorted(set(cuts)):
            raise ValueError("stages must unfreeze deeper and deeper: cuts strictly increasing")
        if not 8 <= self.batch <= 256:
            warnings.warn(f"batch {self.batch} is outside 8..256: expect noisy or slow learning", stacklevel=2)
        if self.patience > 10:
            warnings.warn(f"patience {self.patience} is above 10: expect wasted epochs", stacklevel=2)
        return self

    @model_validator(mode="after")
    def _spares_the_pretraining(self) -> Self:
        if self.lora_rank is None:
            for number, stage in enumerate(self.stages, start=1):
                if stage.lr_backbone > MAX_BACKBONE_RATE:
                    rate = f"stage {number}: lr_backbone {stage.lr_backbone:g}"
                    raise ValueError(f"{rate} is above {MAX_BACKBONE_RATE:g} on pretrained layers")
            return self
        low, high = LORA_RANKS
        if not low <= self.lora_rank <= high:
            raise ValueError(f"lora_rank {self.lora_rank} is outside {low}..{high}: take 8, or leave it out")
        if not self.freeze_norm:
            raise ValueError("lora_rank leaves all that is pretrained as it is: freeze_norm must be true")
        return self

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
