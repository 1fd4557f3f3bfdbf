"""A backbone as a frozen trunk with trainable branches.

A trunk turns uint8 images into activations at the fleet's cuts, normalisation inside. A branch is the pretrained
stages above one cut, pooling, and a linear head. Trunk and branch together equal the backbone exactly (jobs.cut).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jobs.backbone import Backbone, load_backbone
from jobs.compute import PLAIN, Compute
from jobs.cut import CannotCut, Cutter, dry_run, is_batch_norm
from plants.errors import InputError
from plants.plant import Trunk


def load_model(trunk: Trunk, *, read: Callable[[str], bytes] | None = None, seed: int = 0) -> CutModel:
    """The trunk's backbone with its weights, cut where the fleet allows.

    read: bytes of an s3:// address, for weights in a store. seed: for weights: none, which are random: say so.
    Raises InputError where backbone, weights, size or cuts do not go together.
    """
    return CutModel(trunk, load_backbone(trunk, read=read, seed=seed))


class TrunkNet(nn.Module):
    """uint8 images [N, S, S, 3] -> {cut: activation}, float32; cut 0 is the pooled features [N, F]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, below: nn.Module, *, cuts: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.below, self.cuts = below, tuple(cuts)
        m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * s)).float().view(1, 3, 1, 1))
        self.register_buffer("shift", (-m / s).float().view(1, 3, 1, 1))
        self.compute = PLAIN
        self.requires_grad_(False)
        self.eval()

    def compute_in(self, compute: Compute) -> None:
        """From now on computes so; activations stay float32. Exported files are always float32."""
        self.compute = compute
        compute.place(self)

    def train(self, mode: bool = True) -> TrunkNet:
        """A trunk is frozen: it stays in evaluation mode."""
        return super().train(False)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalised images float32 [N, 3, S, S] of uint8 [N, S, S, 3]."""
        x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.compute.memory_format)
        return x * self.scale + self.shift

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Activations at every cut."""
        x = self.normalise(images)
        with self.compute.autocast(x.device):
            values = self.below(x)
        return {cut: value.float() for cut, value in zip(self.cuts, values, strict=True)}


class Aligned(nn.Module):
    """Activations [N, C, ...] times a factor and plus an offset for each channel, see `jobs.align`."""

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        """scale, offset: [C, 1, ...], as many axes as an activation has."""
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, activation: Tensor) -> Tensor:
        """Activations of the same shape."""
        aligned: Tensor = activation * self.scale + self.offset
        return aligned


