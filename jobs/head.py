"""Linear heads on pooled features, fitted by L-BFGS: the frozen baseline and the start of every fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.losses import partial_cross_entropy
from jobs.selection import Score

STRENGTHS = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""L2 towards the prior on standardised features, strongest first: each fit starts from the one before."""

PRIOR_ROWS = 10
"""The median feature's variance counts as this many rows when a feature's own is estimated."""


SOFT = 0.01
"""Fine-tuning starts from a head fitted at least this strongly: from a sharper one its first steps undo the stages."""


@dataclass(frozen=True, slots=True)
class Head:
    """logits = features @ weight.T + bias; weight [L, F], bias [L], float32."""

    weight: Tensor
    bias: Tensor


def fit_head(
    features: Tensor,
    *,
    targets: Tensor,
    mask: Tensor,
    weights: Tensor,
    judge: Callable[[Head], Score],
    prior: Head | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Head, Score, float, Head]:
    """The head that scores best on `select`, its score, its strength, and the softer head to go on from.

    features [N, F]; targets, mask bool [N, L]; weights [N]. A strength pulls towards the prior (zero without one),
    so with few labels a warm start stays near its parent.
    """
    mean, std = features.mean(0), _scale(features)
    scaled = (features - mean) / std
    num_leaves = targets.shape[1]
    if prior is None:
        start = Head(torch.zeros(num_leaves, features.shape[1]), torch.zeros(num_leaves))
    else:
        start = Head(prior.weight * std, prior.bias + prior.weight @ mean)
    current, best, best_score, best_strength = start, None, None, strengths[0]
    soft = start
    for strength in strengths:
        current = _minimise(
            scaled, targets, mask, weights, start=current, centre=start, strength=strength, hold_bias=prior is not None
        )
        weight = current.weight / std
        head = Head(weight, current.bias - weight @ mean)
        found = judge(head)
        if best is None or (best_score is not None and found.value is not None and found.beats(best_score)):
            best, best_score, best_strength = head, found, strength
            soft = head if strength >= SOFT else soft
    if best is None or best_score is None:
        raise ValueError("no strength was given")
    return best, best_score, best_strength, soft


def _scale(features: Tensor) -> Tensor:
    """Standard deviations [F], shrunk towards the median feature's: from a handful of rows they are mostly chance."""
    variance, rows = features.var(0, correction=0), len(features)
    return ((rows * variance + PRIOR_ROWS * variance.median()) / (rows + PRIOR_ROWS)).sqrt().clamp_min(1e-6)


def _minimise(
    x: Tensor,
    targets: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    start: Head,
    centre: Head,
    strength: float,
    hold_bias: bool,
) -> Head:
    weight = start.weight.clone().requires_grad_()
    bias = start.bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=60, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = partial_cross_entropy(x @ weight.T + bias, targets, mask, weights)
        loss = loss + strength * ((weight - centre.weight) ** 2).sum() / 2
        if hold_bias:
            loss = loss + strength * ((bias - centre.bias) ** 2).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss = solver.step(closure)
    if not np.isfinite(float(loss.detach())):
        raise FloatingPointError("the loss of the head is not finite")
    return Head(weight.detach(), bias.detach())
