"""A plant of which nobody has labelled a defect: from its label table to a bundle that says ok or asks for a look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cluster.registry import Bundles
from cluster.storage import PlantFiles
from jobs.compare import compare_fleet
from jobs.material import Material
from jobs.normality import fit_normality, num_blocks
from jobs.package import publish_decision
from jobs.recipe import Recipe
from jobs.scoring import role_inputs
from plants.normality import ALL
from plants.plant import PlantClass, Trunk
from plants.synthetic import TRUNK
from serving.intake import Frame, PartRequest
from serving.local import local_predictor, predict_local
from tests.fleets import SHARES, Works, textured, trained, with_new_plant

pytestmark = pytest.mark.slow
FINISHED = "2026-03-01T00:00:00+00:00"


@pytest.fixture(scope="module")
def works(finished_works: Works, tmp_path_factory: pytest.TempPathFactory) -> Works:
    """One new plant; its trunk is in the cache of the trained fleet."""
    folder = tmp_path_factory.mktemp("gies")
    (folder / "home").mkdir()
    (folder / "home" / "cache").symlink_to(finished_works.settings.cache)
    path = folder / "fleet.yaml"
    raw = {"fleet": "first", "store": "store", "shares": SHARES, "trunks": [TRUNK], "plants": []}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return trained(with_new_plant(path, "gies", num_lots=40), home=folder / "home")


@pytest.fixture(scope="module")
def document(works: Works) -> dict[str, Any]:
    done = [run.run_id for run in works.plan.runs]
    return compare_fleet(works.fleet, plan=works.plan, exports=works.exports(), done=done, seed=0)


def test_its_only_run_is_its_normality_and_that_is_what_compare_decides_for(works, document):
    assert [run.run_id for run in works.plan.runs] == ["normality-gies-s0"]
    decision = document["decisions"]["gies"]
    assert (decision["model"], decision["kind"]) == ("normality-gies-s0", "normality")
    assert decision["why"].startswith("no defect is labelled, so no classifier can be judged")
    reviewed = document["details"]["gies"]["chosen"]["verdicts"]["reviews_of_good"]
    assert 0 < reviewed["value"] < 0.3, "out of fold, as new parts would be"
    assert document["matrix"]["normality-gies-s0"]["gies"]["macro_f1"] is None


def test_its_published_bundle_gives_the_novelty_that_compare_saw_and_asks_for_a_look_at_what_is_far(
    works, document, tmp_path
):
    exports = works.exports()
    finished = {"normality-gies-s0": FINISHED}
    digest, policy = publish_decision("gies", document=document, plan=works.plan, exports=exports, finished=finished)
    folder = Bundles(works.store).fetch(digest, tmp_path)
    written = tmp_path / "policy.json"
    written.write_bytes(works.store.read(f"policies/{policy}.json"))
    predictor = local_predictor(folder, plant="gies", policy=written, trunk=exports.material.trunk_path)
    inputs = role_inputs("gies", role="decide", exports=exports)
    assert inputs is not None
    plant = works.fleet.plant("gies")
    members = [inputs.probabilities("normality-gies-s0")]
    scores = inputs.scores(members, leaf_sets=works.fleet.leaf_sets(plant))
    files, root = PlantFiles(), plant.images
    frames = [Frame(name, files.read(root, name)) for name in inputs.frames.index]
    answers = predict_local(predictor, [PartRequest("gies", (frame,)) for frame in frames])
    seen = dict(zip(inputs.frames["part_id"], answers, strict=True))
    assert [seen[part].novelty for part in scores.part_ids] == pytest.approx(scores.novelty.tolist(), abs=1e-4)
    assert {answer.verdict for answer in answers} <= {"ok", "review"}
    (odd,) = predict_local(
        predictor, [PartRequest("gies", (Frame("b", textured(np.random.default_rng(9), blot=True)),))]
    )
    assert (odd.verdict, odd.defect, odd.confidence) == ("review", None, 0.0)
    assert odd.why == "far from the good parts of this plant"


def test_the_run_says_what_it_was_fitted_on(works):
    exports = works.exports()
    words = exports.words("normality-gies-s0")
    assert (words["kind"], words["leaves"]) == ("normality", ["ok"])
    assert words["notes"] == ["fitted on 32 views of 32 good parts"]
    assert set(exports.normality("gies").by_place) == {("gies", ALL)}
    assert exports.normality("nowhere").by_place == {}


def test_where_no_class_is_good_all_that_is_known_is_normal(works):
    plant = works.fleet.plant("gies")
    mill = plant.model_copy(update={"ok": (), "classes": {"good": PlantClass(fleet="grain")}})
    material = works.exports().material
    changed = Material(works.fleet.model_copy(update={"plants": (mill,)}), cache=material.cache, recipe=material.recipe)
    fitted, found = fit_normality(works.plan.runs[0], material=changed)
    assert fitted.notes == ["fitted on 32 views of 32 known parts"]
    assert found.knows("gies")


def test_normality_evens_the_means_and_the_maxima_of_a_trunks_features(works):
    material = Material(works.fleet, cache=works.settings.cache, recipe=Recipe(stages=(), views=1))
    assert (num_blocks(material.trunk), num_blocks(Trunk(backbone="resnet18"))) == (2, 1)
    size = material.trunk.size_px
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    features = material.runner.activations(torch.from_numpy(images))[0].numpy()
    half = features.shape[1] // 2
    assert (features[:, half:] >= features[:, :half] - 1e-5).all(), "means come first"
    (name,) = (plant.name for plant in works.fleet.plants)
    scale = material.normality(name, plan=works.plan).by_place[name, ALL].scale
    assert scale is not None
    assert (scale[:half] == 1).all()
    assert (scale[half:] < 1).all()
