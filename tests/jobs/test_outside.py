"""A model is judged on what it has not seen, beside the plant's own model, which has, on the same parts."""

from __future__ import annotations

import pytest

from cluster.ledger import RunLedger, RunRecord, begin, finish
from jobs.compare import compare_fleet
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.material import Material
from jobs.recipe import Recipe
from jobs.report import report_html
from tests.fleets import NOW, Works

OUT = "essen:product=weiss"


@pytest.fixture
def judged(works: Works) -> dict:
    """`compare` of essen's own model and one that was fitted without a product of essen."""
    recipe = Recipe(stages=(), views=1)
    material = Material(works.fleet, cache=works.settings.cache, recipe=recipe)
    plan = planned(works.fleet, material=material, recipe=recipe, leave_out=[OUT])
    ledger = RunLedger(works.store, plan.plan_id)
    done = [run for run in plan.runs if run.run_id == "own-essen-s0" or run.left_out]
    for run in done:
        fitted = fit_run(run, material=material, plan=plan)
        if run.left_out:
            learned = material.data("essen", left_out=run.left_out).rows
            assert len(learned)
            products = works_products(material)
            assert "weiss" not in set(learned["frame"].map(products))
            assert "weiss" in set(material.data("essen").rows["frame"].map(products))
        ledger.put(
            finish(
                begin(RunRecord(run_id=run.run_id), lane="0", now=NOW), select=fitted.score.value, seconds=1.0, now=NOW
            )
        )
    exports = Works(works.fleet, works.settings, plan).exports()
    return compare_fleet(works.fleet, plan=plan, exports=exports, done=[run.run_id for run in done], seed=0)


def works_products(material: Material) -> dict[str, str]:
    rows = material.catalog.rows("essen")
    return dict(zip(rows["frame"], rows["product"], strict=True))


@pytest.mark.slow
def test_what_was_left_out_is_judged_beside_the_model_that_has_seen_it_and_is_no_candidate(judged, works):
    (row,) = judged["details"]["essen"]["outside"]
    rows = Material(works.fleet, cache=works.settings.cache, recipe=Recipe(stages=())).rows("essen")
    parts = rows[(rows["role"] == "decide") & (rows["product"] == "weiss")]["part_id"].nunique()
    assert parts
    assert (row["left_out"], row["what"], row["outside"]["n"], row["inside"]["n"]) == (OUT, "product", parts, parts)
    assert row["inside"]["model"] == "own-essen-s0"
    assert row["difference"]["diff"] == pytest.approx(row["outside"]["macro_f1"] - row["inside"]["macro_f1"])
    cell = judged["matrix"][row["model"]]
    assert list(cell) == ["essen"]
    assert (cell["essen"]["of"], cell["essen"]["cost"]) == (OUT, None)
    assert {name: decision["model"] for name, decision in judged["decisions"].items()} == {"essen": "own-essen-s0"}
    page = report_html(judged)
    assert "Out-of-plant beside in-plant" in page
    assert f"product: {OUT}" in page
    assert f", on {OUT} alone" in page
