"""Training from random weights: the whole net, on images, and nothing that was pretrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from cluster.settings import Settings
from jobs.backbone import load_backbone
from jobs.compress import BranchExporter, agrees, export_trunk, parity_full
from jobs.fit import fit_run
from jobs.fleet import planned, train_fleet
from jobs.material import Material
from jobs.model import load_model
from jobs.recipe import Recipe, Stage
from jobs.scratch import deepest_cut, pixels, scratch_model, scratch_recipe
from plants.errors import InputError
from plants.plant import Fleet, Trunk
from tests.fleets import drawn_fleet, imported
from tests.jobs.nets import images, model_of

RECIPE = Recipe(stages=(Stage(cut=1, epochs=1, warmup_epochs=0),), views=1, compute="float32")
BARE = Recipe(
    init="random", freeze_norm=False, patience=9, stages=(Stage(cut=5, epochs=2, lr_head=1e-2, lr_backbone=1e-2),)
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("drawn")
    path = drawn_fleet(folder, "mill")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["trunks"] = [{"backbone": "test_resnet", "size_px": 32, "cuts": [0, 1, 5]}]
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return imported(path)


def material(fleet: Fleet, cache: Path, **trunk: object) -> Material:
    changed = fleet.model_copy(update={"trunks": (fleet.trunks[0].model_copy(update=trunk),)})
    return Material(changed, cache=cache, recipe=RECIPE)


@pytest.mark.parametrize(("num_parts", "epochs"), [(10_000, 30), (320, 30), (60, 160), (30, 320), (1, 500)])
def test_a_run_from_scratch_has_thirty_epochs_and_more_where_they_are_short(num_parts: int, epochs: int):
    recipe = scratch_recipe(Recipe(dropout=0.1, batch=16, average_epochs=True), cut=5, num_parts=num_parts)
    (stage,) = recipe.stages
    assert (stage.cut, stage.epochs, recipe.patience) == (5, epochs, epochs)
    assert stage.lr_head == stage.lr_backbone > 1e-3
    assert (recipe.init, recipe.freeze_norm, recipe.layer_decay, recipe.dropout) == ("random", False, 1.0, 0.1)


def test_a_fleet_that_does_not_allow_the_deepest_cut_is_told_which_to_add():
    assert deepest_cut(model_of(cuts=(0, 1, 5))) == 5
    with pytest.raises(InputError, match=r"test_resnet from scratch needs its cut 5\. Add 5 to `cuts` of `trunks:`"):
        deepest_cut(model_of(cuts=(0, 1, 2)))
    with pytest.raises(InputError, match="needs its cut 5"):
        deepest_cut(model_of(cuts=(0,)))


@pytest.mark.slow
def test_a_plan_with_baselines_is_refused_where_the_whole_net_cannot_be_served(fleet: Fleet, tmp_path: Path):
    at = material(fleet, tmp_path, cuts=(0, 1))
    assert "own-mill-s0" in {run.run_id for run in planned(at.fleet, material=at, recipe=RECIPE).runs}
    with pytest.raises(InputError, match=r"field trunks\.cuts: training test_resnet from scratch needs its cut 5"):
        planned(at.fleet, material=at, recipe=RECIPE, baselines=True)


def test_a_fleets_recipe_may_not_start_from_random_weights(fleet: Fleet, tmp_path: Path):
    with pytest.raises(InputError, match=r"field init: .* random weights\. Use --baselines"):
        train_fleet(fleet, settings=Settings(home=tmp_path), recipe=BARE)


@pytest.mark.slow
def test_the_deepest_cut_is_where_the_normalised_image_crosses():
    model = model_of(cuts=(0, 5))
    batch = torch.from_numpy(images())
    assert torch.equal(model.trunk(batch)[5], model.trunk.normalise(batch))
    assert sum(p.numel() for p in model.new_branch(5, ["a"]).body.parameters()) == sum(
        p.numel() for p in model.backbone.parameters()
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_net_whatever_the_trunk_was_pretrained_on(fleet: Fleet, tmp_path: Path):
    """The embedded weights, and others with the same mean and deviation: not one number of a run may differ."""
    own = material(fleet, tmp_path / "a")
    noise = load_backbone(Trunk(backbone="test_resnet", weights="none", size_px=32), seed=99).net.state_dict()
    save_file({name: value.contiguous() for name, value in noise.items()}, tmp_path / "noise.safetensors")
    given = {"mean": own.model.mean, "std": own.model.std, "weights": str(tmp_path / "noise.safetensors")}
    other = material(fleet, tmp_path / "b", **given)
    assert own.model.weights_digest != other.model.weights_digest
    fitted = []
    for at, seed in ((own, 0), (other, 0), (own, 1)):
        plan = planned(at.fleet, material=at, recipe=RECIPE, seeds=(seed,), baselines=True)
        run = plan.run(f"scratch-mill-s{seed}")
        short = run.__class__(**{**vars(run), "recipe": BARE.model_dump(mode="json")})
        fitted.append(fit_run(short, material=at, plan=plan))
    first, second, third = fitted
    assert first.history == second.history
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert first.history != third.history
    assert not (tmp_path / "a" / "activations").exists(), "a run from scratch asks the trunk for nothing"


@pytest.mark.slow
def test_a_run_from_scratch_learns_in_every_layer_and_keeps_its_own_batch_statistics(fleet: Fleet, tmp_path: Path):
    at = material(fleet, tmp_path)
    plan = planned(at.fleet, material=at, recipe=RECIPE, baselines=True)
    run = plan.run("scratch-mill-s0")
    short = run.__class__(**{**vars(run), "recipe": BARE.model_dump(mode="json")})
    rows: list[dict] = []
    fitted = fit_run(short, material=at, plan=plan, on_epoch=rows.append)
    assert [(row["stage"], row["epoch"]) for row in rows] == [(0, 0), (1, 1), (1, 2)]
    assert fitted.notes[0] == "from random weights"
    start = scratch_model(at, seed=0).new_branch(5, fitted.leaves, seed=0).state_dict()
    same = [name for name, value in fitted.state.items() if torch.equal(value, start[name])]
    assert fitted.score.nll < rows[0]["select_nll"]
    assert not same


def test_the_plain_view_is_what_serving_sees_and_every_other_view_one_of_its_own(fleet: Fleet, tmp_path: Path):
    at = material(fleet, tmp_path)
    data = pixels("mill", material=at, recipe=BARE)
    ids = np.array([3, 0, 3])
    plain = data.fetch(5, ids=ids, views=np.zeros(3, dtype=np.int64))
    served = at.model.trunk(torch.from_numpy(data.stream.pixels.take(data.rows["input"].to_numpy()[ids])))
    assert np.array_equal(plain, served[5].numpy())
    seen = data.fetch(5, ids=ids, views=np.array([7, 7, 8]))
    again = data.fetch(5, ids=ids[::-1], views=np.array([8, 7, 7]))
    assert np.array_equal(seen, again.flip(0)), "a view does not depend on its company"
    assert not np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], plain[0])
    assert np.array_equal(plain[0], data.fetch(5, ids=ids[:1], views=np.zeros(1, dtype=np.int64))[0])


@pytest.mark.slow
def test_the_exported_whole_net_answers_as_torch_does(tmp_path: Path):
    model = model_of(cuts=(0, 5), size_px=64)
    net = load_model(model.spec, seed=4).new_branch(5, ["ok", "crack"], seed=4)
    branch = model.new_branch(5, ["ok", "crack"])
    branch.load_state(net.state_dict())
    export_trunk(model, tmp_path / "trunk.onnx")
    BranchExporter(model, 5).write(branch, tmp_path / "branch.onnx")
    report = parity_full(
        model, branch, tmp_path / "trunk.onnx", tmp_path / "branch.onnx", images(6, size_px=64), batch=3
    )
    assert agrees(report), report


def test_the_recipe_of_a_fleet_says_what_a_run_from_scratch_sees():
    """Batches, losses and images stay those of the fleet's recipe: only what begins differs."""
    base = Recipe(batch=32, max_class_weight=2, augment={"strength": 0.1})
    found = scratch_recipe(base, cut=5, num_parts=100)
    assert (found.batch, found.max_class_weight, found.augment) == (32, 2, base.augment)
