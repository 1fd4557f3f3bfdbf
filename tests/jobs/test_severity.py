"""The walk of a severity: a label, a head beside a model, its proof, a bundle, an answer; at a plant of the fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cluster.registry import Bundles
from jobs.compare import compare_fleet
from jobs.evaluate import openings
from jobs.package import publish_decision
from jobs.report_plant import severity
from jobs.severity import served_at
from plants.bundle import SEVERITY
from serving.intake import Frame, PartRequest
from serving.local import local_predictor
from serving.predictor import Judgement, Predictor
from tests.fleets import Works, small_fleet, trained

pytestmark = pytest.mark.slow
SHARES = {"train": 0.5, "select": 0.2, "decide": 0.2, "test": 0.1}


def graded(folder: Path, *, is_told: bool) -> Works:
    """Plant `delft` with a frozen model; severities are how dark a frame is, or those of other frames."""
    path = small_fleet(folder / "fleet", "delft", scale=0.9, shares=SHARES)
    file = path.parent / "delft" / "labels.csv"
    table = pd.read_csv(file)
    light = [np.asarray(Image.open(file.parent / name).convert("L")).mean() for name in table["frame"]]
    bad = table["severity"].notna()
    table.loc[bad, "severity"] = (1 - pd.Series(light)[bad].rank(pct=True)).round(3)
    if not is_told:
        told = table.drop_duplicates("part_id").loc[bad].set_index("part_id")["severity"]
        mixed = dict(zip(told.index, np.random.default_rng(1).permutation(told.to_numpy()), strict=True))
        table.loc[bad, "severity"] = table.loc[bad, "part_id"].map(mixed)
    table.to_csv(file, index=False)
    return trained(path, home=folder / "home", kinds=("frozen",))


def published(works: Works) -> tuple[dict[str, Any], Path, str]:
    """The comparison, and the folder of the bundle and the policy that came of it."""
    exports, run = works.exports(), "frozen-delft-s0"
    document = compare_fleet(works.fleet, plan=works.plan, exports=exports, done=[run], seed=0, is_robust=False)
    given = {"document": document, "plan": works.plan, "exports": exports, "finished": {run: None}}
    digest, policy = publish_decision("delft", **given)
    return document, Bundles(works.store).fetch(digest, works.settings.cache / "bundles"), policy


def test_a_severity_that_can_be_seen_is_proven_published_and_answered(tmp_path: Path):
    works = graded(tmp_path, is_told=True)
    document, folder, policy = published(works)
    found = document["details"]["delft"]["severity"]
    assert found["is_shown"]
    assert found["mae"]["value"] < found["trivial_mae"]["value"] - 0.05
    assert (folder / SEVERITY).exists()
    assert served_at("frozen-delft-s0", document=document, serves=["delft"]) == ["delft"]
    words = severity("delft", document)
    assert "of its class" in words
    assert repr(found["mae"]["value"]) in words
    file, trunk = Path(works.fleet.store) / "policies" / f"{policy}.json", works.exports().material.trunk_path
    predictor = local_predictor(folder, plant="delft", policy=file, trunk=trunk)
    rows = works.exports().material.rows("delft")
    bad = rows[(rows["role"] == "decide") & rows["severity"].notna()]
    said = [asked(predictor, works, row) for _, row in bad.iterrows()]
    assert all((one.severity is None) == (one.decision.verdict == "ok") for one in said)
    pairs = [
        (one.severity, truth) for one, truth in zip(said, bad["severity"], strict=True) if one.severity is not None
    ]
    assert len(pairs) > 10
    assert np.corrcoef(np.array(pairs).T)[0, 1] > 0.5
    assert openings(works.exports().material.catalog.seal) == []


def asked(predictor: Predictor, works: Works, row: Any) -> Judgement:
    data = (Path(works.fleet.plant("delft").images) / row["frame"]).read_bytes()
    return predictor.predict(PartRequest("delft", (Frame(row["frame"], data),), environment=row["environment"]))


def test_a_head_on_labels_of_other_parts_is_not_published_and_the_document_says_why(tmp_path: Path):
    document, folder, _ = published(graded(tmp_path, is_told=False))
    found = document["details"]["delft"]["severity"]
    assert not found["is_shown"]
    assert "not served" in found["words"]
    assert not (folder / SEVERITY).exists()
    assert "not served" in severity("delft", document)
