"""A plant that no model has seen is met by its frames alone; few of them, and nothing is adapted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.activations import PlantData, RunData
from jobs.align import MIN_FRAMES, AlignedData, Moments, meet, moments, with_aligned
from jobs.compress import BranchExporter
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.material import Material
from jobs.parity import open_session, run_branch, torch_answers
from jobs.recipe import Recipe, Stage
from jobs.run import Fitted
from jobs.scoring import Exports, role_inputs
from jobs.selection import Score
from jobs.train import fit
from tests.fleets import imported, small_fleet
from tests.jobs.nets import model_of, randomise
from tests.jobs.toys import ToyModel, toy_data, toy_fleet

FLEET = toy_fleet("north", "south", "east")
RECIPE = Recipe(stages=(Stage(cut=1, epochs=6),), views=2, patience=10)


def lit(data: PlantData, *, gain: float, tint: float) -> PlantData:
    """The plant under another lamp: all channels are brighter by a factor, the one that tells cracks by a tint too."""
    for path in data.folder.glob("*.npy"):
        seen = np.load(path).astype(np.float32) * gain
        seen[:, 0] += tint
        np.save(path, seen.astype(np.float16))
    return data


def plants(folder, *, seed: int) -> list[PlantData]:
    lamps = {"north": (1.0, 0.0), "south": (0.6, 0.5), "east": (1.8, 2.0)}
    given = {"fleet": FLEET, "num_train": 200, "num_select": 100}
    return [
        lit(toy_data(folder / name, name=name, seed=10 * seed + i, **given), gain=gain, tint=tint)
        for i, (name, (gain, tint)) in enumerate(lamps.items())
    ]


def learned(sources, *, is_aligned: bool, seed: int) -> tuple[Fitted, RunData]:
    data = (AlignedData if is_aligned else RunData)(tuple(sources))
    names = [source.plant.name for source in sources]
    sets = {name: FLEET.leaf_sets(FLEET.plant(name)) for name in names}
    return fit(ToyModel(), data=data, leaf_sets=sets, leaves=FLEET.leaves(FLEET.plants), recipe=RECIPE, seed=seed), data


def right(fitted: Fitted, plant: PlantData) -> float:
    """The share of the plant's rows that the branch knows."""
    state = {key: value for key, value in fitted.state.items() if not key.startswith("align.")}
    branch = ToyModel().new_branch(fitted.cut, fitted.leaves)
    branch.load_state_dict(state)
    seen = RunData((plant,)).fetch(fitted.cut, ids=np.arange(len(plant.rows)))
    if "align.scale" in fitted.state:
        seen = seen * fitted.state["align.scale"] + fitted.state["align.offset"]
    with torch.inference_mode():
        said = branch.eval()(seen)[0].argmax(1).numpy()
    names = np.array(fitted.leaves)[said] == "crack"
    return float((names == (plant.rows["label"] == "crack").to_numpy()).mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_plant_under_a_strange_lamp_is_known_once_it_is_met_and_hardly_before(tmp_path, seed):
    north, south, east = plants(tmp_path, seed=seed)
    plain, _ = learned([north, south], is_aligned=False, seed=seed)
    ours, sources = learned([north, south], is_aligned=True, seed=seed)
    (note,) = meet(ours, sources=sources, plant=east)
    assert "300 frames without their labels" in note
    assert right(plain, east) < 0.7
    assert right(ours, east) > 0.8


def test_every_plant_looks_alike_once_aligned_and_rows_stay_in_their_order(tmp_path):
    north, south, _ = plants(tmp_path, seed=0)
    data = AlignedData((north, south))
    common = data.common(1)
    for i in range(2):
        seen = data.fetch(1, ids=data.offsets[i] + np.arange(300))
        torch.testing.assert_close(seen.mean((0, 2, 3)), common.mean.flatten(), atol=0.02, rtol=0)
        torch.testing.assert_close(seen.std((0, 2, 3)), common.std.flatten(), atol=0.02, rtol=0)
    mixed = np.array([401, 3, 350, 7])
    alone = torch.cat([data.fetch(1, ids=np.array([i])) for i in mixed])
    torch.testing.assert_close(data.fetch(1, ids=mixed), alone)


def test_labels_of_the_new_plant_change_nothing(tmp_path):
    north, south, east = plants(tmp_path, seed=0)
    sources = AlignedData((north, south))
    blind = replace(east, rows=east.rows.assign(label="?", truth=None))
    states = []
    for plant in (east, blind):
        fitted = Fitted(1, ("ok", "crack"), {"head.weight": torch.zeros(2, 6)}, Score(None, None, {}), start={})
        meet(fitted, sources=sources, plant=plant)
        states.append(fitted.state)
    assert states[0].keys() == {"head.weight", "align.scale", "align.offset"}
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_of_few_frames_the_model_stays_as_it_was_and_says_so(tmp_path):
    north, south, east = plants(tmp_path, seed=0)
    few = replace(east, rows=east.rows.head(MIN_FRAMES - 1), num_train=MIN_FRAMES - 1)
    state = {"head.weight": torch.ones(2, 6), "head.bias": torch.ones(2)}
    fitted = Fitted(0, ("ok", "crack"), state, Score(None, None, {}), start={})
    (note,) = meet(fitted, sources=AlignedData((north, south)), plant=few)
    assert note == f"not adapted to east: {MIN_FRAMES - 1} frames, fewer than {MIN_FRAMES}"
    assert fitted.state is state


def test_the_fewer_the_frames_the_nearer_the_sources_statistics():
    here, there = Moments(torch.tensor([0.0]), torch.tensor([1.0])), Moments(torch.tensor([4.0]), torch.tensor([3.0]))
    third = here.towards(there, share=0.25)
    assert (third.mean.item(), third.std.item()) == pytest.approx((1.0, 3**0.25))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 1])
