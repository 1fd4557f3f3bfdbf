"""Severity beside the class: masked where it is not labelled, weighted, and dropped where it does not pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.recipe import Recipe, Stage
from jobs.supervision import Supervision
from jobs.tasks import SeverityTask, better, head_of, num_labelled
from jobs.train import Checkpoints, fit
from tests.jobs.toys import ToyModel, toy_run

ALONE = Recipe(stages=(Stage(cut=1, epochs=3),), views=2, batch=16)
WITH = ALONE.model_copy(update={"tasks": {"severity": 0.3}})
LEARNED = WITH.model_copy(update={"task_weights": "learned"})


def graded(tmp_path: Path, *, share: float = 0.8, is_told: bool = True, **sizes: int) -> dict[str, Any]:
    """A toy run whose cracks have severities, most of them labelled; the third channel tells them."""
    run = toy_run(tmp_path, **{"num_train": 160, "num_select": 80, **sizes})
    rng = np.random.default_rng(5)
    for data in run["data"].plants:
        rows = data.rows
        x = data.fetch(0, ids=np.arange(len(rows)), views=np.zeros(len(rows), dtype=np.int64))
        told = x[:, 2] if is_told else rng.permutation(x[:, 2])
        known = (rows["label"] == "crack").to_numpy() & (rng.random(len(rows)) < share)
        rows["severity"] = np.where(known, np.clip(0.5 + 0.8 * told, 0, 1), np.nan)
    return run


def supervision(run: dict[str, Any]) -> Supervision:
    return Supervision(run["data"], leaf_sets=run["leaf_sets"], leaves=run["leaves"], max_class_weight=5)


def test_rows_without_a_severity_move_nothing_of_it(tmp_path):
    taught = supervision(graded(tmp_path))
    task = SeverityTask(taught, recipe=WITH)
    at = torch.from_numpy(taught.train_ids[:40])
    said = torch.randn(40, requires_grad=True, generator=torch.Generator().manual_seed(0))
    task.loss(torch.tensor(0.0), said, torch.zeros(2), at).backward()
    known = np.isfinite(taught.data.column("severity")[at.numpy()].astype(float))
    assert 0 < known.sum() < 40
    assert (said.grad.numpy()[~known] == 0).all()
    assert (said.grad.numpy()[known] != 0).all()


def test_the_order_of_rows_does_not_matter_and_a_batch_without_labels_is_no_error(tmp_path):
    taught = supervision(graded(tmp_path))
    task = SeverityTask(taught, recipe=WITH)
    at = torch.from_numpy(taught.train_ids[:40])
    said, turned = torch.linspace(-1, 1, 40), torch.arange(39, -1, -1)
    one = task.loss(torch.tensor(1.0), said, torch.zeros(2), at)
    assert float(task.loss(torch.tensor(1.0), said[turned], torch.zeros(2), at[turned])) == pytest.approx(float(one))
    none = at[task.mask[at] == 0]
    assert float(task.loss(torch.tensor(1.0), said[: len(none)], torch.zeros(2), none)) == pytest.approx(0.7)


def test_fixed_shares_and_learned_noise_weigh_as_they_say(tmp_path):
    taught = supervision(graded(tmp_path))
    at, said = torch.from_numpy(taught.train_ids), torch.zeros(len(taught.train_ids))
    noise = torch.tensor([0.5, -0.5], requires_grad=True)
    fixed, learned = SeverityTask(taught, recipe=WITH), SeverityTask(taught, recipe=LEARNED)
    half = 0.5  # nothing is known: half the squared error, in units of the spread, over the rows that have a label
    assert fixed.loss(torch.tensor(2.0), said, noise, at).item() == pytest.approx(0.7 * 2 + 0.3 * half, abs=1e-3)
    found = learned.loss(torch.tensor(2.0), said, noise, at)
    assert found.item() == pytest.approx(2 * np.exp(-0.5) + half * np.exp(0.5), abs=1e-3)
    found.backward()
    assert noise.grad.tolist() == pytest.approx([0.5 - 2 * np.exp(-0.5), 0.5 - half * np.exp(0.5)], abs=1e-3)


def test_a_head_on_the_features_learns_what_they_tell(tmp_path):
    run = graded(tmp_path)
    data, ids = run["data"], run["data"].select_ids(0)
    head = head_of(ToyModel().new_branch(0, run["leaves"]), cut=0, data=data)
    truth = data.column("severity")[ids].astype(float)
    known = np.isfinite(truth)
    said = head.of(data.fetch(0, ids=ids).numpy())
    assert np.abs(said - truth)[known].mean() < 0.5 * np.abs(np.median(truth[known]) - truth[known]).mean()


def test_too_few_labels_make_no_head(tmp_path):
    run = graded(tmp_path, share=0.2)
    assert num_labelled(run["data"]) < 40
    assert head_of(ToyModel().new_branch(0, run["leaves"]), cut=0, data=run["data"]) is None


@pytest.mark.parametrize("recipe", [WITH, LEARNED])
def test_stages_learn_with_the_task_and_a_run_taken_up_again_gives_the_same(tmp_path, recipe):
    run, states = graded(tmp_path), []
    whole = fit(ToyModel(), **run, recipe=recipe, seed=0, checkpoints=Checkpoints(save=states.append, every_s=0))
    again = fit(ToyModel(), **run, recipe=recipe, seed=0, checkpoints=Checkpoints(load=lambda: states[0]))
    alone = fit(ToyModel(), **run, recipe=ALONE, seed=0)
    assert len(whole.history) == len(alone.history)
    assert whole.history[1]["loss"] != alone.history[1]["loss"]
    assert again.history == whole.history
    assert all(torch.equal(whole.state[key], again.state[key]) for key in whole.state)
    assert whole.state.keys() == alone.state.keys()


def stage_won(fitted: Any, state: dict[str, torch.Tensor]) -> Any:
    """The run as if a stage had ended in this state."""
    return replace(fitted, cut=1, state=state, start=state)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[dict[str, Any], Any, dict[str, torch.Tensor]]:
    run = graded(tmp_path)
    fitted = fit(ToyModel(), **run, recipe=ALONE, seed=0)
    branch = ToyModel().new_branch(1, fitted.leaves)
    state = {**branch.state_dict(), **{key: fitted.start[key] for key in ("head.weight", "head.bias")}}
    return run, fitted, state


def test_a_task_that_harms_the_class_is_dropped_and_one_that_pays_is_kept(trained):
    run, fitted, state = trained
    blind = {**state, "body.0.weight": state["body.0.weight"].clone()}
    blind["body.0.weight"][2] = 0  # severities cannot be seen any more, cracks as well as ever
    harmed = {**state, "head.weight": -state["head.weight"]}
    taught, sides = supervision(run), {"model": ToyModel()}
    kept, found = better(stage_won(fitted, blind), stage_won(fitted, state), taught=taught, **sides)
    assert found["mae"] < found["mae_alone"]
    assert found["kept"] == (found["interference"]["low"] <= 0)
    assert (kept.state is state) == found["kept"]
    kept, found = better(stage_won(fitted, blind), stage_won(fitted, harmed), taught=taught, **sides)
    assert found["interference"]["low"] > 0
    assert not found["kept"]
    assert kept.state is blind
    assert "not kept" in found["words"]


def test_a_task_that_brings_severities_no_nearer_is_dropped(trained):
    run, fitted, state = trained
    kept, found = better(
        alone := stage_won(fitted, state), stage_won(fitted, dict(state)), model=ToyModel(), taught=supervision(run)
    )
    assert found["interference"]["value"] == 0
    assert kept is alone


def test_learned_weights_need_a_task_and_a_share_leaves_some_to_the_class():
    with pytest.raises(ValueError, match="no task to weigh"):
        Recipe(task_weights="learned")
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="severity"):
            Recipe(tasks={"severity": share})
    with pytest.raises(ValueError, match="location"):
        Recipe.model_validate({"tasks": {"location": 0.3}})
