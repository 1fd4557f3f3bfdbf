"""Parts judged by exported files, pooled as serving pools them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cluster.catalog import Catalog
from cluster.packs import Pack
from jobs.activations import ok_mask
from jobs.scoring import RoleInputs, role_inputs
from plants.errors import CheckFailed
from plants.plant import projection
from plants.scores import pool
from tests.fleets import Works


@pytest.fixture
def inputs(works: Works) -> RoleInputs:
    found = role_inputs("essen", role="decide", exports=works.exports())
    assert found is not None
    return found


@pytest.mark.slow
def test_the_inputs_of_a_role_are_its_labelled_frames_and_no_others(works, inputs):
    rows = Catalog.of(works.fleet).rows("essen")
    rows = rows[rows["role"] == "decide"]
    assert set(inputs.frames.index) == set(rows["frame"])
    assert set(inputs.parts) == set(rows["part_id"])
    assert len(inputs.inputs) == len(rows)


@pytest.mark.slow
def test_a_part_has_the_probabilities_of_its_most_suspicious_frame(works, inputs):
    fleet = works.fleet
    plant = fleet.plant("essen")
    member = inputs.probabilities("pooled-s0")
    scores = inputs.scores([member], leaf_sets=fleet.leaf_sets(plant))
    found, leaves = member
    matrix = projection(leaves, fleet.leaf_sets(plant), plant.annotated)
    for i, part in enumerate(scores.part_ids):
        rows = np.flatnonzero(inputs.frames["part_id"].to_numpy()[inputs.frame_groups] == part)
        assert len(rows) == 2
        vector, _ = pool(found[rows], ok=ok_mask(leaves))
        assert scores.probs[i] == pytest.approx(vector @ matrix, abs=1e-6)
        assert scores.truth[i] == inputs.frames.loc[inputs.frames["part_id"] == part, "class"].iloc[0]
    assert (scores.impossible > 0).any(), "a pooled model knows classes that do not occur at this plant"


@pytest.mark.slow
def test_a_part_is_as_far_from_good_parts_as_its_farthest_view_whatever_model_judges_it(works, inputs):
    leaf_sets = works.fleet.leaf_sets(works.fleet.plant("essen"))
    own, normality = (
        inputs.scores([inputs.probabilities(run)], leaf_sets=leaf_sets)
        for run in ("own-essen-s0", "normality-essen-s0")
    )
    assert inputs.novelty is not None
    part_of = inputs.frames["part_id"].to_numpy()[inputs.frame_groups]
    expected = [inputs.novelty[part_of == part].max() for part in own.part_ids]
    assert own.novelty == pytest.approx(expected)
    assert normality.novelty == pytest.approx(expected)
    by_distance, by_goodness = np.argsort(expected), np.argsort(normality.p_defect)
    assert by_distance.tolist() == by_goodness.tolist()


@pytest.mark.slow
def test_a_role_without_labelled_rows_has_no_inputs(works):
    assert role_inputs("essen", role="test", exports=works.exports()) is None


@pytest.mark.slow
def test_an_exported_file_that_says_something_else_than_its_model_is_refused(works, inputs):
    exports = inputs.exports
    report = exports.check_parity("own-essen-s0", activations=inputs.activations)
    assert all(np.isfinite(value) for value in report.values())
    words, branch, path = exports.branch("own-essen-s0")
    changed = copy.deepcopy(branch)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    exports._branches["own-essen-s0"] = (words, changed, path)
    with pytest.raises(CheckFailed, match="own-essen-s0: torch and its exported file disagree"):
        exports.check_parity("own-essen-s0", activations=inputs.activations)


@pytest.mark.slow
def test_frames_of_other_roles_in_the_pack_are_left_alone(works):
    """A pack may hold more frames than the rows that are judged."""
    exports = works.exports()
    plant = works.fleet.plant("essen")
    rows = Catalog.of(works.fleet).rows("essen")
    pack: Pack = exports.material.pack(plant, rows=rows)
    few = rows[rows["role"] == "decide"]
    found = RoleInputs(plant, rows=few, pack=pack, exports=exports)
    assert {pack.frames[i] for i in pack.frame_index[found.inputs]} == set(few["frame"])
    alone = role_inputs("essen", role="decide", exports=exports)
    assert alone is not None
    together = found.scores([found.probabilities("own-essen-s0")], leaf_sets=works.fleet.leaf_sets(plant))
    apart = alone.scores([alone.probabilities("own-essen-s0")], leaf_sets=works.fleet.leaf_sets(plant))
    assert together.probs == pytest.approx(apart.probs, abs=1e-6)
