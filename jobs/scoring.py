"""What exported models say of labelled parts: the numbers that comparing, calibrating and evaluating look at.

Nothing here touches torch's originals but to export them. Views, tiles, frames and parts are pooled by the rules that
serving applies, so that a part gets the same probabilities here, from a bundle on disk and over HTTP.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cluster import packs
from jobs.activations import ok_mask
from jobs.classical import features
from jobs.compress import BranchExporter, Evaluator, agrees, parity
from jobs.head import Head
from jobs.material import Material
from jobs.model import Branch
from jobs.plan import HEADLESS, Plan
from plants.ensembles import Mix, Parts, aligned, combined, disagreement
from plants.errors import CheckFailed
from plants.governance import kept
from plants.labels import truth_of_parts
from plants.normality import Normalities, evenly, goodness
from plants.plant import Plant, projection
from plants.scores import PartScores, Speakers, softmax, speakers, suspicion
from plants.severity import SeverityHead

Leaves = tuple[str, ...]
Member = tuple[np.ndarray, Leaves]
"""Leaf probabilities [N, L] of inputs, and the leaves."""


class Exports:
    """The exported trunk and branches of a plan, made when first asked for, and kept in the cache."""

    def __init__(self, material: Material, *, plan: Plan) -> None:
        self.material, self.plan = material, plan
        self._exporters: dict[int, BranchExporter] = {}
        self._branches: dict[str, tuple[dict[str, Any], Branch, Path]] = {}
        self._normality: dict[str, Normalities] = {}
        self._severity: dict[str, SeverityHead | None] = {}

    @cached_property
    def evaluator(self) -> Evaluator:
        """Runs the exported files as serving does."""
        return Evaluator(self.material.trunk_path)

    def words(self, run_id: str) -> dict[str, Any]:
        """What a run says of itself."""
        if self.plan.run(run_id).kind in HEADLESS:
            return self.material.load(run_id, plan_id=self.plan.plan_id)[0]
        return self.branch(run_id)[0]

    def classical(self, run_id: str) -> tuple[tuple[str, ...], Head]:
        """The leaves of a classical run and its linear model."""
        words, weights, _ = self.material.load(run_id, plan_id=self.plan.plan_id)
        return tuple(words["leaves"]), Head(weights["head.weight"], weights["head.bias"])

    def normality(self, name: str) -> Normalities:
        """What is normal at a plant; knows nothing where the plan has no such run, or it is not done."""
        if name not in self._normality:
            self._normality[name] = self.material.normality(name, plan=self.plan)
        return self._normality[name]

    def severity(self, run_id: str) -> SeverityHead | None:
        """A run's severity head; None where it left none."""
        if run_id not in self._severity:
            self._severity[run_id] = self.material.severity(run_id, plan_id=self.plan.plan_id)
        return self._severity[run_id]

    def branch(self, run_id: str) -> tuple[dict[str, Any], Branch, Path]:
        """A run's words, its branch in torch, and its branch as ONNX."""
        if run_id not in self._branches:
            words, weights, digest = self.material.load(run_id, plan_id=self.plan.plan_id)
            branch = self.material.model.new_branch(words["cut"], words["leaves"])
            branch.load_state(weights)
            path = self.material.trunk_path.parent / f"{run_id}.{digest[:24]}.onnx"
            if not path.exists():
                self._exporter(words["cut"]).write(branch, path)
            self._branches[run_id] = (words, branch, path)
        return self._branches[run_id]

    def _exporter(self, cut: int) -> BranchExporter:
        if cut not in self._exporters:
            self._exporters[cut] = BranchExporter(self.material.model, cut)
        return self._exporters[cut]

    def check_parity(self, run_id: str, *, activations: Mapping[int, np.ndarray]) -> dict[str, float]:
        """The parity report of a branch. Raises CheckFailed when torch and the exported file disagree."""
        words, branch, path = self.branch(run_id)
        report = parity(branch, path, activations[words["cut"]])
        if not agrees(report):
            raise CheckFailed(f"{run_id}: torch and its exported file disagree: {json.dumps(report)}")
        return report


