"""What is published: the same run gives the same bundle, a bundle proves itself, a policy names its bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from starlette.testclient import TestClient

from cluster.access import Access
from cluster.registry import Bundles, Journal
from jobs import lora
from jobs.compare import compare_fleet
from jobs.package import publish_decision
from jobs.parity import Evaluator
from jobs.proof import PROBE_INPUTS, probe
from jobs.scoring import role_inputs
from jobs.selection import Score
from jobs.train import Fitted
from plants import bundle
from plants.costs import Policy
from plants.ensembles import Mix, to_json
from plants.errors import InputError
from plants.images import tensor_digest
from plants.normality import Normalities
from plants.scores import calibrate
from plants.views import read_views
from serving.app import build_app
from serving.intake import Frame, PartRequest
from serving.loading import Loader
from serving.local import local_predictor
from serving.wiring import open_service
from tests.fleets import Works

pytestmark = pytest.mark.slow
PROOF = ("card.md", "normality.npz", "probe.npz", "report.json")
FINISHED = "2026-03-01T00:00:00+00:00"


def document(works: Works, *, model: str, members: list[str]) -> dict[str, Any]:
    done = [run.run_id for run in works.plan.runs]
    found = compare_fleet(works.fleet, plan=works.plan, exports=works.exports(), done=done, seed=0)
    found["decisions"]["essen"] |= {"model": model, "members": members, "weights": None, "rule": None}
    return found


def published(works: Works, *, model: str, members: list[str], exports: Any = None) -> tuple[str, str]:
    finished = {run.run_id: FINISHED for run in works.plan.runs}
    given = {"plan": works.plan, "exports": exports or works.exports(), "finished": finished}
    return publish_decision("essen", document=document(works, model=model, members=members), **given)


def test_the_same_run_gives_the_same_bundle_and_policy(works):
    assert published(works, model="own-essen-s0", members=["own-essen-s0"]) == published(
        works, model="own-essen-s0", members=["own-essen-s0"]
    )


def test_a_bundle_is_whole_and_says_what_it_is_and_where_its_limits_lie(works, tmp_path):
    digest, policy = published(works, model="pooled-s0", members=["pooled-s0"])
    manifest, found = bundle.read(Bundles(works.store).fetch(digest, tmp_path))
    assert found == digest
    assert (manifest.kind, manifest.plants, set(manifest.serves)) == ("pooled", ("arden", "essen"), {"arden", "essen"})
    assert manifest.tier == ("branch" if manifest.cut else "head")
    assert manifest.created_at == FINISHED
    assert {name: flag.may_leave for name, flag in manifest.governance.items()} == {"arden": True, "essen": True}
    assert set(manifest.files) == {*PROOF, "branch.onnx", "evidence.onnx", "weights.safetensors"}
    assert works.store.exists(f"trunks/{manifest.trunk.sha256}.onnx")
    card = (tmp_path / digest / "card.md").read_text()
    assert "The data were generated" in card
    assert "frozen baseline" in card
    assert "Activation map: yes, exact for its linear head." in card
    report = json.loads((tmp_path / digest / "report.json").read_text())
    assert set(report["plants"]) == set(report["frozen"]) == {"arden", "essen"}
    solved = Policy.from_json(works.store.read(f"policies/{policy}.json").decode())
    assert (solved.plant, solved.bundle, solved.digest) == ("essen", digest, policy)
    assert solved.classes == manifest.serves["essen"].classes


def test_a_bundle_that_holds_what_may_not_leave_a_plant_is_not_written_for_another(works):
    found, exports = document(works, model="pooled-s0", members=["pooled-s0"]), works.exports()
    arden = works.fleet.plant("arden").model_copy(update={"may_leave": False})
    exports.material.fleet = works.fleet.model_copy(update={"plants": (arden, works.fleet.plant("essen"))})
    with pytest.raises(InputError, match=r"plant arden: field may_leave: a bundle that serves arden, essen"):
        publish_decision("essen", document=found, plan=works.plan, exports=exports, finished={"pooled-s0": FINISHED})
    assert not works.store.list("policies")


def test_a_model_of_one_plant_serves_that_plant_alone(works, tmp_path):
    digest, _ = published(works, model="own-essen-s0", members=["own-essen-s0"])
    manifest, _ = bundle.read(Bundles(works.store).fetch(digest, tmp_path))
    assert set(manifest.serves) == {"essen"}


@pytest.mark.parametrize(("run_id", "tier"), [("own-essen-s0", "adapter"), ("warm-essen-s0", "branch")])
def test_an_adapter_goes_with_its_bundle_and_makes_the_branch_where_it_lies_on_what_is_pretrained(
    works, tmp_path, run_id, tier
):
    exports = works.exports()
    material, spec = exports.material, works.plan.run(run_id)
    branch = material.model.new_branch(1, material.leaves(spec.plants))
    chosen = lora.choose(branch, rank=4, sample=torch.zeros(1, *material.model.shapes[1]))
    lora.attach(branch, rank=4, layers=chosen.layers)
    with torch.no_grad():
        for name, value in branch.named_parameters():
            value += 0.1 * (".lora_B." in name)
    adapter, state = lora.taken(branch)
    fitted = Fitted(1, branch.leaves, state, score=Score(0.5, 0.5, {}), start=state, adapter=adapter)
    material.save(fitted, spec=replace(spec, recipe={**spec.recipe, "lora_rank": 4}), plan=works.plan)
    digest, _ = published(works, model=run_id, members=[run_id], exports=exports)
    folder = Bundles(works.store).fetch(digest, tmp_path)
    manifest, _ = bundle.read(folder)
    assert manifest.tier == tier
    own = {"branch.onnx", "evidence.onnx", "weights.safetensors", "adapter.safetensors"}
    assert set(manifest.files) == {*PROOF, *own, *(["factors.npz"] if tier == "adapter" else [])}
    assert works.store.exists(f"trunks/{manifest.stages}.onnx") == (tier == "adapter")
    served = Loader(
        folder_of=lambda digest: Bundles(works.store).fetch(digest, tmp_path),
        trunk_of=lambda digest: Bundles(works.store).fetch_trunk(digest, tmp_path),
    ).scorer(digest)
    assert served.tier == tier, "its probe was answered so"
    with safe_open(folder / "adapter.safetensors", "pt") as file:
        words = {key: json.loads(value) for key, value in file.metadata().items()}
    assert words == {"rank": 4, "cut": 1, "base": spec.parent or "pretrained"}
    grown = material.model.new_branch(1, manifest.leaves)
    lora.apply(grown, (folder / "adapter.safetensors").read_bytes())
    for key, value in load_file(folder / "weights.safetensors").items():
        torch.testing.assert_close(grown.state_dict()[key], value, atol=1e-6, rtol=1e-6)


def test_the_probe_in_a_bundle_is_answered_by_the_bundles_own_files(works, tmp_path):
    digest, _ = published(works, model="own-essen-s0", members=["own-essen-s0"])
    folder = Bundles(works.store).fetch(digest, tmp_path)
    manifest, _ = bundle.read(folder)
    kept = np.load(folder / "probe.npz")
    assert kept["inputs"].shape == (PROBE_INPUTS, manifest.trunk.size_px, manifest.trunk.size_px, 3)
    assert str(kept["digest"]) == tensor_digest(kept["inputs"])
    trunk = Path(works.store.uri, "trunks", f"{manifest.trunk.sha256}.onnx")
    evaluator = Evaluator(trunk)
    logits, _ = evaluator.branch(folder / "branch.onnx", evaluator.activations(kept["inputs"])[manifest.cut])
    assert np.abs(logits - kept["logits"]).max() < 1e-5
    assert np.ptp(kept["logits"], axis=0).max() > 0.1, "inputs that are all answered alike prove nothing"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_frames_are_resized_alike_for_training_and_by_the_bundle(works, interpolation):
    trunk = works.fleet.trunks[0].model_copy(update={"interpolation": interpolation})
    exports = replace(works, fleet=works.fleet.model_copy(update={"trunks": (trunk,)})).exports()
    digest, _ = published(works, model="own-essen-s0", members=["own-essen-s0"], exports=exports)
    inputs, plant = role_inputs("essen", role="decide", exports=exports), works.fleet.plant("essen")
    predictor = local_predictor(Path(works.store.uri, "bundles", digest), plant="essen")
    for i, (frame, row) in enumerate(list(inputs.frames.iterrows())[:5]):
        data = Path(plant.images, str(frame)).read_bytes()
        seen = predictor.prepare(PartRequest("essen", (Frame(str(frame), data),), environment=row["environment"]))
        assert seen.digests[0] == tensor_digest(
            np.ascontiguousarray(inputs.pixels[inputs.inputs[inputs.frame_groups == i]])
        )
        environment = plant.environments[row["environment"]]
        given = {"geometry": environment.geometry, "photometry": environment.photometry, "size_px": trunk.size_px}
        assert np.array_equal(seen.pixels, read_views(data, interpolation=interpolation, **given).pixels)


def test_no_photograph_is_in_a_probe(works):
    """Two plants' models are probed by the same drawn inputs."""
    exports = works.exports()
    a, b = probe("own-arden-s0", exports=exports), probe("own-essen-s0", exports=exports)
    assert np.array_equal(a["inputs"], b["inputs"])