def test_the_exported_branch_answers_as_torch_does_on_frames_it_was_brought_to(cut, tmp_path):
    model = model_of()
    branch = model.new_branch(cut, ["ok", "crack"])
    randomise(branch, seed=3)
    rng = torch.Generator().manual_seed(1)
    shape = (model.shapes[cut][0], *(1 for _ in model.shapes[cut][1:]))
    scale, offset = 0.5 + torch.rand(shape, generator=rng), torch.randn(shape, generator=rng)
    seen = torch.randn(3, *model.shapes[cut], generator=rng)
    expected = torch_answers(branch, (seen * scale + offset).numpy(), batch=3)[0]
    new = model.new_branch(cut, ["ok", "crack"])
    new.load_state(with_aligned(branch.state_dict(), onto=(scale, offset)))
    BranchExporter(model, cut).write(new, tmp_path / "branch.onnx")
    for found in (
        torch_answers(new, seen.numpy(), batch=3),
        run_branch(open_session((tmp_path / "branch.onnx").read_bytes()), seen.numpy(), batch=3),
    ):
        np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)


def test_moments_are_of_the_plain_view_over_places_and_rows(tmp_path):
    north, *_ = plants(tmp_path, seed=0)
    found = moments(north, cut=1, most=10_000)
    whole = np.load(north.path(1, 0)).astype(np.float32)
    np.testing.assert_allclose(found.mean.flatten(), whole.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(found.std.flatten(), whole.std((0, 2, 3)), atol=1e-3)


@pytest.mark.slow
def test_a_model_without_a_plant_is_kept_as_it_meets_that_plant_and_others_are_as_without_the_setting(tmp_path):
    fleet = imported(small_fleet(tmp_path / "fleet", "arden", "delft", "essen", scale=0.1))
    recipe, found = Recipe(stages=(Stage(cut=1, epochs=1, warmup_epochs=0),), views=1), {}
    for is_aligned in (False, True):
        given = recipe.model_copy(update={"align": is_aligned})
        material = Material(fleet, cache=tmp_path / "cache", recipe=given)
        plan = planned(fleet, material=material, recipe=given, leave_out=["essen"])
        for run_id in ("without-essen-s0", "own-arden-s0"):
            fit_run(plan.run(run_id), material=material, plan=plan)
            words, state, _ = material.load(run_id, plan_id=plan.plan_id)
            found[is_aligned, run_id] = words, state
        exports = Exports(material, plan=plan)
        probs, _ = role_inputs("essen", role="decide", exports=exports).probabilities("without-essen-s0")
        found[is_aligned] = probs
    words, _ = found[True, "without-essen-s0"]
    assert any(note.startswith("adapted to essen by ") for note in words["notes"])
    assert not any("adapted" in note for note in found[False, "without-essen-s0"][0]["notes"])
    assert not np.allclose(found[True], found[False], atol=0.05)
    own = [found[flag, "own-arden-s0"][1] for flag in (False, True)]
    assert all(torch.equal(own[0][key], own[1][key]) for key in own[0])
