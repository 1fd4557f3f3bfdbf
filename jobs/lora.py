"""Low-rank adapters (LoRA): the stages of a branch stand still, and two small factors beside each layer learn.

peft computes and merges them; what is kept of a run is merged, so that all else sees a plain branch. Not for layers
that peft would merge into something else than it trained (`_fits`): those stand still without adapters.
Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685; of convolutions: peft's `lora.Conv2d`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from jobs.adapt import copied
from jobs.cut import dry_run
from jobs.model import CutModel
from jobs.recipe import Recipe
from plants.bundle import ADAPTER
from plants.errors import InputError

PRETRAINED = "pretrained"
ALPHA = 2
"""alpha / rank: what the product of the factors is multiplied by, whatever the rank."""
REMEDY = "Leave lora_rank out to train whole layers, lower it, or unfreeze down to a deeper cut"


@dataclass(frozen=True)
class Choice:
    """The layers of a branch's body that can have adapters of a rank, and those that cannot, by name."""

    rank: int
    layers: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def words(self) -> str:
        """Which layers learn, for a run's notes."""
        rest = f", not in {', '.join(self.left)}" if self.left else ""
        return f"LoRA of rank {self.rank} in {len(self.layers)} layers{rest}"


def check_adapters(model: CutModel, *, recipe: Recipe) -> None:
    """The recipe's adapters have a place at each of its cuts. Raises InputError where there is none."""
    for stage in recipe.stages if recipe.lora_rank else ():
        branch = model.new_branch(stage.cut, ["any"])
        choose(branch, rank=recipe.lora_rank, sample=torch.zeros(1, *model.shapes[stage.cut]))


def choose(branch: Any, *, rank: int, sample: Tensor) -> Choice:
    """Where adapters of this rank are of use. sample: an activation [N, ...] at the branch's cut.

    Raises InputError where they are in no layer.
    """
    called: set[str] = set()
    layers = {name: m for name, m in branch.body.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    hooks = [m.register_forward_hook(lambda *_, name=name: called.add(name)) for name, m in layers.items()]
    dry_run(branch, sample)
    for hook in hooks:
        hook.remove()
    chosen = tuple(name for name, layer in layers.items() if name in called and _fits(layer, rank=rank))
    if not chosen:
        detail = f"none of the {len(layers)} layers above cut {branch.cut} can have an adapter of rank {rank}"
        raise InputError(detail, field="lora_rank", remedy=REMEDY)
    return Choice(rank=rank, layers=chosen, left=tuple(sorted(set(layers) - set(chosen))))


def _fits(layer: nn.Module, *, rank: int) -> bool:
    """Whether adapter and merged layer are the same, and the adapter the smaller.

    peft refuses grouped (depthwise) convolutions, forgets dilation and padding modes, and merges into a layer's weight
    what a subclass may use in another way.
    """
    if type(layer) in (nn.Conv2d, Conv2dSame):
        assert isinstance(layer, nn.Conv2d)
        if layer.groups > 1 or set(layer.dilation) != {1} or layer.padding_mode != "zeros":
            return False
    elif type(layer) is not nn.Linear:
        return False
    assert isinstance(layer.weight, Tensor)
    return rank * (len(layer.weight) + layer.weight[0].numel()) < layer.weight.numel()


def attach(branch: Any, *, rank: int, layers: Sequence[str], seed: int = 0) -> None:
    """These layers of the body have adapters that change nothing yet; only they and the head learn from now on."""
    from peft import LoraConfig, inject_adapter_in_model

    only = "|".join(re.escape(name) for name in layers)  # a list would also mean every name that ends so
    config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=only)
    branch.body.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, branch.body)


def merge(branch: Any) -> None:
    """The branch is plain again: what the adapters did is in the weights of its layers."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, layer) for name, layer in branch.body.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in adapted:
        layer.merge()
        branch.body.set_submodule(name, layer.get_base_layer())


def load(branch: Any, adapter: Mapping[str, Tensor]) -> None:
    """The branch's adapters, as far as they are in it, and its head are these."""
    branch.load_state_dict({**branch.state_dict(), **adapter})


def taken(branch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapters with the head, and the state of the branch, which is merged by this."""
    kept = {k: v for k, v in copied(branch).items() if ".lora_" in k or k.startswith("head.")}
    merge(branch)
    return kept, copied(branch)


def tier(words: Mapping[str, Any], *, model: CutModel) -> Literal["head", "adapter", "branch", "whole"]:
    """What a run's model has of its own, by the run's words: an adapter counts where the pretrained stages carry it."""
    return "adapter" if (words.get("adapter") or {}).get("base") == PRETRAINED else model.tier(words["cut"])


def pack(adapter: Mapping[str, Tensor], *, words: Mapping[str, Any]) -> bytes:
    """The adapter as the bytes of a safetensors file, with these words in its header."""
    return safetensors.torch.save(
        {k: v.contiguous() for k, v in adapter.items()}, metadata={k: json.dumps(v) for k, v in words.items()}
    )


def apply(branch: Any, data: bytes) -> None:
    """The plain branch is what the adapter file makes of it. Raises InputError where they do not go together."""
    try:
        adapter = safetensors.torch.load(data)
    except safetensors.SafetensorError:
        raise InputError("is not a safetensors file", file=ADAPTER) from None
    factors = {k.removeprefix("body.").rpartition(".lora_A.")[0]: len(v) for k, v in adapter.items() if ".lora_A." in k}
    try:
        attach(branch, rank=next(iter(factors.values())), layers=list(factors))
        branch_keys = branch.state_dict().keys()
        if lacking := sorted(adapter.keys() - branch_keys):
            raise KeyError(lacking[0])
        load(branch, adapter)
    except (ValueError, RuntimeError, KeyError, StopIteration) as error:
        detail = str(error).splitlines()[-1].strip() if str(error) else "it holds no factors"
        raise InputError(f"is not an adapter of a branch at cut {branch.cut} ({detail})", file=ADAPTER) from None
    merge(branch)
