"""A start is judged by every labelled lot that it has not learned from, and by none that its heads have seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import starts
from jobs.adapt import Parent
from jobs.compute import PLAIN
from jobs.objective import Objective
from jobs.recipe import Recipe
from jobs.run import Run, World
from jobs.supervision import Supervision
from tests.jobs.toys import ToyModel, toy_run

FROZEN = Recipe(stages=(), views=2)


def begun(folder: Path, *, change: Any = None, **sizes: int) -> Run:
    """A run of the toy plant north; change: of its rows."""
    given = toy_run(folder, "north", **sizes)
    if change:
        (source,) = given["data"].plants
        given["data"] = replace(given["data"], plants=(replace(source, rows=change(source.rows)),))
    taught = Supervision(given["data"], leaf_sets=given["leaf_sets"], leaves=given["leaves"], max_class_weight=5)
    return Run(ToyModel(), taught, Objective(taught, recipe=FROZEN), FROZEN, 0, World(), lambda cut: PLAIN)


def donor(run: Run, *, is_blind: bool = False, learned_from: tuple[str, ...] = ("south",)) -> Parent:
    """Knows that the first channel is brighter for cracks; is_blind: its stage does not let that channel through."""
    state = ToyModel().new_branch(1, run.taught.leaves).state_dict()
    weight = torch.zeros_like(state["head.weight"])
    weight[[i for i, leaf in enumerate(run.taught.leaves) if leaf != "ok"], 0] = 8.0
    if is_blind:
        state["body.0.weight"][0] = 0
        weight.zero_()
    head = {"head.weight": weight, "head.bias": torch.zeros(len(weight))}
    return Parent(1, run.taught.leaves, {**state, **head}, name="south", learned_from=learned_from)


def test_every_labelled_lot_judges_but_the_train_lots_of_a_plant_that_the_donor_has_learned_from(tmp_path):
    run = begun(tmp_path, num_train=40, num_select=12)
    lots = {name: set(starts.worth_of(run, known=known).lots) for name, known in (("all", ()), ("few", ("north",)))}
    assert lots["all"] == {f"north-{i}" for i in range(26)}
    assert lots["few"] == {f"north-{i}" for i in range(20, 26)}
    for learned_from, num in ((("south",), 26), (("north", "south"), 6)):
        found = starts.judge(replace(run, parent=donor(run, learned_from=learned_from)))
        assert found["n_lots"] == num
        assert (found["low"] is None) == (num < 10)


def test_harm_that_a_handful_of_select_lots_cannot_show_is_shown_by_the_plants_train_lots(tmp_path):
    run = begun(tmp_path, num_train=60, num_select=12)
    known = starts.judge(replace(run, parent=donor(run, is_blind=True, learned_from=("north",))))
    found = starts.judge(replace(run, parent=donor(run, is_blind=True)))
    assert (known["refused"], found["refused"]) == (False, True)
    assert not starts.judge(replace(run, parent=donor(run)))["refused"]


def test_a_start_equal_to_the_pretrained_one_gains_nothing_and_is_not_refused(tmp_path):
    run = begun(tmp_path, num_train=40, num_select=12)
    empty = donor(run)
    empty.state["head.weight"].zero_()
    found = starts.judge(replace(run, parent=empty))
    assert abs(found["difference"]) < 0.05
    assert not found["refused"]


def test_no_head_has_seen_the_lot_that_it_judges(tmp_path):
    """Each lot is a class of its own to look at: who has seen it knows it, who has not can only guess."""

    def paired(rows):
        words = np.where(np.random.default_rng(1).random(len(rows) // 2) < 0.5, "crack", "good").repeat(2)
        return rows.assign(label=words, truth=words)

    run = begun(tmp_path, change=paired, num_train=40, num_select=12)
    (source,) = run.taught.data.plants
    maps = np.zeros((52, 6), np.float16)
    maps[np.arange(52), np.arange(52) // 2 % 6] = np.arange(52) // 2 + 1
    for view in (0, 1):
        np.save(source.path(0, view), maps[: 40 if view else 52])
    assert float(starts.worth_of(run).losses.mean()) > 0.6


@pytest.mark.parametrize(
    ("num_train", "num_select", "learned_from", "num_lots"),
    [(2, 0, (), 0), (2, 2, (), 2), (40, 0, ("north",), 0), (8, 10, (), 9)],
)
def test_of_too_few_lots_no_harm_is_said_and_nothing_refused(tmp_path, num_train, num_select, learned_from, num_lots):
    run = begun(tmp_path, num_train=num_train, num_select=num_select)
    found = starts.judge(replace(run, parent=donor(run, is_blind=True, learned_from=learned_from)))
    assert (found["n_lots"], found["low"], found["refused"]) == (num_lots, None, False)
    assert (found["difference"] is None) == (num_lots == 0)


def test_the_pretrained_start_measured_once_for_many_donors_gives_each_the_same_judgement(tmp_path):
    run = begun(tmp_path, num_train=40, num_select=12)
    taken = replace(run, parent=donor(run))
    assert starts.judge(taken, pretrained=starts.worth_of(run)) == starts.judge(taken)
