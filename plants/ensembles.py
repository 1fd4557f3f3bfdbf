"""Several models as one: the one rule that joins what they say of a view, and the weights that were fitted for it.

`combined` is applied by compare, evaluate and serving alike, so that a part has the same probabilities everywhere. A
mean takes what any member says for possible; a product of powers, the log-linear pool, needs their agreement, and its
weights need not sum to 1, so that members may be sharpened or softened on the way. Weights are few, as lots are: one a
member, of least log loss on parts as they are judged, through the pooling of views, and pulled to the plain average as
if by a few parts. Source: Genest and Zidek, Combining Probability Distributions, Statistical Science 1, 1986; Wolpert,
Stacked Generalization, Neural Networks 5, 1992.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plants.plant import is_ok
from plants.scores import Mask, Speakers, softmax

Rule = Literal["mean", "log"]
Floats = npt.NDArray[np.float64]
Leaves = tuple[str, ...]
Said = tuple[npt.NDArray[np.float32], Leaves]
"""Probabilities [N, L] of views, and their leaves."""

LEAST = 1e-6
"""In a log-linear pool no member says less, so that a leaf one has never learned is not ruled out by it alone."""
SPREAD = 0.5
"""Before any part is seen, weights are held to lie within about this of the plain average's."""
MIN_WEIGHT = 0.05
"""A member of less weight is left out: it would cost a branch pass for next to nothing."""
PLAIN = 0.02
"""Weights that differ less from equal ones are the plain average."""
NUM_TURNS = 6
"""At most so often weights are fitted to the views that speak for their parts under the weights before."""
STILL = 1e-3
"""Weights that change less from turn to turn are found."""
NOTHING = 1e-12
"""No true class is said to be less likely, so that one part cannot outweigh all others without end."""


@dataclass(frozen=True)
class Mix:
    """How an ensemble joins its members."""

    weights: tuple[float, ...]
    rule: Rule = "mean"

    @classmethod
    def plain(cls, num: int) -> Mix:
        """The plain average."""
        return cls((1 / num,) * num)

    @property
    def is_plain(self) -> bool:
        """Whether it is as good as the plain average."""
        return self.rule == "mean" and bool(np.ptp(self.weights) < PLAIN)


def union(leaves: Sequence[Leaves]) -> Leaves:
    """Every leaf that any member knows, good ones first."""
    return tuple(sorted({leaf for known in leaves for leaf in known}, key=lambda leaf: (not is_ok(leaf), leaf)))


def combined(members: Sequence[Said], *, mix: Mix) -> Said:
    """What the members say together of the same views [N], over the union of their leaves; one speaks for itself.

    A mean is weighted by shares of the weights' sum, and a leaf that a member lacks counts as 0 in it. A log-linear
    pool is the softmax of the weighted sum of log probabilities, none of them under `LEAST`.
    """
    if len(members) != len(mix.weights):
        raise ValueError("an ensemble needs a weight for each member")
    if len(members) == 1:
        return members[0]
    said, leaves = aligned(members)
    return joined(said, np.asarray(mix.weights, dtype=np.float64), rule=mix.rule).astype(np.float32), leaves


def aligned(members: Sequence[Said]) -> tuple[Floats, Leaves]:
    """The members' probabilities over the union of their leaves [K, N, L], 0 where one lacks a leaf."""
    leaves = union([known for _, known in members])
    said = np.zeros((len(members), len(members[0][0]), len(leaves)))
    for one, (probs, known) in zip(said, members, strict=True):
        one[:, [leaves.index(leaf) for leaf in known]] = probs
    return said, leaves


def joined(said: Floats, weights: Floats, *, rule: Rule) -> Floats:
    """What members say together [N, L] of what each says [K, N, L], see `combined`."""
    if rule == "mean":
        mean: Floats = np.tensordot(weights / weights.sum(), said, axes=1)
        return mean
    return softmax(np.tensordot(weights, np.log(np.maximum(said, LEAST)), axes=1))


def disagreement(said: npt.NDArray[Any], weights: Sequence[float]) -> Floats:
    """How far members disagree about each part [P]: 0 where all say the same, 1 where each is sure of something else.

    said: what each member says of the parts over the plant's classes [K, P, C]; what a row lacks to 1 is mass on what
    cannot occur here, and counts as a class. The Jensen-Shannon divergence at the weights' shares, over its upper
    bound, the shares' entropy. Source: Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory
    37, 1991.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    wide = np.asarray(said, dtype=np.float64)
    whole = np.concatenate([wide, np.clip(1 - wide.sum(axis=2, keepdims=True), 0, 1)], axis=2)
    bound = float(_entropy(shares))
    if bound <= 0:
        return np.zeros(wide.shape[1])
    between = _entropy(np.tensordot(shares, whole, axes=1)) - np.tensordot(shares, _entropy(whole), axes=1)
    found: Floats = np.clip(between / bound, 0, 1)
    return found


def _entropy(probs: Floats) -> Floats:
    """Along the last axis, in nats."""
    found: Floats = -(probs * np.log(np.maximum(probs, NOTHING))).sum(axis=-1)
    return found


# --- fitting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The parts 0..P-1 that weights are fitted on, as views become parts and as parts are labelled."""

    pool: Callable[[npt.NDArray[np.float32], Leaves], Speakers]
    """Probabilities [N, L] of views over leaves -> which views speak for each part."""
    truth: Callable[[Leaves], Mask]
    """Leaves -> those of each part's class [P, L]."""


