"""Wrong labels are found by models that have not seen them, and what cannot be judged is said."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.suspects import suspicion

CLASSES = np.array(["dent", "ok", "scratch"], dtype=object)


def plant(seed: int, *, num: int = 600, apart: float = 6.0) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Features, labels, frames and lots (three frames each) of classes that lie `apart` deviations from one another."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, num)
    centres = rng.normal(0, 1, (3, 16))
    centres *= apart / np.linalg.norm(centres, axis=1, keepdims=True)
    features = (centres[truth] + rng.normal(0, 1, (num, 16))).astype(np.float32)
    return features, CLASSES[truth], [f"{i}.png" for i in range(num)], [f"lot-{i // 3}" for i in range(num)]


@pytest.mark.parametrize("seed", range(5))
def test_most_of_two_percent_of_wrong_labels_are_found_and_little_else(seed):
    features, labels, frames, lots = plant(seed)
    wrong = set(np.random.default_rng(seed + 100).choice(len(frames), 12, replace=False))
    mixed = [str(CLASSES[name != CLASSES][0]) if i in wrong else str(name) for i, name in enumerate(labels)]
    found = suspicion(features, frames=frames, labels=mixed, lots=lots, seed=seed)
    named = {s.frame for s in found.suspects}
    right = {frames[i] for i in wrong}
    assert len(named & right) >= 6
    assert len(named - right) <= 2
    assert found.accuracy > 0.9
    assert [s.confidence for s in found.suspects] == sorted(s.confidence for s in found.suspects)
    assert all(s.likely == labels[frames.index(s.frame)] for s in found.suspects if s.frame in right)


def test_a_class_of_few_lots_is_left_out_and_the_others_are_judged():
    features, labels, frames, lots = plant(0)
    labels = np.where(np.arange(len(labels)) < 12, "rare", labels)
    found = suspicion(features, frames=frames, labels=labels, lots=lots)
    assert found.left_out == ("rare",)
    assert set(found.confidence) == set(frames[12:])


def test_a_single_class_cannot_be_judged():
    features, _, frames, lots = plant(0)
    found = suspicion(features, frames=frames, labels=["ok"] * len(frames), lots=lots)
    assert (found.suspects, found.confidence, found.accuracy, found.left_out) == ((), {}, None, ("ok",))


def test_the_lot_of_a_frame_does_not_vouch_for_it():
    """A lot of unlike pictures under one wrong label: a model that had seen one of them would believe the others."""
    features, labels, frames, lots = plant(1)
    same = [i for i in range(len(frames)) if labels[i] == "ok"][:12]
    twins = [f"twin-{i}" for i in same]
    mixed = ["scratch" if i in same else str(name) for i, name in enumerate(labels)]
    doubled = suspicion(
        np.concatenate([features, features[same]]),
        frames=[*frames, *twins],
        labels=[*mixed, *["scratch"] * len(same)],
        lots=[*["bad" if i in same else lot for i, lot in enumerate(lots)], *["bad"] * len(same)],
    )
    named = {s.frame for s in doubled.suspects}
    assert len(named & {*twins, *(frames[i] for i in same)}) >= 20
