"""Starting from other runs: harm by a donor is refused, weights are averaged, and what is forgotten is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs import forgetting
from jobs.activations import PlantData, RunData
from jobs.adapt import Parent, judged, load_parent, mean_of, words
from jobs.recipe import Recipe, Stage
from jobs.train import Checkpoints, fit
from tests.jobs.nets import images, model_of
from tests.jobs.toys import ToyModel, toy_data, toy_fleet

FLEET = toy_fleet("north", "south")
LEAVES = FLEET.leaves(FLEET.plants)
LEAF_SETS = {plant.name: FLEET.leaf_sets(plant) for plant in FLEET.plants}
FROZEN = Recipe(stages=(), views=2)


class Curved(ToyModel):
    """Toy branches that bend, so that their stages can help and harm; with BatchNorm or without."""

    def __init__(self, *, norm: bool = True) -> None:
        self.norm = norm

    def new_branch(self, *args, **kwargs):
        branch = super().new_branch(*args, **kwargs)
        if isinstance(branch.body, nn.Sequential):
            branch.body = nn.Sequential(*list(branch.body)[: 2 if self.norm else 1], nn.ReLU())
        return branch


def woven(
    folder: Path,
    name: str,
    *,
    num_train: int,
    num_select: int,
    seed: int,
    sign: float = 1,
    light: float = 0,
    loud: float = 1,
    bright: float = 0.5,
) -> PlantData:
    """A plant of maps whose first two channels go together in cracks and against each other elsewhere.

    sign: -1 is the other way round. loud: their amplitude. light: what the plant's lamp adds to every channel.
    bright: what cracks add to a third channel.
    """
    data = toy_data(folder, fleet=FLEET, name=name, num_train=num_train, num_select=num_select, seed=seed)
    rng = np.random.default_rng([seed, 7])
    is_crack = (data.rows["label"] == "crack").to_numpy()
    maps = rng.normal(size=(len(is_crack), 6, 4, 4))
    maps[:, 1] = np.where(is_crack, 0.9, -0.9)[:, None, None] * sign * maps[:, 0] + np.sqrt(1 - 0.81) * maps[:, 1]
    maps[:, :2] *= loud
    maps[is_crack, 2] += bright
    maps += light
    for view in (0, 1):
        shown = maps if view == 0 else maps[:num_train] + rng.normal(0, 0.05, (num_train, 6, 4, 4))
        np.save(folder / f"cut1.view{view}.npy", shown.astype(np.float16))
        np.save(folder / f"cut0.view{view}.npy", np.maximum(shown, 0).mean((2, 3)).astype(np.float16))
    return data


def run_of(*plants: PlantData) -> dict[str, Any]:
    return {"data": RunData(plants), "leaf_sets": LEAF_SETS, "leaves": LEAVES}


def donor_of(data: PlantData, *, model: Any, epochs: int = 8, seed: int = 0) -> Parent:
    recipe = Recipe(stages=(Stage(cut=1, epochs=epochs),), views=2, patience=10)
    fitted = fit(model, **run_of(data), recipe=recipe, seed=seed)
    return Parent(fitted.cut, fitted.leaves, fitted.start, name="own-south-s0")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_donor_from_under_another_lamp_is_refused_and_one_from_under_the_same_is_not(tmp_path, seed):
    target = woven(tmp_path / "north", "north", num_train=8, num_select=120, seed=100 + seed)
    for light, is_refused in ((5, True), (0, False)):
        data = woven(tmp_path / f"south{light}", "south", num_train=320, num_select=0, seed=seed, light=light)
        donor = donor_of(data, model=Curved(), seed=seed)
        assert donor.cut == 1
        fitted = fit(Curved(), **run_of(target), recipe=FROZEN, seed=seed, parent=donor)
        assert fitted.is_refused == is_refused, fitted.notes


def test_a_refused_run_trains_no_stage_and_says_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.adapt.judged", lambda parent, **given: {**judged(parent, **given), "refused": True})
    data = woven(tmp_path / "north", "north", num_train=32, num_select=40, seed=0)
    donor = Parent(0, LEAVES, fit(Curved(), **run_of(data), recipe=FROZEN, seed=0).start, name="own-south-s0")
    rows = []
    one_stage = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)
    fitted = fit(Curved(), **run_of(data), recipe=one_stage, seed=0, parent=donor, on_epoch=rows.append)
    assert (rows, fitted.history) == ([], [])
    assert set(fitted.donor) == {"parent", "difference", "low", "high", "n_lots", "refused"}
    assert "own-south-s0" in fitted.notes[-1]
    assert fitted.notes[-1].endswith("refused")


def lots(num: int, *, of: int = 2) -> np.ndarray:
    return np.array([f"lot-{i // of}" for i in range(num)], dtype=object)


@pytest.mark.parametrize(
    ("num_lots", "gain", "refused", "said"),
    [
        (20, -0.5, True, "worse: refused"),
        (20, 0.5, False, "better"),
        (20, 0.0, False, "harm is not shown"),
        (9, -0.5, False, "lots: 9, fewer than 10, so harm is not shown"),
        (0, -0.5, False, "no labelled part to judge its start by"),
    ],
)
def test_only_harm_that_the_lots_show_refuses_a_donor(num_lots, gain, refused, said):
    rng = np.random.default_rng(0)
    base = rng.normal(-0.7, 0.3, 2 * num_lots)
    noise = rng.normal(0, 0.2, 2 * num_lots)
    found = judged("p", donor=base + gain + noise - (noise.mean() if num_lots else 0), pretrained=base,
                   lots=lots(2 * num_lots))  # fmt: skip
    assert found["refused"] is refused
    assert words(found).endswith(said)


def test_a_donor_that_differs_by_chance_is_refused_in_about_one_run_of_twenty():
    rng = np.random.default_rng(1)
    zero = np.zeros(40)
    refused = [judged("p", donor=rng.normal(0, 1, 40), pretrained=zero, lots=lots(40))["refused"] for _ in range(400)]
    assert 0.03 < np.mean(refused) < 0.075


def test_the_mean_of_two_branches_is_the_mean_of_their_weights_and_of_their_heads_by_leaf(tmp_path):
    data = woven(tmp_path / "north", "north", num_train=16, num_select=8, seed=0)
    a, b = (Curved().new_branch(1, LEAVES, seed=seed).state_dict() for seed in (1, 2))
    a["body.0.weight"] += 1.0
    shuffled = {**b, "head.weight": b["head.weight"].flip(0), "head.bias": b["head.bias"].flip(0)}
    parents = [Parent(1, LEAVES, a, name="a"), Parent(1, tuple(reversed(LEAVES)), shuffled, name="b")]
    mean = mean_of(parents, model=Curved(), leaves=LEAVES, data=RunData((data,)), freeze_norm=True)
    for key in ("body.0.weight", "head.weight", "head.bias"):
        torch.testing.assert_close(mean.state[key], (a[key] + b[key]) / 2)
    assert mean.name == "mean of a, b"


def test_a_frozen_parent_counts_with_the_pretrained_stages():
    model = model_of()
    leaves = ("ok", "crack")
    deep, flat = model.new_branch(1, leaves, seed=1), model.new_branch(0, leaves, seed=2)
    with torch.no_grad():
        for parameter in deep.body.parameters():
            parameter.add_(0.1)
    parents = [Parent(1, leaves, deep.state_dict()), Parent(0, leaves, flat.state_dict())]
    mean = mean_of(parents, model=model, leaves=leaves, data=RunData(()), freeze_norm=True)
    assert mean.cut == 1
    for key, pretrained in model.new_branch(1, leaves).body.state_dict().items():
        want = (pretrained + deep.state_dict()[f"body.{key}"]) / 2 if pretrained.is_floating_point() else pretrained
        torch.testing.assert_close(mean.state[f"body.{key}"], want)


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_a_means_norms_know_its_own_activations_where_runs_train_them(tmp_path, freeze_norm):
    data = woven(tmp_path / "north", "north", num_train=64, num_select=8, seed=0, light=3)
    states = [Curved().new_branch(1, LEAVES, seed=seed).state_dict() for seed in (1, 2)]
    for state, mean in zip(states, (1.0, 2.0), strict=True):
        state["body.1.running_mean"].fill_(mean)
    parents = [Parent(1, LEAVES, state) for state in states]
    found = mean_of(parents, model=Curved(), leaves=LEAVES, data=RunData((data,)), freeze_norm=freeze_norm)
    known = found.state["body.1.running_mean"]
    maps = data.fetch(1, ids=np.arange(64), views=np.zeros(64, int))
    want = np.full(6, 1.5) if freeze_norm else maps.mean((0, 2, 3))
    np.testing.assert_allclose(known.numpy(), want, atol=0.05)


def test_a_mean_keeps_its_head_only_where_one_fitted_anew_is_no_better(tmp_path):
    data = woven(tmp_path / "north", "north", num_train=64, num_select=60, seed=0)
    known = fit(Curved(), **run_of(data), recipe=FROZEN, seed=0)
    none = {**known.start, "head.weight": torch.zeros(2, 6), "head.bias": torch.zeros(2)}
    for state, is_kept in ((known.state, True), (none, False)):
        mean = Parent(0, LEAVES, state, name="mean", is_whole=True)
        fitted = fit(Curved(), **run_of(data), recipe=FROZEN, seed=0, parent=mean)
        assert torch.equal(fitted.state["head.weight"], state["head.weight"]) == is_kept
        assert (fitted.notes[0], fitted.notes[1] == "the head is the parents'") == ("mean", is_kept)


def test_leaves_that_a_parent_has_not_begin_at_zero_or_at_what_is_given():
    model, known = model_of(), ("ok", "crack")
    state = model.new_branch(0, known, seed=1).state_dict()
    branch = model.new_branch(0, ("crack", "pit"), seed=2)
    head = load_parent(branch, parent=Parent(0, known, state), leaves=("crack", "pit"))
    assert torch.equal(head.weight, torch.stack([state["head.weight"][1], torch.zeros(model.feature_dim)]))
    other = type(head)(torch.ones(2, model.feature_dim), torch.ones(2))
    head = load_parent(branch, parent=Parent(0, known, state), leaves=("crack", "pit"), otherwise=other)
    assert torch.equal(branch.head.weight[1], torch.ones(model.feature_dim))
    assert torch.equal(branch.head.weight[0], state["head.weight"][1])


def forgetful(tmp_path: Path, **settings: float) -> float:
    """What a child loses at its parent's plant, in nats a part: its cracks look like good parts there."""
    one, other = ({"num_train": num, "num_select": 60, "loud": 3, "bright": 0} for num in (200, 64))
    north = woven(tmp_path / "north", "north", seed=1, **one)
    south = woven(tmp_path / "south", "south", seed=101, sign=-1, **other)
    model = Curved(norm=False)
    parent = donor_of(north, model=model, epochs=20, seed=1)
    recipe = Recipe(stages=(Stage(cut=1, epochs=40),), views=2, patience=10, **settings)
    known = RunData((north,))
    child = fit(model, **run_of(south), recipe=recipe, seed=1, parent=parent, known=known)
    assert child.cut == 1
    row = child.forgetting["north"]
    assert set(row) == {"before", "after", "before_nll", "after_nll"}
    assert child.notes[-1].startswith("forgetting on select, plants that its parent knew: 1; north most")
    return row["after_nll"] - row["before_nll"]


