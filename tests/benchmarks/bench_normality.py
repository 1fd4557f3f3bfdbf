"""How well the distance to good parts tells defects apart, with no labelled defect and beside a head on a few.

AUC per part, good against defect: on the magnetic plant, on the steel mills with each class in turn as the normal one,
and on the plants of the embedded fleet with 0, 5 and 20 labelled defects. Mahalanobis (the product's) beside the
nearest good view, each with a fit for every environment and with one for all of a plant. Prints one JSON object last.
Reads CROSSPLANT_REAL_DATA and CROSSPLANT_WEIGHTS (default ../shared/data, ../shared/weights).

    python tests/benchmarks/bench_normality.py            # 3 seeds, all backbones
    python tests/benchmarks/bench_normality.py --quick    # one seed, the embedded backbone
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench_real import fleet as real_fleet
from measuring import ROOT, machine, mean, note
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jobs.activations import training_rows
from jobs.material import Material
from jobs.normality import num_blocks
from jobs.recipe import Recipe
from plants.duplicates import near_duplicates, signature
from plants.labels import read_rows
from plants.metrics import report
from plants.normality import ALL, ENOUGH_VIEWS, NUM_FOLDS, USUAL, Normalities, Normality, goodness
from plants.plant import Plant, Trunk, load_fleet
from plants.scores import PartScores
from plants.synthetic import make_fleet

Rng = np.random.Generator
BACKBONES = ("embedded", "mobilenetv2_035", "mobilenetv2_100")
DEFECTS = (0, 5, 20)
DRAWS = 3
"""Draws of the labelled defects for each seed and number."""
TRAIN = 0.6
BANK = 5_000


# --- distances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nearest:
    """Distance to the nearest good view in standardised features, in the unit that Normality has too."""

    mean: np.ndarray
    std: np.ndarray
    bank: np.ndarray
    unit: float = 1.0

    @classmethod
    def fit(cls, features: np.ndarray, *, groups: np.ndarray) -> Nearest:
        """Of at most BANK good views [N, F]; groups [N] are not neighbours of themselves when the unit is found."""
        at = np.linspace(0, len(features) - 1, min(len(features), BANK)).astype(int)
        wide, group = features[at].astype(np.float32), np.unique(groups[at].astype(str), return_inverse=True)[1]
        center, std = wide.mean(0), wide.std(0) + 1e-6
        found = cls(center, std, (wide - center) / std)
        unseen = [
            cls(center, std, found.bank[group % NUM_FOLDS != k]).score(wide[group % NUM_FOLDS == k])
            for k in range(NUM_FOLDS)
            if (group % NUM_FOLDS == k).any() and (group % NUM_FOLDS != k).any()
        ]
        return cls(center, std, found.bank, float(np.quantile(np.concatenate(unseen), USUAL)) if unseen else 1.0)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Distances [N]."""
        scaled = ((features - self.mean) / self.std).astype(np.float32)
        norms, best = (self.bank**2).sum(1), []
        for start in range(0, len(scaled), 1024):
            block = scaled[start : start + 1024]
            squared = (block**2).sum(1)[:, None] + norms - 2 * block @ self.bank.T
            best.append(np.sqrt(np.maximum(squared.min(1), 0) / scaled.shape[1]))
        return np.concatenate(best) / self.unit


METHODS: dict[str, tuple[Any, bool]] = {
    "mahalanobis": (Normality, True),
    "mahalanobis_whole_plant": (Normality, False),
    "nearest": (Nearest, True),
    "nearest_whole_plant": (Nearest, False),
}
"""The distance, and whether each environment has a fit of its own."""


def fitted(method: str, features: np.ndarray, rows: pd.DataFrame, *, trunk: Trunk) -> Normalities:
    """The normality of these good views, as the product fits it but for the distance."""
    kind, is_by_environment = METHODS[method]
    lots, names = rows["lot"].to_numpy(dtype=object), rows["environment"].to_numpy(dtype=object)
    more = {"num_blocks": num_blocks(trunk)} if kind is Normality else {}
    found = {("plant", ALL): kind.fit(features, groups=lots, **more)}
    for name, count in zip(*np.unique(names.astype(str), return_counts=True), strict=True):
        if is_by_environment and ENOUGH_VIEWS <= count < len(names):
            found["plant", str(name)] = kind.fit(features[names == name], groups=lots[names == name], **more)
    return Normalities(found)


# --- what is seen ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A plant's views in pooled features, and its labels."""

    plant: Plant
    features: np.ndarray
    """[V, F]"""
    rows: pd.DataFrame
    """One a view: frame, part_id, lot, environment, class."""
    labels: pd.DataFrame
    pack: Any
    trunk: Trunk

    def novelty(self, normal: Normalities) -> np.ndarray:
        """Of every view [V]."""
        return normal.score(self.features, [("plant", str(name)) for name in self.rows["environment"]])

    def learnable(self, labels: pd.DataFrame, *, seed: int) -> pd.DataFrame:
        """The views that the product would learn from, were these frames its training rows."""
        return training_rows(self.plant, labels=labels.assign(role="train"), pack=self.pack, seed=seed)


