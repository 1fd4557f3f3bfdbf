"""The epoch loop, on activations that a second of CPU can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from jobs.recipe import Recipe, Stage
from jobs.selection import Score
from jobs.supervision import Supervision
from jobs.train import Checkpoints, Parent, World, fit
from tests.jobs.toys import ToyModel, toy_run

RECIPE = Recipe(stages=(Stage(cut=1, epochs=4),), views=2, batch=16)


class Killed(Exception):
    """Stands for a kill -9 between two epochs."""


@pytest.mark.slow
def test_a_run_learns_and_keeps_a_stage_only_if_it_wins_on_select(tmp_path):
    run = toy_run(tmp_path)
    frozen = fit(ToyModel(), **run, recipe=RECIPE.model_copy(update={"stages": ()}), seed=0)
    tuned = fit(ToyModel(), **run, recipe=RECIPE, seed=0)
    assert frozen.cut == 0
    assert frozen.score.value > 0.5
    assert tuned.score.beats(frozen.score) == (tuned.cut == 1)
    assert tuned.score.nll <= frozen.score.nll


FROZEN = RECIPE.model_copy(update={"stages": ()})


def test_a_frozen_head_learns_from_select_and_is_judged_there_by_heads_that_did_not(tmp_path):
    run = toy_run(tmp_path, num_train=6, num_select=24)
    rows = run["data"].plants[0].rows
    rows["label"] = rows["truth"] = np.random.default_rng(0).permutation(rows["label"].to_numpy())
    fitted = fit(ToyModel(), **run, recipe=FROZEN, seed=0)
    branch = ToyModel().new_branch(0, fitted.leaves)
    branch.load_state_dict(fitted.state)
    taught = Supervision(run["data"], leaf_sets=run["leaf_sets"], leaves=run["leaves"], max_class_weight=5)
    assert taught.judge_branch(branch, cut=0).nll < fitted.score.nll - 0.1


def test_what_stages_and_children_start_from_has_not_seen_select(tmp_path):
    run = toy_run(tmp_path)
    fitted = fit(ToyModel(), **run, recipe=FROZEN, seed=0)
    for rows in (data.rows for data in run["data"].plants):
        rows["is_learned"] = rows["role"] == "train"
    judged_only = fit(ToyModel(), **run, recipe=FROZEN, seed=0)
    for key in ("head.weight", "head.bias"):
        assert torch.equal(fitted.start[key], judged_only.start[key])
        assert not torch.allclose(fitted.state[key], judged_only.state[key], atol=1e-3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    run = toy_run(tmp_path)
    a, b, c = (fit(ToyModel(), **run, recipe=RECIPE, seed=seed) for seed in (1, 1, 2))
    assert a.history == b.history
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    assert a.history != c.history


@pytest.mark.parametrize(
    ("die_after", "settings"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (2, {"balance": "sampling", "loss": "focal", "accumulate": 3}),
        (2, {"balance": "sampling", "loss": "cost"}),
        (2, {"average_epochs": True}),
    ],
)
@pytest.mark.slow
def test_a_run_killed_between_epochs_ends_as_if_it_had_not_been(tmp_path, die_after, settings):
    run, recipe = toy_run(tmp_path), RECIPE.model_copy(update=settings)
    undisturbed = fit(ToyModel(), **run, recipe=recipe, seed=3)
    saved: list[bytes] = []
    epochs = []

    def on_epoch(row):
        epochs.append(row)
        if row["stage"] == 1 and row["epoch"] == die_after + 1:
            raise Killed

    with pytest.raises(Killed):
        fit(
            ToyModel(),
            **run,
            recipe=recipe,
            seed=3,
            checkpoints=Checkpoints(save=saved.append, every_s=0),
            on_epoch=on_epoch,
        )
    again = []
    resumed = fit(
        ToyModel(),
        **run,
        recipe=recipe,
        seed=3,
        checkpoints=Checkpoints(load=lambda: saved[-1]),
        on_epoch=again.append,
    )
    assert [row["epoch"] for row in again] == list(range(die_after + 1, 5))
    assert resumed.history == undisturbed.history
    for got, whole in ((resumed.state, undisturbed.state), (resumed.start, undisturbed.start)):
        assert all(torch.equal(got[k], whole[k]) for k in whole)


def test_the_mean_of_epochs_is_kept_where_it_is_better_and_only_then(tmp_path):
    run = toy_run(tmp_path)
    for lr_backbone in (1e-3, 1e-5):
        stage = Stage(cut=1, epochs=4, lr_backbone=lr_backbone, lr_head=0.1, warmup_epochs=0)
        given = Recipe(stages=(stage,), views=2, patience=10)
        recipes = (given, given.model_copy(update={"average_epochs": True}))
        plain, mean = (fit(ToyModel(), **run, recipe=recipe, seed=3) for recipe in recipes)
        assert [row.get("loss") for row in mean.history] == [row.get("loss") for row in plain.history]
        assert mean.score.nll <= plain.score.nll
        assert all(b["select_nll"] <= a["select_nll"] for a, b in zip(plain.history, mean.history, strict=True))


def test_a_long_epoch_says_how_far_it_is_now_and_then_and_changes_nothing(tmp_path):
    run, now, parts, epochs = toy_run(tmp_path), 0.0, [], []

    def clock() -> float:
        nonlocal now
        now += 0.4
        return now

    told = fit(ToyModel(), **run, recipe=RECIPE, seed=3, clock=clock, on_part=parts.append, on_epoch=epochs.append)
    assert told.history == fit(ToyModel(), **run, recipe=RECIPE, seed=3).history == epochs
    assert all(set(row) == {"stage", "epoch", "part"} and 0 < row["part"] <= 1 for row in parts)
    assert 0 < len(parts) < 4 * 4  # steps
    assert [(row["stage"], row["epoch"]) for row in parts] == sorted((row["stage"], row["epoch"]) for row in parts)


def test_a_row_without_a_label_stops_the_run_with_the_plant_and_frame(tmp_path):
    run = toy_run(tmp_path)
    rows = run["data"].plants[0].rows
    rows.loc[3, "label"] = "?"
    with pytest.raises(ValueError, match=r"plant north: 1 rows have no label \(NaN\), e.g. north-3"):
        type(run["data"])(run["data"].plants)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(tmp_path):
    run = toy_run(tmp_path)
    folder = run["data"].plants[0].folder
    for view in (0, 1):
        broken = np.load(folder / f"cut1.view{view}.npy")
        broken[0] = np.nan
        np.save(folder / f"cut1.view{view}.npy", broken)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, first in the batch of") as caught:
        fit(ToyModel(), **toy_run_from(run), recipe=RECIPE, seed=0)
    named = str(caught.value).partition("batch of ")[2].partition(": lower")[0].split(", ")
    assert "north: north-0" in named
    assert len(named) == RECIPE.batch


def toy_run_from(run):
    from jobs import activations

    activations._MAPS.clear()
    return run


@pytest.mark.slow
def test_a_warm_start_begins_at_its_parent_and_maps_leaves_by_name(tmp_path):
    big = toy_run(tmp_path / "big", "north", num_train=200)
    parent = fit(ToyModel(), **big, recipe=RECIPE, seed=0)
    small = toy_run(tmp_path / "small", "south", num_train=4, num_select=40)
    order = list(reversed(parent.leaves))
    shuffled = {**parent.start}
    for key in ("head.weight", "head.bias"):
        shuffled[key] = parent.start[key].flip(0)
    warm = fit(
        ToyModel(),
        **small,
        recipe=RECIPE,
        seed=0,
        parent=Parent(cut=parent.cut, leaves=tuple(order), state=shuffled),
    )
    alone = fit(ToyModel(), **small, recipe=RECIPE, seed=0)
    assert warm.score.nll <= alone.score.nll
    assert warm.score.value > 0.5


def test_the_worth_of_several_plants_is_that_of_the_worst(tmp_path):
    run = toy_run(tmp_path, "north", "south")
    fitted = fit(ToyModel(), **run, recipe=RECIPE, seed=0)
    assert set(fitted.score.by_plant) == {"north", "south"}
    assert fitted.score.value <= np.mean(list(fitted.score.by_plant.values())) + 1e-9


class NoNorm(ToyModel):
    """Branches whose BatchNorm stands still, as the default recipe keeps it."""

    def new_branch(self, *args, **kwargs):
        branch = super().new_branch(*args, **kwargs)
        if isinstance(branch.body, nn.Sequential):
            branch.body[1] = nn.Identity()
        return branch


SETTINGS = ({}, {"balance": "sampling", "loss": "cost", "accumulate": 3})


def fit_with_others(rank: int, folder: Path) -> None:
    """One of two processes that fit the toy run together; the first writes what came out."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    run, world = toy_run(folder / f"rank{rank}", "north", "south"), World(rank=rank, size=2)
    for number, settings in enumerate(SETTINGS):
        fitted = fit(NoNorm(), **run, recipe=RECIPE.model_copy(update=settings), seed=5, world=world)
        if rank == 0:
            torch.save({"history": fitted.history, "state": fitted.state}, folder / f"fitted{number}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_alone(tmp_path):
    multiprocessing.spawn(fit_with_others, args=(tmp_path,), nprocs=2)
    run = toy_run(tmp_path / "alone", "north", "south")
    for number, settings in enumerate(SETTINGS):
        alone = fit(NoNorm(), **run, recipe=RECIPE.model_copy(update=settings), seed=5)
        together = torch.load(tmp_path / f"fitted{number}.pt")
        assert [row["select"] for row in together["history"]] == [row["select"] for row in alone.history]
        assert alone.history
        for row, other in zip(alone.history, together["history"], strict=True):
            assert other.get("loss") == pytest.approx(row.get("loss"), abs=1e-4)
        for key, value in alone.state.items():
            torch.testing.assert_close(together["state"][key], value, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 3, 16])
