"""What dark, blur, noise and the like do to the chosen model and to the frozen baseline, on parts of `decide`.

The inputs are changed before the exported trunk sees them, all else is as at the line: the same pooling, the same
policy. Some of the parts, drawn by lot, are looked at, so that it takes a bounded time. Of a frame that is cut into
tiles only the `NUM_TILES` that speak loudest as they are: alarms elsewhere in the frame are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.activations import ok_mask
from jobs.scoring import RoleInputs
from plants.corruptions import CORRUPTIONS, Corruption, corrupted
from plants.damage import damage, figures
from plants.hashing import unit_hash
from plants.plant import Plant
from plants.scores import PartScores, suspicion
from plants.verdict import Candidate
from plants.views import margins

MAX_INPUTS = 64
"""How many inputs of a plant are changed, in each of the ways."""
NUM_TILES = 8


def robustness(
    plant: Plant, *, models: Mapping[str, Candidate], inputs: RoleInputs, leaf_sets: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Rows of corruption and strength, the worst first: what each model does on changed parts, and how much worse.

    models: how a row calls it -> the model; the rows are ordered by the first. A row is `{kind, strength,
    strength_rank, words, forbidden, MODEL: {macro_f1, recall, cost, damage}}`; forbidden: the environments where this
    cannot happen, whose parts are changed all the same.
    """
    first = next(iter(models.values()))
    sample = sampled(inputs, loud=loudness(first, inputs=inputs), seed=seed)
    pixels = sample.pack.take(sample.inputs)
    blank = margins_of(sample)
    before = {name: said_by(model, inputs=sample, leaf_sets=leaf_sets) for name, model in models.items()}
    rows = []
    for corruption in CORRUPTIONS:
        for rank, strength in enumerate(corruption.strengths):
            changed = corrupted(pixels, corruption, strength=strength, seed=seed)
            befallen = sample.changed(np.where(blank, pixels, changed))
            row = {"kind": corruption.kind, "strength": strength, "strength_rank": rank}
            row |= {"words": corruption.says(strength), "forbidden": _forbidden(plant, corruption)}
            for name, model in models.items():
                after = said_by(model, inputs=befallen, leaf_sets=leaf_sets)
                worse = damage(after, before[name], policy=model.judged_by, seed=seed)
                row[name] = {**figures(after, policy=model.judged_by), "damage": worse}
            rows.append(row)
    main = next(iter(models))
    return {
        "n": len(sample.parts),
        "of": len(inputs.parts),
        "n_lots": int(sample.frames["lot"].nunique()),
        "is_tiled": len(sample.inputs) > len(sample.frames),
        "clean": {name: figures(before[name], policy=model.judged_by) for name, model in models.items()},
        "rows": sorted(rows, key=lambda row: _harm(row[main]["damage"]), reverse=True),
    }


def said_by(model: Candidate, *, inputs: RoleInputs, leaf_sets: Mapping[str, Any]) -> PartScores:
    """What a candidate says of other inputs than it was judged on."""
    said = [inputs.probabilities(run) for run in model.members]
    return inputs.scores(said, leaf_sets=leaf_sets, mix=model.mix)


def loudness(model: Candidate, *, inputs: RoleInputs) -> np.ndarray:
    """By how much each input [N] is what its part is judged by: its defect mass, the mean over the model's members."""
    said = [inputs.probabilities(run) for run in model.members]
    return np.mean([suspicion(probs, ok=ok_mask(leaves)) for probs, leaves in said], axis=0)


def sampled(inputs: RoleInputs, *, loud: np.ndarray, seed: int, max_inputs: int = MAX_INPUTS) -> RoleInputs:
    """Parts drawn at random, one of every lot before two of any, with the loudest inputs of their frames."""
    keep = np.zeros(len(inputs.inputs), dtype=bool)
    order = np.lexsort((-loud, inputs.frame_groups))
    starts = np.searchsorted(inputs.frame_groups[order], inputs.frame_groups[order])
    keep[order[np.arange(len(order)) - starts < NUM_TILES]] = True
    num_of_part = np.bincount(inputs.part_groups[inputs.frame_groups[keep]], minlength=len(inputs.parts))
    lots = inputs.frames.drop_duplicates("part_id").set_index("part_id").loc[list(inputs.parts), "lot"]
    drawn = lots.reset_index().assign(_draw=[unit_hash("robustness", seed, part) for part in inputs.parts])
    drawn["_turn"] = drawn.sort_values("_draw").groupby("lot").cumcount()
    queue = drawn.sort_values(["_turn", "_draw"])["part_id"]
    total = np.cumsum(num_of_part[np.searchsorted(inputs.parts, queue.to_numpy(dtype=object))])
    parts = queue[(total <= max_inputs) | (np.arange(len(total)) == 0)]
    frames = inputs.frames.index[inputs.frames["part_id"].isin(parts)]
    return inputs.some(list(frames), keep=keep)


def margins_of(inputs: RoleInputs) -> np.ndarray:
    """Where the inputs show nothing of a frame, bool [N, S, S, 1]: light and camera do nothing to that."""
    size = inputs.pack.size_px
    out = np.zeros((len(inputs.inputs), size, size, 1), dtype=bool)
    names = inputs.frames["environment"].to_numpy(dtype=object)[inputs.frame_groups]
    boxes = inputs.pack.tile_boxes[inputs.inputs]
    for i, (name, box) in enumerate(zip(names, boxes.tolist(), strict=True)):
        found = margins(box, geometry=inputs.plant.environments[name].geometry, size_px=size)
        if found is not None:
            out[i, ..., 0] = found
    return out


def _forbidden(plant: Plant, corruption: Corruption) -> list[str]:
    return [name for name, where in plant.environments.items() if corruption.forbidden_by in where.forbid]


def _harm(worse: Mapping[str, Any]) -> float:
    """How much worse, by money where there is money."""
    if worse["cost"] is not None:
        return float(worse["cost"]["diff"] or 0.0)
    return -float(worse["macro_f1"]["diff"] or 0.0)