def look(material: Material, plant: Plant) -> Seen:
    """Every labelled frame of the plant through the trunk."""
    from cluster.storage import PlantFiles

    labels = read_rows(plant, files=PlantFiles()).rows
    labels = labels[labels["class"].isin(plant.annotated)]
    pack = material.pack(plant, rows=labels)
    blocks = range(0, len(pack.pixels), 64)
    pixels = (torch.from_numpy(np.array(pack.pixels[i : i + 64])) for i in blocks)
    features = [material.runner.activations(block)[0].numpy() for block in pixels]
    rows = labels.set_index("frame").loc[[pack.frames[i] for i in pack.frame_index]].reset_index()
    note(f"{plant.name}: {labels['part_id'].nunique()} parts, {len(rows)} views")
    return Seen(plant, np.concatenate(features).astype(np.float32), rows, labels, pack, material.trunk)


def auc(novelty: np.ndarray, *, rows: pd.DataFrame, good: Sequence[str], lots: Mapping[str, Any]) -> dict[str, Any]:
    """AUC per part, of its farthest view, with the interval over lots."""
    parts = rows.assign(score=novelty.astype(np.float64)).groupby("part_id")
    score, first = parts["score"].max(), parts.first()
    bad = (score / (1 + score)).to_numpy()
    scores = PartScores(
        part_ids=score.index.to_numpy(dtype=object),
        lots=[lots[part] for part in score.index],
        environments=first["environment"],
        truth=np.where(first["class"].isin(good), "good", "bad"),
        probs=np.stack([1 - bad, bad], axis=1),
        classes=("good", "bad"),
        ok=("good",),
    )
    found = report(scores)["auc"]
    return {key: found[key] for key in ("value", "low", "high")}


def groups_of(seen: Seen) -> dict[str, Any]:
    """Part -> its lot, where parts that show the same picture share one: a tile may be there under every exposure."""
    from cluster.storage import PlantFiles

    files, parts = PlantFiles(), seen.labels.drop_duplicates("part_id")
    images = [Image.open(io.BytesIO(files.read(seen.plant.images, frame))).convert("L") for frame in parts["frame"]]
    pairs = near_duplicates([signature(np.asarray(image)) for image in images])
    links = coo_array((np.ones(len(pairs)), ([p.i for p in pairs], [p.j for p in pairs])), shape=(len(parts),) * 2)
    num, group = connected_components(links, directed=False)
    note(f"{seen.plant.name}: {len(parts)} parts show {num} pictures")
    return dict(zip(parts["part_id"], group.tolist(), strict=True))


# --- the three real plants -------------------------------------------------------------------------------------------


def one_class(seen: Seen, *, good: Sequence[str], lots: Mapping[str, Any], rng: Rng) -> dict[str, Any]:
    """Fitted on TRAIN of the lots' good parts, judged on all parts of the other lots."""
    names = sorted({str(lot) for lot in lots.values()})
    train = set(np.array(names)[rng.random(len(names)) < TRAIN])
    lot = seen.rows["part_id"].map(lots).astype(str)
    is_seen, rows = lot.isin(train).to_numpy(), seen.rows.assign(lot=lot)
    at = np.flatnonzero(is_seen & rows["class"].isin(good).to_numpy())
    tested = rows[~is_seen]
    return {
        name: auc(
            seen.novelty(fitted(name, seen.features[at], rows.iloc[at], trunk=seen.trunk))[~is_seen],
            rows=tested,
            good=good,
            lots=lots,
        )
        for name in METHODS
    }


def real(backbone: str, *, seeds: Sequence[int], data: Path, weights: Path, groups: dict[str, Any]) -> dict[str, Any]:
    """Magnetic by picture and by image, the mills class by class, on one backbone."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_fleet(real_fleet(Path(folder), backbone=backbone, data=data, weights=weights))
        material = Material(loaded, cache=Path(folder, "cache"), recipe=Recipe(stages=(), views=1))
        seen = {plant.name: look(material, plant) for plant in loaded.plants}
        for name, one in seen.items():
            groups.setdefault(name, None)
            groups[name] = groups[name] or groups_of(one)
    found: dict[str, Any] = {}
    by_image = {part: part for part in seen["magnetic"].labels["part_id"]}
    for what, lots in (("magnetic", groups["magnetic"]), ("magnetic_by_image", by_image)):
        found[what] = summed(
            [one_class(seen["magnetic"], good=["free"], lots=lots, rng=np.random.default_rng(s)) for s in seeds]
        )
    for mill in ("neu", "xsdd"):
        classes = {
            name: summed(
                [one_class(seen[mill], good=[name], lots=groups[mill], rng=np.random.default_rng(s)) for s in seeds]
            )
            for name in sorted(set(seen[mill].labels["class"]))
        }
        found[mill] = {
            "classes": classes,
            **{
                m: {
                    "mean": mean([c[m]["mean"] for c in classes.values()]),
                    "worst": min((c[m]["mean"], n) for n, c in classes.items()),
                }
                for m in METHODS
            },
        }
    return found


def summed(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The mean over seeds or draws, and each one's value with its interval."""
    return {
        name: {
            "mean": mean([one[name]["value"] for one in rounds if one[name]["value"] is not None]),
            "each": [[one[name][key] for key in ("value", "low", "high")] for one in rounds],
        }
        for name in rounds[0]
    }


