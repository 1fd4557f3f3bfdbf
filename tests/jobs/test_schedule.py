"""Rates as tables of expected values."""

import pytest
import torch

from jobs.recipe import Recipe, Stage
from jobs.schedule import halving, jumping, jumps_about, overfitting, rate_factor, rate_groups


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "cosine", 0.25),
        (3, "cosine", 1.0),
        (4, "cosine", 1.0),
        (12, "cosine", 0.51),
        (20, "cosine", 0.02),
        (0, "plateau", 0.25),
        (4, "plateau", 1.0),
        (19, "plateau", 1.0),
    ],
)
def test_rates_warm_up_and_then_follow_their_schedule(step, schedule, expected):
    assert rate_factor(step, steps=20, warmup=4, schedule=schedule) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup_epochs", "expected"),
    [
        ("cosine", 0, [1.0, 0.9627, 0.8565, 0.6975, 0.51, 0.3225, 0.1635, 0.0573]),
        ("cosine", 1, [0.25, 1.0, 0.9515, 0.8155, 0.619, 0.401, 0.2045, 0.0685]),
        ("cosine", 2, [0.125, 0.625, 1.0, 0.9344, 0.755, 0.51, 0.265, 0.0856]),
        ("plateau", 0, [1.0] * 8),
        ("plateau", 2, [0.125, 0.625, *[1.0] * 6]),
    ],
)
def test_the_rate_in_every_epoch_of_a_stage(schedule, warmup_epochs, expected):
    """Four steps an epoch; each figure is the rate of the epoch's first step."""
    found = [rate_factor(4 * e, steps=32, warmup=4 * warmup_epochs, schedule=schedule) for e in range(8)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_rates_fall_from_the_head_down():
    class Branch:
        def stages(self):
            return [[torch.nn.Parameter(torch.zeros(1))] for _ in range(3)]

    groups = rate_groups(Branch(), stage=Stage(cut=2, lr_head=1e-2, lr_backbone=1e-4), recipe=Recipe(layer_decay=0.1))
    assert [group["lr"] for group in groups] == pytest.approx([1e-2, 1e-4, 1e-5])


def curve(nll, loss):
    return [
        {"stage": 1, "epoch": i + 1, "select_nll": n, "loss": v} for i, (n, v) in enumerate(zip(nll, loss, strict=True))
    ]


def test_overfitting_is_named_with_its_epoch():
    words = overfitting(curve([0.9, 0.5, 0.6, 0.7, 0.8], [1, 0.8, 0.6, 0.4, 0.2]), stage=1)
    assert words == ["stage 1: overfitting from epoch 2: select loss up, training loss down"]


def test_a_curve_that_still_falls_is_not_called_overfitting():
    assert overfitting(curve([0.9, 0.5, 0.4, 0.3, 0.3], [1, 0.8, 0.6, 0.4, 0.2]), stage=1) == []


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.5, 0.8, 0.5, 0.8, 0.5], True),
        ([0.9, 0.5, 0.8, 0.5, 0.8, 0.5], True),
        ([0.22, 0.27, 0.07, 1.10, 0.09], True),
        ([0.5, 0.8, 0.5, 0.8], False),
        ([0.9, 0.7, 0.5, 0.4, 0.35], False),
        ([0.5, 0.6, 0.7, 0.8, 0.9], False),
        ([1.0, 0.6, 0.65, 0.4, 0.43], False),
        ([0.500, 0.501, 0.500, 0.501, 0.500], False),
        ([0.5, 0.4, 0.9, 0.4, 0.39], False),
        ([0.5, 0.8, 0.5, 0.8, 0.5, 0.49], False),
        ([0.5, 0.8, None, 0.8, 0.5], False),
        ([], False),
    ],
)
def test_a_curve_jumps_about_when_four_large_steps_turn_each_time(losses, expected):
    assert jumps_about(losses) is expected


def jumpy(num: int, *, rate=lambda epoch: 1.0):
    return [{"stage": 1, "epoch": e, "select_nll": (0.8, 0.5)[e % 2], "rate": rate(e)} for e in range(1, num + 1)]


def test_a_rate_once_halved_is_halved_again_only_after_as_many_epochs():
    history, rate, halved = [], 1.0, []
    for epoch in range(1, 13):
        history.append({**jumpy(epoch)[-1], "rate": rate})
        if halving(history, stage=1, since_best=0, recipe=Recipe(on_jump="halve")):
            rate /= 2
            halved.append(epoch)
    assert halved == [5, 10]
    assert [row["rate"] for row in history] == [1.0] * 5 + [0.5] * 5 + [0.25] * 2


@pytest.mark.parametrize(
    ("since_best", "schedule", "on_jump", "num", "expected"),
    [
        (0, "cosine", "halve", 5, "the select loss jumps about"),
        (0, "cosine", "ignore", 5, None),
        (0, "cosine", "halve", 4, None),
        (3, "cosine", "ignore", 4, None),
        (0, "plateau", "ignore", 4, None),
        (2, "plateau", "ignore", 4, None),
        (3, "plateau", "ignore", 4, "no gain for 3 epochs"),
        (4, "plateau", "ignore", 5, None),
        (6, "plateau", "ignore", 7, "no gain for 3 epochs"),
        (3, "plateau", "halve", 5, "no gain for 3 epochs"),
    ],
)
def test_why_the_rate_is_halved(since_best, schedule, on_jump, num, expected):
    recipe = Recipe(schedule=schedule, on_jump=on_jump)
    assert halving(jumpy(num), stage=1, since_best=since_best, recipe=recipe) == expected


def test_a_curve_that_jumps_about_is_said_where_nothing_is_done_about_it():
    assert jumping(jumpy(7), stage=1, recipe=Recipe()) == [
        "stage 1: the select loss jumps about by epoch 5; on_jump: halve would lower the rate there"
    ]
    assert jumping(jumpy(4), stage=1, recipe=Recipe()) == jumping(jumpy(7), stage=2, recipe=Recipe()) == []
    assert jumping(jumpy(7), stage=1, recipe=Recipe(on_jump="halve")) == []