class RoleInputs:
    """The inputs of a plant's rows of one role, decoded and through the exported trunk."""

    def __init__(self, plant: Plant, *, rows: pd.DataFrame, pack: packs.Pack, exports: Exports) -> None:
        self.plant, self.exports = plant, exports
        by_frame = rows.set_index("frame")
        frames = np.asarray(pack.frames, dtype=object)[pack.frame_index]
        known = np.isin(frames, by_frame.index.to_numpy(dtype=object))
        self.inputs = np.flatnonzero(known)
        self.pack, self.pixels = pack, pack.pixels
        names, self.frame_groups = np.unique(frames[known], return_inverse=True)
        self.frames = by_frame.loc[list(names)]
        self.parts, self.part_groups = np.unique(self.frames["part_id"].to_numpy(dtype=object), return_inverse=True)

    @cached_property
    def activations(self) -> dict[int, np.ndarray]:
        """By cut, [N, ...]."""
        return self.exports.evaluator.activations(self.pack.take(self.inputs), batch=8)

    def some(self, frames: Sequence[str], *, keep: np.ndarray) -> RoleInputs:
        """These frames, and of their inputs those that `keep` [N] holds, at least one of each frame."""
        other = RoleInputs(
            self.plant, rows=self.frames.loc[list(frames)].reset_index(), pack=self.pack, exports=self.exports
        )
        known = keep[np.isin(self.inputs, other.inputs)]
        other.inputs, other.frame_groups = other.inputs[known], other.frame_groups[known]
        at = np.searchsorted(self.inputs, other.inputs)
        other.__dict__["activations"] = {cut: found[at] for cut, found in self.activations.items()}
        return other

    def split(self, names: Sequence[str]) -> None:
        """From now on a part is what its frames of one name show. names: of every frame [F]."""
        each = [f"{part}\t{name}" for part, name in zip(self.frames["part_id"], names, strict=True)]
        self.frames = self.frames.assign(part_id=each)
        self.parts, self.part_groups = np.unique(np.array(each, dtype=object), return_inverse=True)

    def changed(self, pixels: np.ndarray) -> RoleInputs:
        """The same inputs with other pixels [N, S, S, 3]; not for a classical model."""
        other = copy.copy(self)
        other.__dict__.pop("novelty", None)
        other.__dict__["activations"] = self.exports.evaluator.activations(pixels, batch=8)
        return other

    @cached_property
    def novelty(self) -> np.ndarray | None:
        """Distance of every input [N] to the good parts of its environment; None where those are not known."""
        known = self.exports.normality(self.plant.name)
        environments = self.frames["environment"].to_numpy(dtype=object)[self.frame_groups]
        places = [(self.plant.name, str(name)) for name in environments]
        return known.score(self.activations[0], places) if known.knows(self.plant.name) else None

    def probabilities(self, run_id: str) -> Member:
        """Leaf probabilities [N, L] of the inputs by one run's exported branch; by a normality, their goodness."""
        kind = self.exports.plan.run(run_id).kind
        if kind == "classical":
            leaves, head = self.exports.classical(run_id)
            found = torch.from_numpy(features(self.pixels[self.inputs], num=head.weight.shape[1]))
            return np.asarray(softmax(head.logits(found).numpy()), dtype=np.float32), leaves
        if kind == "normality":
            assert self.novelty is not None
            return evenly(goodness(self.novelty), leaves := tuple(self.exports.words(run_id)["leaves"])), leaves
        words, _, path = self.exports.branch(run_id)
        logits, _ = self.exports.evaluator.branch(path, self.activations[words["cut"]])
        return np.asarray(softmax(logits), dtype=np.float32), tuple(words["leaves"])

    def severities(self, run_id: str) -> np.ndarray | None:
        """How grave what each input shows is [N] by a run's exported branch; None where the run has no head for it."""
        head = self.exports.severity(run_id)
        if head is None:
            return None
        words, _, path = self.exports.branch(run_id)
        return head.of(self.exports.evaluator.branch(path, self.activations[words["cut"]])[1])

    def loudest(self, probs: np.ndarray, leaves: Leaves) -> np.ndarray:
        """Which input speaks loudest for each part [P], of probabilities [N, L]."""
        speaking = self.speakers(probs, leaves)
        order = np.lexsort((-suspicion(probs, ok=ok_mask(leaves))[speaking.rows], speaking.groups))
        first = np.unique(speaking.groups[order], return_index=True)[1]
        loudest: np.ndarray = speaking.rows[order][first]
        return loudest

    def speakers(self, probs: np.ndarray, leaves: Leaves) -> Speakers:
        """Which inputs speak for each part, over tiles of a frame and frames of a part, of probabilities [N, L]."""
        ok = ok_mask(leaves)
        environments = self.frames["environment"].to_numpy(dtype=object)
        found: list[Speakers] = []
        for name in sorted(set(environments)):
            here = np.flatnonzero(environments == name)
            at = np.flatnonzero(np.isin(self.frame_groups, here))
            top_k = self.plant.environments[name].geometry.top_k
            one = speakers(probs[at], np.searchsorted(here, self.frame_groups[at]), ok=ok, top_k=top_k)
            found.append(Speakers(at[one.rows], here[one.groups], one.shares))
        tiles = Speakers(*map(np.concatenate, zip(*found, strict=True)))
        frames = speakers(tiles.mean(probs), self.part_groups, ok=ok)
        return tiles.then(frames)

    def scores(
        self, members: Sequence[Member], *, leaf_sets: Mapping[str, Sequence[str]], mix: Mix | None = None
    ) -> PartScores:
        """What the model, or several together, say of every part; their plain average unless told otherwise."""
        mix = mix or Mix.plain(len(members))
        probs, leaves = combined(members, mix=mix)
        speaking, classes = self.speakers(probs, leaves), self.plant.annotated
        to_classes, divided = projection(leaves, leaf_sets, classes), None
        if len(members) > 1:
            said = np.stack([speaking.mean(one) @ to_classes for one in aligned(members)[0]])
            divided = disagreement(said, mix.weights)
        novelty = None
        if self.novelty is not None:
            novelty = np.zeros(len(self.parts))
            np.maximum.at(novelty, self.part_groups[self.frame_groups], self.novelty)
        first = self.frames.drop_duplicates("part_id").set_index("part_id").loc[list(self.parts)]
        return PartScores(
            part_ids=self.parts,
            lots=first["lot"].to_numpy(dtype=object),
            environments=first["environment"].to_numpy(dtype=object),
            truth=self.truth,
            probs=speaking.mean(probs) @ to_classes,
            classes=classes,
            ok=self.plant.ok,
            novelty=novelty,
            disagreement=divided,
        )

    @cached_property
    def truth(self) -> np.ndarray:
        """The class of every part [P]."""
        return truth_of_parts(self.frames["class"].to_numpy(dtype=object), self.part_groups, ok=self.plant.ok)

    def as_parts(self, leaf_sets: Mapping[str, Sequence[str]]) -> Parts:
        """These parts, to fit an ensemble's weights on."""
        classes = self.plant.annotated
        at = np.array([classes.index(name) for name in self.truth])
        return Parts(self.speakers, lambda leaves: projection(leaves, leaf_sets, classes).T[at] > 0)


def role_inputs(name: str, *, role: str, exports: Exports, rows: pd.DataFrame | None = None) -> RoleInputs | None:
    """The inputs of a plant's labelled rows of a role; None where there are none."""
    material = exports.material
    plant = material.fleet.plant(name)
    rows = material.rows(name) if rows is None else kept(plant, rows, now=datetime.now(UTC))
    rows = rows[(rows["role"] == role) & rows["class"].isin(plant.annotated)]
    if rows.empty:
        return None
    return RoleInputs(plant, rows=rows, pack=material.pack(plant, rows=rows), exports=exports)
