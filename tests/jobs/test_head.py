"""Heads by L-BFGS."""

from __future__ import annotations

import pytest
import torch

from jobs.head import Head, HeadFit, Lesson
from jobs.selection import Score


def problem(n: int, *, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=draw) * torch.linspace(0.1, 10, 12)
    labels = (x[:, 0] * 10 + 0.3 * torch.randn(n, generator=draw) > 0).long()
    return x, torch.nn.functional.one_hot(labels, 2).bool()


def judge_on(x, targets):
    def judge(head: Head) -> Score:
        right = ((x @ head.weight.T + head.bias).argmax(1) == targets.long().argmax(1)).float().mean()
        return Score(value=float(right), nll=1 - float(right), by_plant={})

    return judge


def lesson(x, targets):
    return Lesson(x, targets, torch.ones_like(targets), torch.ones(len(x)))


def fit(x, targets, *, judge, prior=None, **more):
    return HeadFit(lesson(x, targets), prior=prior).best(judge, **more)


def test_the_head_finds_a_linear_rule_whatever_the_scale_of_the_features():
    x, targets = problem(400)
    test_x, test_targets = problem(400, seed=1)
    _, score, _, _ = fit(x, targets, judge=judge_on(test_x, test_targets))
    assert score.value > 0.9


def test_with_no_evidence_the_head_stays_at_its_prior():
    x, targets = problem(400)
    good, _, _, _ = fit(x, targets, judge=judge_on(x, targets))
    few_x, few_targets = problem(2, seed=5)
    test_x, test_targets = problem(400, seed=1)
    _, near, _, _ = fit(few_x, few_targets, judge=judge_on(test_x, test_targets), prior=good, strengths=(100.0,))
    _, alone, _, _ = fit(few_x, few_targets, judge=judge_on(test_x, test_targets))
    assert near.value > 0.9
    assert near.value > alone.value


def test_the_strength_is_the_likeliest_and_not_the_one_of_the_highest_value():
    x, targets = problem(100)
    said = iter([Score(0.9, 0.5, {}), Score(0.2, 0.1, {}), Score(0.9, 0.3, {})])
    _, score, strength, _ = fit(x, targets, judge=lambda head: next(said), strengths=(1.0, 0.1, 0.01))
    assert (score.nll, strength) == (0.1, 0.1)


@pytest.mark.slow
def test_a_constant_feature_does_no_harm():
    x, targets = problem(100)
    x[:, 3] = 7.0
    head, score, _, _ = fit(x, targets, judge=judge_on(x, targets))
    assert torch.isfinite(head.weight).all()
    assert score.value > 0.9


def test_a_fold_left_out_is_not_known_and_the_whole_head_knows_all():
    x, targets = problem(40)
    other_x, other = problem(60, seed=1)
    heads = HeadFit(lesson(x, targets))
    head, _, strength, _ = heads.best(judge_on(x, targets))
    first = torch.arange(60) < 30
    flipped = torch.where(first[:, None], ~other, other)
    everything, none = torch.ones(60, dtype=torch.bool).numpy(), torch.zeros(60, dtype=torch.bool).numpy()
    asked = {"at": [everything, (~first).numpy(), none], "head": head, "strength": strength}
    truly = heads.with_more(lesson(other_x, other), **asked)
    falsely = heads.with_more(lesson(other_x, flipped), **asked)
    assert not torch.allclose(truly[0].weight, falsely[0].weight, atol=1e-2)
    torch.testing.assert_close(truly[1], falsely[1])
    test_x, test_targets = problem(400, seed=2)
    judge = judge_on(test_x, test_targets)
    assert judge(truly[0]).value >= judge(truly[2]).value
