"""The existing inspection and the distance to good parts as rows of the matrix, in the document and before people."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from jobs.compare import compare_fleet
from jobs.incumbent_section import incumbent_html
from jobs.report import report_html
from jobs.scoring import role_inputs
from jobs.tables import show_matrix
from plants.incumbent import read_word
from plants.policy import OK, REJECT, REVIEW
from tests.fleets import Works, console

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def document(finished_works: Works) -> dict[str, Any]:
    done = [run.run_id for run in finished_works.plan.runs]
    exports = finished_works.exports()
    found = compare_fleet(finished_works.fleet, plan=finished_works.plan, exports=exports, done=done, seed=0)
    return dict(json.loads(json.dumps(found)))


def test_the_existing_inspection_is_judged_at_its_plants_prices_and_is_never_decided_for(finished_works, document):
    assert document["models"]["incumbent"]["kind"] == "incumbent"
    for plant in finished_works.fleet.plants:
        row = document["matrix"]["incumbent"][plant.name]
        inputs = role_inputs(plant.name, role="decide", exports=finished_works.exports())
        assert inputs is not None
        parts = inputs.frames.drop_duplicates("part_id")
        words = [read_word(said, plant=plant) for said in parts["incumbent"]]
        good = parts["class"].groupby(parts["part_id"]).first().isin(plant.ok)
        price = {OK: (0, plant.costs.miss), REJECT: (plant.costs.false_alarm, 0), REVIEW: (plant.costs.review,) * 2}
        paid = {True: [], False: []}
        truth = dict(zip(inputs.parts, [name in plant.ok for name in inputs.truth], strict=True))
        for part, word in zip(parts["part_id"], words, strict=True):
            paid[truth[part]].append(price[word.verdict][not truth[part]])
        rate = plant.costs.defect_rate[2]
        assert len(good) == row["n"]
        cost = (1 - rate) * sum(paid[True]) / len(paid[True]) + rate * sum(paid[False]) / len(paid[False])
        assert row["cost"] == pytest.approx(cost, rel=1e-6)
        assert document["decisions"][plant.name]["model"] != "incumbent"
        gap = document["details"][plant.name]["against_incumbent"]
        chosen = document["matrix"][document["decisions"][plant.name]["model"]][plant.name]
        assert gap["metric"] == "cost"
        assert gap["diff"] == pytest.approx(chosen["cost"] - row["cost"], abs=1e-4)
    named = {name: row["macro_f1"] is not None for name, row in document["matrix"]["incumbent"].items()}
    assert named == {"arden": False, "essen": True}, "at arden people only say ok or reject"


def test_the_distance_to_good_parts_is_a_row_at_every_plant_judged_in_money_and_auc(document):
    for name in ("arden", "essen"):
        row = document["matrix"][f"normality-{name}-s0"]
        assert set(row) == {name}
        assert row[name]["auc"] is not None
        assert row[name]["cost"] is not None
        assert row[name]["macro_f1"] is None


def test_each_model_has_its_macro_f1_over_the_classes_that_all_plants_share(finished_works, document):
    plants = {plant.name: plant for plant in finished_works.fleet.plants}
    for name, row in document["matrix"].items():
        for plant, cell in row.items():
            if cell["macro_f1"] is None:
                assert (cell["shared_f1"], cell["shared_n"]) == (None, None)
            elif plant == "essen":
                assert cell["shared_f1"] == pytest.approx(cell["macro_f1"], abs=1e-6), "arden has all its classes"
                assert cell["shared_n"] == cell["n"]
            else:
                assert 0 < cell["shared_n"] < cell["n"], name
    assert {value.fleet for value in plants["arden"].classes.values()} > {"ok", "crack", "chip", "stain"}


def test_ensembles_are_offered_in_three_ways_and_the_decision_says_which_weights_are_served(document):
    kinds = {name: words["kind"] for name, words in document["models"].items() if words["tier"] == "ensemble"}
    assert {"ensemble-arden", "ensemble-essen"} <= set(kinds)
    assert set(kinds.values()) <= {"ensemble", "weighted", "stacked"}
    assert all(document["models"][name]["plants"] == [name.partition("-")[2]] for name in kinds)
    for decision in document["decisions"].values():
        weights = decision["weights"]
        assert (weights is None) is (len(decision["members"]) == 1)
        assert weights is None or len(weights) == len(decision["members"])


def test_people_see_the_existing_inspection_in_the_table_and_in_the_report_with_the_documents_numbers(document):
    show, printed = console()
    show_matrix(document, show=show)
    (line,) = [line for line in printed().splitlines() if "incumbent" in line]
    essen, arden = (document["matrix"]["incumbent"][name] for name in ("essen", "arden"))
    assert f"{100 * essen['macro_f1']:.1f}" in line
    assert f"costs {arden['cost']:,.0f}" in line
    html = report_html(document)
    for name in ("essen", "arden"):
        section = incumbent_html(document["details"][name])
        assert section in html
        values = set(re.findall(r'<data value="([^"]+)"', section))
        assert repr(document["matrix"]["incumbent"][name]["cost"]) in values
        assert repr(document["details"][name]["against_incumbent"]["diff"]) in values
        assert "escapes: bad parts that pass" in section
    assert incumbent_html({}) == ""
    without = {**document["details"]["essen"], "incumbent": None}
    assert incumbent_html(without) == ""
    assert (
        report_html({**document, "details": {**document["details"], "essen": without}}).count(
            "existing inspection beside"
        )
        == 1
    )