def test_an_ensemble_names_its_members_by_digest_and_weighs_them_alike(works, tmp_path):
    members = ["own-essen-s0", "pooled-s0", "warm-essen-s0"]
    digest, _ = published(works, model="ensemble-essen", members=members)
    manifest, _ = bundle.read(Bundles(works.store).fetch(digest, tmp_path))
    assert manifest.kind == "ensemble"
    assert manifest.weights == pytest.approx([1 / 3] * 3)
    assert len(set(manifest.members)) == 3
    runs = [bundle.read(Bundles(works.store).fetch(m, tmp_path)).manifest.run_id for m in manifest.members]
    assert runs == members
    assert set(manifest.files) == {"card.md", "normality.npz", "report.json"}
    alone, _ = published(works, model="own-essen-s0", members=["own-essen-s0"])
    assert alone == manifest.members[0]


MEMBERS = ["own-essen-s0", "pooled-s0", "warm-essen-s0"]


@pytest.mark.parametrize(
    ("kind", "mix"),
    [
        ("ensemble", Mix.plain(3)),
        ("weighted", Mix((0.6, 0.3, 0.1))),
        ("stacked", Mix((0.9, 0.4, 0.5), "log")),
    ],
)
def test_a_part_has_the_probabilities_that_compare_saw_from_an_ensembles_bundle_and_over_http(
    works, tmp_path, kind, mix
):
    exports, plant = works.exports(), works.fleet.plant("essen")
    found = document(works, model=f"{kind}-essen", members=MEMBERS)
    found["decisions"]["essen"] |= to_json(mix)
    found["matrix"][f"{kind}-essen"] = found["matrix"]["ensemble-essen"]
    finished = dict.fromkeys(MEMBERS, FINISHED)
    digest, policy = publish_decision("essen", document=found, plan=works.plan, exports=exports, finished=finished)
    manifest, _ = bundle.read(Bundles(works.store).fetch(digest, tmp_path))
    assert (manifest.weights, manifest.rule) == (mix.weights, mix.rule)
    inputs = role_inputs("essen", role="decide", exports=exports)
    assert inputs is not None
    said = [inputs.probabilities(run) for run in MEMBERS]
    scores = inputs.scores(said, leaf_sets=works.fleet.leaf_sets(plant), mix=mix)
    plain = inputs.scores(said, leaf_sets=works.fleet.leaf_sets(plant))
    assert (kind == "ensemble") is bool(np.abs(scores.probs - plain.probs).max() < 1e-6)
    calibrated = calibrate(scores.probs, Policy.from_json(works.store.read(f"policies/{policy}.json")).temperature)
    predictor = local_predictor(
        Path(works.store.uri, "bundles", digest),
        plant="essen",
        policy=Path(works.store.uri, "policies", f"{policy}.json"),
    )
    Journal(works.settings.journal_url).promote("essen", bundle=digest, policy=policy, who="t")
    token = Access(works.settings.journal_url).issue("plant", plant="essen", ttl=timedelta(hours=1))
    service = open_service(works.settings, store_uri=works.store.uri, fleet="small", replica="r1")
    with TestClient(build_app(service)) as http:
        for part, expected in list(zip(scores.part_ids, calibrated.tolist(), strict=True))[:4]:
            frames = inputs.frames[inputs.frames["part_id"] == part]
            data = [(str(name), Path(plant.images, str(name)).read_bytes()) for name in frames.index]
            environment = frames["environment"].iloc[0]
            request = PartRequest("essen", tuple(Frame(*one) for one in data), environment=environment)
            on_disk = predictor.predict(request).probabilities
            answer = http.post(
                "/plants/essen/predict",
                headers={"Authorization": f"Bearer {token}"},
                files=[("image", one) for one in data],
                data={"environment": environment},
            ).json()["probabilities"]
            assert [on_disk[name] for name in scores.classes] == pytest.approx(expected, abs=1e-4)
            assert answer == pytest.approx(on_disk, abs=1e-5)


def test_a_bundle_that_knows_good_parts_only_has_no_branch_and_every_bundle_of_the_plant_knows_the_same(
    works, tmp_path
):
    exports = works.exports()
    views = np.random.default_rng(0).normal(size=(9, exports.material.model.feature_dim))
    places = [("essen", name) for name in ("ofen 1", "ofen 2", "never seen")] * 3
    expected = exports.normality("essen").score(views, places)
    for model in ("normality-essen-s0", "own-essen-s0", "pooled-s0"):
        digest, _ = published(works, model=model, members=[model], exports=exports)
        folder = Bundles(works.store).fetch(digest, tmp_path)
        manifest, _ = bundle.read(folder)
        found = Normalities.load(folder / "normality.npz")
        assert found.score(views, places) == pytest.approx(expected, rel=1e-6)
        assert [name for name in ("arden", "essen") if found.knows(name)] == sorted(manifest.serves)
        card = (folder / "card.md").read_text()
        assert "Novelty at essen: distance to its good training parts; too few views of their own" in card
        assert (manifest.kind == "normality") is (set(manifest.files) == set(PROOF))
