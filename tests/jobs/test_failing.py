"""Where a chosen model fails, on a trained fleet: through its exported files, on the parts that were drawn by lot."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.candidates import candidate_of
from jobs.failing import failing
from jobs.robustness import MAX_INPUTS, loudness, margins_of, robustness, said_by, sampled
from jobs.scoring import RoleInputs, role_inputs
from plants.corruptions import CORRUPTIONS
from plants.geometry import Environment
from tests.fleets import Works

pytestmark = pytest.mark.slow
PLANT = "essen"


@pytest.fixture(scope="module")
def judged(finished_works: Works) -> dict[str, Any]:
    """The plant with two poses: its pooled and its frozen model on `decide`."""
    exports = finished_works.exports()
    plant = finished_works.fleet.plant(PLANT)
    inputs = role_inputs(PLANT, role="decide", exports=exports)
    assert inputs is not None
    models = {
        name: candidate_of(run, run.partition("-")[0], (run,), plant=plant, inputs=inputs, exports=exports)
        for name, run in (("chosen", "pooled-s0"), ("frozen", f"frozen-{PLANT}-s0"))
    }
    return {"plant": plant, "inputs": inputs, "models": models, "leaf_sets": finished_works.fleet.leaf_sets(plant)}


@pytest.fixture(scope="module")
def weak(judged) -> dict[str, Any]:
    models = judged["models"]
    return failing(
        judged["plant"],
        chosen=models["chosen"],
        base=models["frozen"],
        inputs=judged["inputs"],
        is_robust=True,
        seed=0,
    )


def test_a_candidate_says_of_its_own_inputs_what_it_was_judged_by(judged):
    for model in judged["models"].values():
        again = said_by(model, inputs=judged["inputs"], leaf_sets=judged["leaf_sets"])
        np.testing.assert_allclose(again.probs, model.scores.probs, atol=1e-6)


def test_inputs_that_did_not_change_are_judged_as_before(judged):
    inputs: RoleInputs = judged["inputs"]
    same = inputs.changed(inputs.pack.take(inputs.inputs))
    model = judged["models"]["chosen"]
    again = said_by(model, inputs=same, leaf_sets=judged["leaf_sets"])
    np.testing.assert_allclose(again.probs, model.scores.probs, atol=1e-5)


def test_every_corruption_is_tried_at_each_strength_beside_the_frozen_baseline_the_worst_first(weak):
    rows = weak["robustness"]["rows"]
    assert {(row["kind"], row["strength"]) for row in rows} == {(c.kind, s) for c in CORRUPTIONS for s in c.strengths}
    lost = [row["chosen"]["damage"]["cost"]["diff"] for row in rows]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0
    clean = weak["robustness"]["clean"]
    for row in rows:
        for side in ("chosen", "frozen"):
            diff = row[side]["damage"]["macro_f1"]["diff"]
            assert row[side]["macro_f1"] - clean[side]["macro_f1"] == pytest.approx(diff, abs=2e-6)


def test_what_cannot_happen_at_a_plant_is_marked_with_the_environments_that_say_so(judged):
    plant = judged["plant"]
    first, *others = plant.environments
    forbidding = {first: Environment(forbid=["brightness"]), **{name: plant.environments[name] for name in others}}
    tone = plant.model_copy(update={"environments": forbidding})
    models = {"chosen": judged["models"]["frozen"]}
    found = robustness(tone, models=models, inputs=judged["inputs"], leaf_sets=judged["leaf_sets"], seed=0)
    marked = {row["kind"]: row["forbidden"] for row in found["rows"]}
    assert {kind for kind, names in marked.items() if names} == {"dark", "bright"}
    assert marked["dark"] == [first]


def test_parts_are_drawn_one_of_every_lot_before_two_of_any_up_to_the_limit(judged):
    inputs: RoleInputs = judged["inputs"]
    loud = loudness(judged["models"]["chosen"], inputs=inputs)
    lots = inputs.frames.groupby("lot")["part_id"].nunique()
    frames_a_part = len(inputs.inputs) // len(inputs.parts)
    few = sampled(inputs, loud=loud, seed=0, max_inputs=frames_a_part * len(lots))
    assert few.frames.groupby("lot")["part_id"].nunique().tolist() == [1] * len(lots)
    assert len(few.inputs) == frames_a_part * len(lots)
    again = sampled(inputs, loud=loud, seed=0, max_inputs=frames_a_part * len(lots))
    assert list(again.parts) == list(few.parts)
    assert len(sampled(inputs, loud=loud, seed=0).inputs) <= MAX_INPUTS
    for cut, found in few.activations.items():
        np.testing.assert_array_equal(found, inputs.activations[cut][np.isin(inputs.inputs, few.inputs)])


def test_what_is_blank_of_an_input_is_marked_for_each_of_them(judged):
    inputs: RoleInputs = judged["inputs"]
    wide = copy.copy(inputs)
    wide.pack = SimpleNamespace(size_px=96, tile_boxes=np.array([[0, 0, 40, 20]] * len(inputs.pack.tile_boxes)))
    blank = margins_of(wide)
    assert blank.shape == (len(inputs.inputs), 96, 96, 1)
    assert (blank[:, :24].all(), blank[:, 24:72].any(), blank[:, 72:].all()) == (True, False, True)
    assert not margins_of(inputs).any()


def test_products_and_poses_are_judged_apart_the_worst_first_and_count_every_part(judged, weak):
    frames = judged["inputs"].frames
    groups = weak["groups"]
    products = groups["product"]["chosen"]
    assert {name: row["n"] for name, row in products.items()} == frames.groupby("product")[
        "part_id"
    ].nunique().to_dict()
    poses = groups["pose"]["frozen"]
    assert {name: row["n"] for name, row in poses.items()} == frames.groupby("pose")["part_id"].nunique().to_dict()
    for sides in groups.values():
        values = [row["macro_f1"] for row in sides["chosen"].values()]
        assert values == sorted(values)


def test_an_example_of_an_escape_or_a_wrong_name_shows_a_frame_that_is_labelled_so(judged, weak):
    frames = judged["inputs"].frames
    shown = [(group, one) for group in weak["failures"] for one in group["examples"]]
    assert shown, "a model that was trained for two epochs fails somewhere"
    for group, one in shown:
        row = frames.loc[one["frame"]]
        assert row["part_id"] == one["part_id"]
        assert group["what"] == "false alarm" or row["class"] == group["truth"]


def test_without_robustness_nothing_is_corrupted_and_all_else_is_said(judged, weak):
    models = judged["models"]
    given = {"chosen": models["chosen"], "base": models["frozen"], "inputs": judged["inputs"], "seed": 0}
    found = failing(judged["plant"], is_robust=False, **given)
    assert found["robustness"] is None
    assert found == {**weak, "robustness": None}
