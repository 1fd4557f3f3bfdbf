"""Linear heads on pooled features, fitted by L-BFGS: the frozen baseline and the start of every fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jobs.losses import surprise_and_slope
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

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, L] of features [N, F]."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class Lesson:
    """Rows to fit to: features [N, F]; targets and mask, bool [N, L]; weights [N]."""

    features: Tensor
    targets: Tensor
    mask: Tensor
    weights: Tensor

    def rows(self, count: int) -> Lesson:
        """The first of its rows."""
        return Lesson(*(getattr(self, name)[:count] for name in self.__slots__))

    def and_rows(self, other: Lesson, at: Tensor) -> Lesson:
        """These rows, and those of another lesson at `at` (bool [N])."""
        pairs = [(getattr(self, name), getattr(other, name)[at]) for name in self.__slots__]
        return Lesson(*(torch.cat(pair) for pair in pairs))


class HeadFit:
    """Fits heads to one lesson, and to it with more rows, on features standardised by it.

    A strength pulls towards the prior (zero without one), so with few labels a warm start stays near its parent.
    """

    def __init__(self, lesson: Lesson, *, prior: Head | None = None) -> None:
        self.mean, self.std = lesson.features.mean(0), _scale(lesson.features)
        self.lesson = self._scaled(lesson)
        num_leaves, num_features = lesson.targets.shape[1], lesson.features.shape[1]
        self.hold_bias = prior is not None
        self.centre = self._inside(prior or Head(torch.zeros(num_leaves, num_features), torch.zeros(num_leaves)))

    def best(
        self, judge: Callable[[Head], Score], *, strengths: Sequence[float] = STRENGTHS
    ) -> tuple[Head, Score, float, Head]:
        """The head that scores best on `select`, its score, its strength, and the softer head to go on from."""
        best, best_score, best_strength, soft = None, None, strengths[0], self._outside(self.centre)
        for strength, head in self.path(strengths):
            found = judge(head)
            if best is None or (best_score is not None and found.nll is not None and found.beats(best_score)):
                best, best_score, best_strength = head, found, strength
                soft = head if strength >= SOFT else soft
        if best is None or best_score is None:
            raise ValueError("no strength was given")
        return best, best_score, best_strength, soft

    def path(self, strengths: Sequence[float] = STRENGTHS) -> Iterator[tuple[float, Head]]:
        """Each strength and its head, every fit from the one before."""
        current = self.centre
        for strength in strengths:
            current = self._minimise(self.lesson, start=current, strength=strength)
            yield strength, self._outside(current)

    def with_more(self, more: Lesson, *, at: Sequence[np.ndarray], head: Head, strength: float) -> list[Head]:
        """Heads of the lesson and other rows: one for each choice of them, bool [N].

        head: of the lesson alone at this strength. Each fit starts from it, so that none knows rows left out of it.
        """
        more, start, heads = self._scaled(more), self._inside(head), []
        for rows in at:
            lesson = self.lesson.and_rows(more, torch.from_numpy(rows))
            lesson = replace(lesson, weights=lesson.weights / lesson.weights.mean())
            heads.append(self._outside(self._minimise(lesson, start=start, strength=strength)))
        return heads

    def _scaled(self, lesson: Lesson) -> Lesson:
        return replace(lesson, features=(lesson.features - self.mean) / self.std)

    def _inside(self, head: Head) -> Head:
        return Head(head.weight * self.std, head.bias + head.weight @ self.mean)

    def _outside(self, head: Head) -> Head:
        weight = head.weight / self.std
        return Head(weight, head.bias - weight @ self.mean)

    def _minimise(self, rows: Lesson, *, start: Head, strength: float) -> Head:
        """Gradients are written out, as autograd would take twice as long over so small a net."""
        weight, bias = start.weight.clone(), start.bias.clone()
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=60, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )
        share = rows.weights / len(rows.weights)
        not_targets, not_mask = ((~leaves).T.contiguous() for leaves in (rows.targets, rows.mask))

        @torch.no_grad()
        def closure() -> Tensor:
            lost, slope = surprise_and_slope(weight @ rows.features.T + bias[:, None], not_targets, not_mask)
            slope *= share
            pull = weight - self.centre.weight
            weight.grad, bias.grad = (slope @ rows.features).add_(pull, alpha=strength), slope.sum(1)
            loss = share @ lost + strength * pull.square().sum() / 2
            if self.hold_bias:
                pull = bias - self.centre.bias
                bias.grad += strength * pull
                loss += strength * pull.square().sum() / 2
            return loss

        loss = solver.step(closure)
        if not np.isfinite(float(loss)):
            raise FloatingPointError("the loss of the head is not finite")
        return Head(weight, bias)


def _scale(features: Tensor) -> Tensor:
    """Standard deviations [F], shrunk towards the median feature's: from a handful of rows they are mostly chance."""
    variance, rows = features.var(0, correction=0), len(features)
    return ((rows * variance + PRIOR_ROWS * variance.median()) / (rows + PRIOR_ROWS)).sqrt().clamp_min(1e-6)