@pytest.mark.parametrize("loss", ["weighted", "focal", "cost"])
def test_a_batch_in_portions_takes_the_step_of_the_whole_batch(tmp_path, accumulate, loss):
    run = toy_run(tmp_path, "north", "south")
    recipe = RECIPE.model_copy(update={"dropout": 0.0, "loss": loss, "stages": (Stage(cut=1, epochs=2),)})
    whole = fit(NoNorm(), **run, recipe=recipe, seed=5)
    parts = fit(NoNorm(), **run, recipe=recipe.model_copy(update={"accumulate": accumulate}), seed=5)
    assert whole.history
    for row, other in zip(whole.history, parts.history, strict=True):
        assert other.get("loss") == pytest.approx(row.get("loss"), abs=1e-6)
        assert other["select_nll"] == pytest.approx(row["select_nll"], abs=1e-6)
    for key, value in whole.state.items():
        torch.testing.assert_close(parts.state[key], value, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_the_loss_and_the_balance_are_those_of_the_recipe(tmp_path):
    run = toy_run(tmp_path, num_train=40)
    rows = run["data"].plants[0].rows
    cracks = rows.index[(rows["label"] == "crack") & (rows["role"] == "train")]
    rows.loc[cracks[4:], ["label", "truth"]] = "good"
    settings = [{}, {"loss": "focal"}, {"loss": "focal", "gamma": 1}, {"loss": "cost"}, {"balance": "sampling"}]
    settings += [{"balance": "none"}]
    fits = [fit(NoNorm(), **run, recipe=RECIPE.model_copy(update=one), seed=0) for one in settings]
    losses = [fitted.history[1]["loss"] for fitted in fits]
    assert len(set(losses)) == len(settings)
    assert losses[1] < losses[2] < losses[0] < losses[3]
    frozen = [fit(NoNorm(), **run, recipe=FROZEN.model_copy(update=one), seed=0) for one in settings]
    assert all(torch.equal(one.state["head.weight"], frozen[0].state["head.weight"]) for one in frozen[:5])
    assert not torch.equal(frozen[5].state["head.weight"], frozen[0].state["head.weight"])


@pytest.mark.slow
def test_a_rate_is_halved_where_select_jumps_about_and_the_run_says_when(tmp_path, monkeypatch):
    scores = [0.8, 0.5, 0.8, 0.5, 0.8, 0.5, 0.8]
    steep = RECIPE.model_copy(update={"stages": (Stage(cut=1, epochs=7),), "patience": 9})
    fits = {}
    for on_jump in ("halve", "ignore"):
        said = iter(scores)
        monkeypatch.setattr(Supervision, "judge_branch", lambda *args, **more: Score(0.5, next(said), {}))  # noqa: B023
        fits[on_jump] = fit(
            ToyModel(), **toy_run(tmp_path / on_jump), recipe=steep.model_copy(update={"on_jump": on_jump}), seed=0
        )
    halved, ignored = fits["halve"], fits["ignore"]
    assert [row["rate"] for row in halved.history[1:]] == [1.0] * 5 + [0.5] * 2
    assert "stage 1, epoch 5: the select loss jumps about, rate halved" in halved.notes
    assert [row["loss"] for row in halved.history[1:6]] == [row["loss"] for row in ignored.history[1:6]]
    assert halved.history[6]["loss"] != ignored.history[6]["loss"]
    assert {row["rate"] for row in ignored.history[1:]} == {1.0}
    assert any("by epoch 5; on_jump: halve" in note for note in ignored.notes)


def fit_beside_a_doubter(rank: int, folder: Path) -> None:
    """One of two processes that fit the toy run together; the second judges by itself that nothing is ever learned."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    if rank == 1:
        Supervision.judge_rows = Supervision.judge_branch = lambda *args, **more: Score(0.0, 9.0, {})
    fitted = fit(NoNorm(), **toy_run(folder / f"rank{rank}"), recipe=RECIPE, seed=5, world=World(rank=rank, size=2))
    torch.save({"history": fitted.history, "cut": fitted.cut, "nll": fitted.score.nll}, folder / f"fitted{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_keep_and_stop_by_the_score_of_the_first(tmp_path):
    multiprocessing.spawn(fit_beside_a_doubter, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"fitted{rank}.pt") for rank in (0, 1))
    assert first["nll"] < 9
    assert first == second