@pytest.mark.slow
def test_l2_sp_and_replay_make_a_run_forget_less_and_the_more_the_stronger_they_are(tmp_path):
    plain, weak, strong = (forgetful(tmp_path, l2_sp=value) for value in (0, 1, 10))
    assert plain > weak > strong > 0
    quarter, half = (forgetful(tmp_path, replay=value) for value in (0.25, 0.5))
    assert plain > quarter > half
    assert half < plain / 2


@pytest.mark.slow
def test_a_replaying_run_killed_between_epochs_ends_as_if_it_had_not_been(tmp_path):
    north = woven(tmp_path / "north", "north", num_train=40, num_select=20, seed=1)
    south = woven(tmp_path / "south", "south", num_train=40, num_select=20, seed=101)
    recipe = Recipe(stages=(Stage(cut=1, epochs=4),), views=2, l2_sp=0.1, replay=0.5)
    saved: list[bytes] = []
    given = {"recipe": recipe, "seed": 1, "parent": donor_of(north, model=Curved()), "known": RunData((north,))}
    whole = fit(
        Curved(), **run_of(south), **given, checkpoints=Checkpoints(save=saved.append, every_s=0, load=lambda: None)
    )
    assert len(saved) == 4
    resumed = fit(Curved(), **run_of(south), **given, checkpoints=Checkpoints(load=lambda: saved[1]))
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.state[key], whole.state[key]) for key in whole.state)
    assert (resumed.donor, resumed.forgetting) == (whole.donor, whole.forgetting)