def fitted(
    members: Sequence[Said], *, parts: Parts, rule: Rule, chosen: Mask | None = None
) -> tuple[tuple[int, ...], Mix]:
    """The members that are worth their pass, and their weights; one after another that has next to none is left out.

    chosen: The parts to fit on [P], all of them unless told.
    """
    kept = tuple(range(len(members)))
    while len(kept) > 1:
        mix = fit([members[i] for i in kept], parts=parts, rule=rule, chosen=chosen)
        least = int(np.argmin(mix.weights))
        if mix.weights[least] >= MIN_WEIGHT * sum(mix.weights):
            return kept, mix
        kept = kept[:least] + kept[least + 1 :]
    return kept, Mix.plain(1)


def fit(members: Sequence[Said], *, parts: Parts, rule: Rule, chosen: Mask | None = None) -> Mix:
    """The weights of least log loss on the chosen parts, of those that were met.

    Which views speak for a part hangs on the weights, so that they are fitted in turns, from equal ones.
    """
    said, leaves = aligned(members)
    truth = parts.truth(leaves)
    chosen = np.ones(len(truth), dtype=bool) if chosen is None else chosen
    weights, met = np.full(len(said), 1 / len(said)), list[tuple[float, Floats]]()
    for turn in range(NUM_TURNS + 1):
        speaking = parts.pool(joined(said, weights, rule=rule).astype(np.float32), leaves)
        views = _Views.of(speaking, said=said, truth=truth, chosen=chosen)
        met.append((_loss(weights, views, rule)[0], weights))
        if turn == NUM_TURNS or (turn and np.abs(weights - met[-2][1]).max() < STILL):
            break
        weights = _least(views, rule=rule, start=weights)
    best = min(met, key=lambda one: one[0])[1]
    return Mix(tuple(round(float(weight), 4) for weight in best), rule)


@dataclass(frozen=True)
class _Views:
    """The views that speak for parts: what members say [K, M, L], the leaves that are true [M, L], part, share."""

    said: Floats
    truth: Mask
    parts: npt.NDArray[np.intp]
    shares: Floats

    @cached_property
    def logs(self) -> Floats:
        """Log probabilities, none under that of `LEAST` [K, M, L]."""
        found: Floats = np.log(np.maximum(self.said, LEAST))
        return found

    @classmethod
    def of(cls, speaking: Speakers, *, said: Floats, truth: Mask, chosen: Mask) -> _Views:
        at = chosen[speaking.groups]
        rows, groups = speaking.rows[at], speaking.groups[at]
        return cls(said[:, rows], truth[groups], np.unique(groups, return_inverse=True)[1], speaking.shares[at])


def _least(views: _Views, *, rule: Rule, start: Floats) -> Floats:
    """Weights of least loss on these views, none negative; a mean's sum to 1."""
    from scipy.optimize import minimize

    found = minimize(
        _loss,
        start,
        args=(views, rule),
        jac=True,
        bounds=[(0, None)] * len(start),
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}] if rule == "mean" else (),
        method="SLSQP",
    )
    weights: Floats = np.maximum(np.asarray(found.x, dtype=np.float64), 0)
    return weights if np.isfinite(weights).all() and weights.sum() > 0 else start


def _loss(weights: Floats, views: _Views, rule: Rule) -> tuple[float, Floats]:
    """Log loss of the parts' true classes with what pulls to equal weights, and its gradient [K]."""
    num = int(views.parts.max()) + 1 if len(views.parts) else 0
    if rule == "mean":
        true = (views.said * views.truth).sum(axis=2)
        slopes = true
        value = weights @ true
    else:
        logs = views.logs
        probs = softmax(np.tensordot(weights, logs, axes=1))
        value = (probs * views.truth).sum(axis=1)
        slopes = (logs * (probs * views.truth)).sum(axis=2) - value * (logs * probs).sum(axis=2)
    of_part = np.bincount(views.parts, weights=views.shares * value, minlength=num)
    kept = np.maximum(of_part, NOTHING)
    slope = -(slopes * (views.shares * (of_part > NOTHING) / kept[views.parts])).sum(axis=1)
    away = (weights - 1 / len(weights)) / SPREAD
    return float(-np.log(kept).sum() + 0.5 * (away**2).sum()), slope + away / SPREAD


def to_json(mix: Mix | None) -> dict[str, Any]:
    """As a decision holds it: `weights` and `rule`, None of a model that is no ensemble."""
    return {"weights": list(mix.weights) if mix else None, "rule": mix.rule if mix else None}


def described(decision: Any) -> str:
    """The members of a decision's model in words, with their weights where it is an ensemble."""
    names, mix = decision["members"], from_json(decision, num=len(decision["members"]))
    if len(names) == 1:
        return str(names[0])
    rule = {"mean": "the mean of", "log": "the log-linear pool of"}[mix.rule]
    return f"{rule} {', '.join(f'{name} ({weight:.2f})' for name, weight in zip(names, mix.weights, strict=True))}"


def from_json(decision: Any, *, num: int) -> Mix:
    """What `to_json` wrote; the plain average of `num` members where a decision says nothing, as older ones do."""
    weights = decision.get("weights")
    return Mix(tuple(weights), decision["rule"]) if weights else Mix.plain(num)
