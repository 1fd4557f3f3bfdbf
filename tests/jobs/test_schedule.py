"""Rates as tables of expected values."""

import pytest
import torch

from jobs.recipe import Recipe, Stage
from jobs.schedule import overfitting, rate_factor, rate_groups


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