def test_the_pull_is_the_gradient_of_half_the_squared_distance_and_leaves_the_head_alone():
    model = model_of()
    branch = model.new_branch(1, ("ok", "crack"))
    origin = {key: value.detach() - 0.5 for key, value in branch.state_dict().items()}
    optimizer = torch.optim.SGD(branch.parameters(), lr=0.1)
    forgetting.pull(optimizer, branch, towards=origin, strength=2.0)
    before = {name: value.detach().clone() for name, value in branch.named_parameters()}
    for value in branch.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, value in branch.named_parameters():
        moved = 0.0 if name.startswith("head.") else 0.1 * 2.0 * 0.5
        torch.testing.assert_close(before[name] - value.detach(), torch.full_like(value, moved))


def test_replayed_rows_have_their_share_of_what_a_head_is_fitted_to(tmp_path):
    north = woven(tmp_path / "north", "north", num_train=30, num_select=8, seed=0)
    taught = fit_taught(north)
    x = torch.zeros(10, 6)
    own = forgetting.Lesson(x, taught.targets[:10], taught.mask[:10], torch.ones(10))
    old = forgetting.Lesson(torch.ones(30, 6), taught.targets[:30], taught.mask[:30], taught.weights[:30])
    both, weight = forgetting.Replay(taught, 0.25).beside(own, old)
    assert float(both.weights.mean()) == pytest.approx(1)
    assert float(both.weights[10:].sum() / both.weights.sum()) == pytest.approx(0.25)
    assert float(both.weights[0]) == pytest.approx(weight)


def fit_taught(data: PlantData) -> Any:
    return forgetting.Supervision(RunData((data,)), leaf_sets=LEAF_SETS, leaves=LEAVES, max_class_weight=5)


def test_a_mean_is_a_branch_that_can_be_served():
    """What averaging gives loads into a fresh branch and answers there as it did."""
    model, leaves = model_of(), ("ok", "crack")
    parents = [Parent(1, leaves, model.new_branch(1, leaves, seed=seed).state_dict()) for seed in (1, 2)]
    mean = mean_of(parents, model=model, leaves=leaves, data=RunData(()), freeze_norm=True)
    branch = model.new_branch(1, leaves, seed=9)
    branch.load_state(mean.state)
    x = model.trunk(torch.from_numpy(images()))[1]
    want = (
        sum(branch_of(model, parent)(x)[0] for parent in parents) / 2
    )  # heads alone differ here, and these are linear
    torch.testing.assert_close(branch.eval()(x)[0], want, atol=1e-5, rtol=0)


def branch_of(model: Any, parent: Parent) -> Any:
    branch = model.new_branch(parent.cut, parent.leaves)
    branch.load_state(parent.state)
    return branch.eval()