# --- the embedded fleet ----------------------------------------------------------------------------------------------


def with_defects(seen: Seen, *, seed: int) -> dict[str, Any]:
    """A plant's AUC by the number of labelled defects: normality, a linear head on frozen features, and both."""
    lots = sorted(set(seen.labels["lot"]))
    train = set(np.array(lots, dtype=object)[np.random.default_rng(seed).random(len(lots)) < TRAIN])
    lot_of = seen.labels.drop_duplicates("part_id").set_index("part_id")["lot"].to_dict()
    labels = seen.labels[seen.labels["lot"].isin(train)]
    good, good_names = labels[labels["class"].isin(seen.plant.ok)], seen.plant.ok
    bad = labels.loc[~labels["class"].isin(good_names), "part_id"].unique()
    is_tested = ~seen.rows["lot"].isin(train).to_numpy()
    tested = seen.rows[is_tested]

    def judged(score: np.ndarray) -> dict[str, Any]:
        return auc(score[is_tested], rows=tested, good=good_names, lots=lot_of)

    views = seen.learnable(good, seed=seed)
    normal = {
        name: seen.novelty(fitted(name, seen.features[views["input"]], views, trunk=seen.trunk)) for name in METHODS
    }
    found: dict[str, Any] = {"0": summed([{name: judged(far) for name, far in normal.items()}])}
    for num in DEFECTS[1:]:
        rounds = []
        for draw in range(DRAWS):
            chosen = np.random.default_rng([seed, num, draw]).permutation(bad)[:num]
            taught = seen.learnable(pd.concat([good, labels[labels["part_id"].isin(chosen)]]), seed=seed)
            p_bad = head(seen.features[taught["input"]], taught["label"].to_numpy(dtype=object), good_names)(
                seen.features
            )
            together = {f"with_{m}": 1 - (1 - p_bad) * goodness(normal[m]) for m in ("mahalanobis", "nearest")}
            rounds.append({name: judged(score) for name, score in {"head": p_bad, **together}.items()})
        found[str(num)] = summed(rounds)
    return {**found, "train_good": int(good["part_id"].nunique()), "train_bad": len(bad)}


def head(features: np.ndarray, labels: np.ndarray, good: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """From features [N, F] to the probability of any defect [N], by logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced"))
    model.fit(features, labels)
    is_good = np.isin(model.classes_, good)
    return lambda some: 1 - model.predict_proba(some)[:, is_good].sum(axis=1)


def embedded(seed: int) -> dict[str, Any]:
    """Every plant of one embedded fleet."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = load_fleet(make_fleet(Path(folder, "fleet"), seed=seed, processes=1))
        material = Material(fleet, cache=Path(folder, "cache"), recipe=Recipe(stages=(), views=1))
        return {plant.name: with_defects(look(material, plant), seed=seed) for plant in fleet.plants}


def main() -> None:
    """Measure, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, the embedded backbone")
    parser.add_argument("--only", choices=("real", "embedded"), help="only these plants")
    given = parser.parse_args()
    shared = ROOT.parent / "shared"
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", shared / "data"))
    weights = Path(os.environ.get("CROSSPLANT_WEIGHTS", shared / "weights"))
    seeds, backbones = ((0,), BACKBONES[:1]) if given.quick else ((0, 1, 2), BACKBONES)
    start, figures, groups = time.monotonic(), {}, {}
    if given.only != "embedded":
        for name in backbones:
            figures[name] = real(name, seeds=seeds, data=data, weights=weights, groups=groups)
            print(json.dumps({name: figures[name]}), flush=True)
    if given.only != "real":
        figures["fleet"] = {seed: embedded(seed) for seed in seeds}
    seconds = round(time.monotonic() - start, 1)
    words = {"name": "normality", "seeds": list(seeds), "figures": figures, "seconds": seconds}
    print(json.dumps({**words, "machine": machine(threads={})}))


if __name__ == "__main__":
    main()
