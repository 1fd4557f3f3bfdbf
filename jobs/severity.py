"""What a model's severities are worth at a plant, judged by themselves.

A head learns from labelled severities in `train` alone (`jobs.tasks`), and is judged on parts
of `select` and `decide`, which it has not seen, by the exported files and the rules that serve. A plant's bundle has it
where it was shown to beat the median severity of the class named; else the document says why not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.scoring import Exports, Member, RoleInputs, role_inputs
from plants.ensembles import Mix, combined
from plants.plant import projection
from plants.severity import figures, medians, trivial, words


def severity_at(
    decide: RoleInputs, *, members: Sequence[str], mix: Mix | None, exports: Exports, seed: int
) -> dict[str, Any] | None:
    """What the model's severities are worth at the plant on `select` and `decide`, see `judged`."""
    if not any(exports.severity(run_id) for run_id in members):
        return None
    select = role_inputs(decide.plant.name, role="select", exports=exports)
    return judged([*([select] if select else []), decide], members=members, mix=mix, exports=exports, seed=seed)


def judged(
    among: Sequence[RoleInputs], *, members: Sequence[str], mix: Mix | None, exports: Exports, seed: int
) -> dict[str, Any] | None:
    """What the model's severities are worth on these inputs of a plant: `plants.severity.figures`, and `words`.

    None where no severity is labelled, or no member has a head: whose figures are not known is not served.
    """
    plant = among[0].plant
    rows = exports.material.rows(plant.name)
    learned = rows[(rows["role"] == "train") & rows["class"].isin(plant.defects)]
    learned = learned.astype({"severity": np.float64}).groupby("part_id").agg({"class": "first", "severity": "max"})
    known = medians(learned["class"].to_numpy(dtype=object), learned["severity"].to_numpy(np.float64))
    pieces = [_answers(one, members=members, mix=mix, known=known) for one in among] if known else []
    pieces = [piece for piece in pieces if piece is not None and len(piece[0])]
    if not pieces:
        return None
    truth, said, trivially, lots = (np.concatenate(column) for column in zip(*pieces, strict=True))
    found = figures(truth, said, trivially=trivially, lots=lots, seed=seed)
    return {**found, "words": words(found)}


def _answers(
    inputs: RoleInputs, *, members: Sequence[str], mix: Mix | None, known: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Severity as labelled, as said and as the trivial answer has it, and the lot, of each labelled bad part."""
    plant, mix = inputs.plant, mix or Mix.plain(len(members))
    each = [(inputs.severities(run_id), weight) for run_id, weight in zip(members, mix.weights, strict=True)]
    heads = [(said, weight) for said, weight in each if said is not None]
    if not heads or not sum(weight for _, weight in heads):
        return None
    views = np.average([said for said, _ in heads], axis=0, weights=[weight for _, weight in heads])
    frames = inputs.frames.astype({"severity": np.float64})
    parts = frames.groupby("part_id").agg({"severity": "max", "lot": "first"}).loc[list(inputs.parts)]
    truth = parts["severity"].to_numpy(np.float64)
    at = np.isfinite(truth) & np.isin(inputs.truth, plant.defects)
    given: list[Member] = [inputs.probabilities(run_id) for run_id in members]
    probs, leaves = combined(given, mix=mix)
    said = views[inputs.loudest(probs, leaves)]
    to_classes = projection(leaves, inputs.exports.material.fleet.leaf_sets(plant), plant.annotated)
    bad = [name for name in plant.annotated if name in plant.defects]
    mass = (inputs.speakers(probs, leaves).mean(probs) @ to_classes)[:, np.isin(plant.annotated, bad)]
    named = np.array(bad, dtype=object)[mass.argmax(1)]
    return truth[at], said[at], trivial(named[at], known), parts["lot"].to_numpy(dtype=object)[at]


def served_at(run_id: str, *, document: Mapping[str, Any], serves: Collection[str]) -> list[str]:
    """Of these plants, those where the run is what was decided for and its severities were shown to be worth asking."""
    decided = [name for name in serves if run_id in document["decisions"].get(name, {}).get("members", ())]
    return [name for name in decided if (document["details"][name].get("severity") or {}).get("is_shown")]