class Branch(nn.Module):
    """Activation at a cut -> logits [N, L] and features [N, F]: pretrained stages, dropout, linear head."""

    def __init__(
        self,
        body: nn.Module,
        *,
        cut: int,
        leaves: Sequence[str],
        feature_dim: int,
        stage_of: Mapping[str, int],
        seed: int,
        dropout: float,
        freeze_norm: bool,
    ) -> None:
        super().__init__()
        self.cut, self.leaves, self.freeze_norm = cut, tuple(leaves), freeze_norm
        self.body, self.dropout, self.head = body, nn.Dropout(dropout), nn.Linear(feature_dim, len(leaves))
        self.align: nn.Module = nn.Identity()
        self._stage_of = dict(stage_of)
        generator = torch.Generator().manual_seed(seed)
        nn.init.xavier_uniform_(self.head.weight, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(True)
        self.train()

    def forward(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, L] and pooled features [N, F]."""
        features: Tensor = self.body(self.align(activation))
        return self.head(self.dropout(features)), features

    def train(self, mode: bool = True) -> Branch:
        """As nn.Module.train; with freeze_norm the statistics of BatchNorm stay as they were pretrained."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.body.modules():
                if is_batch_norm(module):
                    module.eval()
        return self

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters by stage, earliest first, the head last: `cut` + 1 lists."""
        groups: list[list[nn.Parameter]] = [[] for _ in range(self.cut)]
        for name, parameter in self.body.named_parameters():
            groups[self._stage_of[name]].append(parameter)
        return [*groups, list(self.head.parameters())]

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The branch holds these parameters and statistics. Raises InputError when they are of another branch."""
        if "align.scale" in state:
            self.align = Aligned(state["align.scale"], state["align.offset"])
        try:
            self.load_state_dict(dict(state))
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise InputError(f"the model does not fit a branch at cut {self.cut} ({detail})") from None

    @torch.no_grad()
    def adopt_head(self, weight: Tensor, bias: Tensor, leaves: Sequence[str]) -> tuple[str, ...]:
        """The head's rows of these leaves are now the ones given; returns the leaves found, others stay as they are.

        weight [len(leaves), F], bias [len(leaves)].
        """
        given = {leaf: i for i, leaf in enumerate(leaves)}
        found = tuple(leaf for leaf in self.leaves if leaf in given)
        for leaf in found:
            row, source = self.leaves.index(leaf), given[leaf]
            self.head.weight[row] = weight[source].to(self.head.weight)
            self.head.bias[row] = bias[source].to(self.head.bias)
        return found


class CutModel:
    """A backbone taken apart: `trunk` is shared and frozen, `new_branch` gives what a run may train."""

    def __init__(self, trunk: Trunk, loaded: Backbone) -> None:
        self.spec, self.backbone = trunk, loaded.net.eval().requires_grad_(False)
        self.mean, self.std, self.interpolation = loaded.mean, loaded.std, loaded.interpolation
        self.cuts = tuple(sorted(set(trunk.cuts)))
        if not self.cuts or self.cuts[0] < 0:
            raise InputError("cuts must be a list of 0, 1, 2, ...", field="trunks.cuts")
        self._cutter = self._cut() if self.cuts != (0,) else None
        self.trunk = TrunkNet(
            self._cutter.below(self.cuts) if self._cutter else _Tuple(self.backbone),
            cuts=self.cuts,
            mean=self.mean,
            std=self.std,
        )
        self.shapes = self._shapes()
        self.feature_dim = self.shapes[0][0] if 0 in self.shapes else self._feature_dim()
        self.weights_digest = self._digest()

    def new_branch(
        self, cut: int, leaves: Sequence[str], *, seed: int = 0, dropout: float = 0.3, freeze_norm: bool = False
    ) -> Branch:
        """A branch at a cut: copies of the pretrained stages above it and a fresh head (Xavier from the seed)."""
        if cut not in self.cuts:
            raise InputError(
                f"cut {cut} is not among the trunk's cuts {list(self.cuts)}",
                field="trunks.cuts",
                remedy="Add it there, or use another stage in the recipe",
            )
        stage_of: dict[str, int] = {}
        body: nn.Module = nn.Identity()
        if cut and self._cutter:
            body = self._cutter.above(cut)
            first = self._cutter.stages.num - cut
            stage_of = {name: stage - first for name, stage in self._cutter.stages.of.items() if stage >= first}
        branch = Branch(
            body,
            cut=cut,
            leaves=leaves,
            feature_dim=self.feature_dim,
            stage_of=stage_of,
            seed=seed,
            dropout=dropout,
            freeze_norm=freeze_norm,
        )
        return branch.to(self.trunk.scale.device)

    @property
    def max_cut(self) -> int:
        """The deepest cut of the backbone, allowed or not: the whole net lies above. Raises InputError without one."""
        return (self._cutter or self._cut()).max_cut

    @torch.inference_mode()
    def whole(self, images: Tensor) -> Tensor:
        """Features [N, F] of uint8 images [N, S, S, 3] from the backbone as timm made it, not cut."""
        features: Tensor = self.backbone(self.trunk.normalise(images))
        return features

    def tier(self, cut: int) -> Literal["head", "branch", "whole"]:
        """What a model at this cut costs to serve: a linear head, stages beside the others', or a net of its own."""
        return "head" if cut == 0 else "whole" if cut == self.max_cut else "branch"

    def to(self, device: torch.device | str) -> CutModel:
        """The trunk computes on that device, and new branches are made there."""
        self.backbone.to(device)
        self.trunk.to(device)
        return self

    def _cut(self) -> Cutter:
        name = self.spec.backbone
        try:
            cutter = Cutter(self.backbone)
            if self.cuts[-1] > cutter.max_cut:
                raise InputError(
                    f"{name} has {cutter.max_cut} stages, so cut {self.cuts[-1]} does not exist", field="trunks.cuts"
                )
            for cut in self.cuts:
                cutter.crossing(cut)
        except CannotCut as error:
            raise InputError(
                f"{name} cannot be cut: {error}", field="trunks.cuts", remedy="Use cuts: [0], or another backbone"
            ) from None
        return cutter

    def _shapes(self) -> dict[int, tuple[int, ...]]:
        size = self.spec.size_px
        try:
            values = dry_run(self.trunk, torch.zeros(1, size, size, 3, dtype=torch.uint8))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.spec.backbone} does not take {size} px ({reason})", field="trunks.size_px"
            ) from None
        if 0 in values and values[0].ndim != 2:
            raise InputError(f"{self.spec.backbone} gives no pooled features", field="trunks.backbone")
        return {cut: tuple(value.shape[1:]) for cut, value in values.items()}

    def _feature_dim(self) -> int:
        size = self.spec.size_px
        with torch.inference_mode():
            return int(self.backbone(torch.zeros(1, 3, size, size)).shape[1])

    def _digest(self) -> str:
        """Names what the trunk computes: backbone, options, input size, normalisation, every tensor."""
        named = {
            "backbone": self.spec.backbone,
            "options": self.spec.options,
            "size_px": self.spec.size_px,
            "mean": self.mean,
            "std": self.std,
        }
        digest = hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode())
        for name, value in sorted(self.backbone.state_dict().items()):
            digest.update(f"|{name}|{value.dtype}|{list(value.shape)}|".encode())
            digest.update(value.detach().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


class _Tuple(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.net(x),)
