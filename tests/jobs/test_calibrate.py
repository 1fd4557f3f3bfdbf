"""Whose images a file is calibrated on: `decide` views of every plant that may, the same ones on every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.calibrate import chosen, teachers
from jobs.scoring import RoleInputs, role_inputs
from plants.plant import Fleet
from tests.fleets import Works


def with_flags(fleet: Fleet, name: str, **flags: Any) -> Fleet:
    plants = tuple(p.model_copy(update=flags) if p.name == name else p for p in fleet.plants)
    return fleet.model_copy(update={"plants": plants})


@pytest.mark.slow
def test_what_may_not_leave_a_plant_calibrates_its_own_files_alone(finished_works: Works):
    fleet = finished_works.fleet
    both = ["arden", "essen"]
    assert teachers(fleet, among=both, serves=both) == both
    private = with_flags(fleet, "arden", may_leave=False)
    assert teachers(private, among=both, serves=both) == ["essen"]
    assert teachers(private, among=["arden"], serves=["arden"]) == ["arden"]
    unlearned = with_flags(fleet, "arden", may_train=False)
    assert teachers(unlearned, among=both, serves=both) == ["essen"]
    assert teachers(unlearned, among=["arden"], serves=["arden"]) == []


@pytest.fixture(scope="module")
def inputs(finished_works: Works) -> dict[str, RoleInputs]:
    exports = finished_works.exports()
    found = {name: role_inputs(name, role="decide", exports=exports) for name in ("arden", "essen")}
    return {name: one for name, one in found.items() if one is not None}


@pytest.mark.slow
def test_views_are_dealt_evenly_to_plants_and_spread_over_their_classes(inputs: dict[str, RoleInputs]):
    found = chosen(inputs, names=["arden", "essen"], num=8)
    assert {name: len(rows) for name, rows in found.items()} == {"arden": 4, "essen": 4}
    for name, rows in found.items():
        classes = inputs[name].frames["class"].to_numpy(dtype=object)[inputs[name].frame_groups]
        assert len(set(classes[rows])) == min(4, len(set(classes)))
    again = chosen(inputs, names=["essen", "arden"], num=8)
    assert all(np.array_equal(found[name], again[name]) for name in found)


@pytest.mark.slow
def test_all_inputs_serve_where_there_are_few_and_none_is_of_another_role(inputs: dict[str, RoleInputs]):
    found = chosen(inputs, names=["essen"], num=10_000)
    assert len(found["essen"]) == len(inputs["essen"].inputs)
    assert set(inputs["essen"].frames["role"]) == {"decide"}
    assert chosen(inputs, names=[]) == {}
