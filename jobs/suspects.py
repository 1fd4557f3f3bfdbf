"""Labels that are likely wrong: confident learning over predictions from folds that have not seen the lot.

The rule is cleanlab's (Northcutt et al., Confident learning, JAIR 70, 2021), the model a linear one on frozen
features, which is quick and does not learn a wrong label by heart. A model that cannot tell the classes apart finds
labels suspicious everywhere, so its accuracy is given with the suspects.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_FOLDS = 5
MIN_LOTS = 5
"""Of a class, below which nothing can be said about its labels."""


@dataclass(frozen=True)
class Suspect:
    """A frame whose label is likely wrong."""

    frame: str
    label: str
    likely: str
    confidence: float
    """Probability of the label it has, from folds that have not seen its lot."""


@dataclass(frozen=True)
class Suspicion:
    """What the labels of a plant look like to a model that has not seen them."""

    suspects: tuple[Suspect, ...]
    """Most suspicious first."""
    confidence: dict[str, float]
    """Frame -> probability of the label it has; only of frames that were judged."""
    accuracy: float | None
    """Share of frames whose label is the most probable one; None when none was judged."""
    left_out: tuple[str, ...]
    """Classes with too few lots."""


def suspicion(
    features: np.ndarray, *, frames: Sequence[str], labels: Sequence[str], lots: Sequence[str], seed: int = 0
) -> Suspicion:
    """Every frame judged by a model that has not seen its lot; features float32 [N, F], one row a frame."""
    names, lot_of = np.asarray(labels, dtype=object), np.asarray(lots, dtype=object)
    num_lots = {name: len(set(lot_of[names == name])) for name in sorted(set(names))}
    kept = [name for name, n in num_lots.items() if n >= MIN_LOTS]
    left_out = tuple(name for name in num_lots if name not in kept)
    here = np.flatnonzero(np.isin(names, kept))
    if len(kept) < 2:
        return Suspicion((), {}, None, tuple(num_lots))
    truth = np.searchsorted(kept, names[here])
    probs = _out_of_fold(features[here], truth=truth, lots=lot_of[here], seed=seed)
    own = probs[np.arange(len(here)), truth]
    order = [i for i in _issues(truth, probs) if probs[i].argmax() != truth[i]]
    found = [
        Suspect(frames[here[i]], str(names[here[i]]), kept[int(probs[i].argmax())], float(own[i]))
        for i in sorted(order, key=lambda i: own[i])
    ]
    accuracy = float((probs.argmax(1) == truth).mean())
    return Suspicion(tuple(found), {frames[at]: float(p) for at, p in zip(here, own, strict=True)}, accuracy, left_out)


def _out_of_fold(features: np.ndarray, *, truth: np.ndarray, lots: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities [N, C], each row from a model fitted without its lot."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is missing from a fold gets probability 0, as it should
        return np.asarray(
            cross_val_predict(model, features, truth, groups=lots, cv=folds, method="predict_proba"), dtype=np.float64
        )


def _issues(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(
            find_label_issues(
                truth, probs, filter_by="prune_by_class", return_indices_ranked_by="self_confidence", n_jobs=1
            ),
            dtype=np.intp,
        )
