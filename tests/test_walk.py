"""The whole walk of a small fleet whose frames, labels and store lie in a bucket: `import` to endpoints, and back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from object_store import KEY_ID, SECRET, TRAINER_SECRET, ObjectStore

import crossplant
from cluster.catalog import Catalog
from cluster.kuberay import SEALED_VERBS
from cluster.registry import Bundles, Journal
from cluster.settings import Settings
from cluster.storage import PlantFiles, Store, open_store
from jobs import release, verbs, verdicts
from jobs.evaluate import LEDGER, open_test, openings
from jobs.material import Material
from jobs.plan import Plan
from jobs.recipe import Recipe, Stage, save_recipe
from jobs.resolve import resolve
from jobs.scoring import Exports, role_inputs
from plants.costs import VERDICTS, Policy, decide_many
from plants.errors import InputError, SealError
from plants.images import tensor_digest
from plants.plant import Fleet, load_fleet
from plants.scores import calibrate
from serving import app
from serving.client import Client
from serving.intake import Frame, PartRequest
from serving.local import local_predictor, predict_local
from serving.verbs import ensure_token, serve_fleet
from tests.fleets import NOW, console, into_bucket, small_fleet, textured, with_new_plant

pytestmark = pytest.mark.slow
PLANTS = ("essen", "fargo")
"""Two frames a part, and tiles."""
NEW = "gies"
"""Nobody has labelled a defect here."""
EVERY = (*PLANTS, NEW)
ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def everything_printed(into: Path) -> Iterator[None]:
    """What this process and its children write to stdout and stderr goes into a file."""
    kept = os.dup(1), os.dup(2)
    with into.open("ab") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


@contextlib.contextmanager
def keys_of(user: Mapping[str, str]) -> Iterator[None]:
    """Inside the block this process, and what it starts, has the keys of a user of the object store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in user.items():
            patch.setenv(name, value)
        yield


@dataclass
class Walk:
    """A walked fleet: what every verb returned, and what was printed on the way."""

    path: Path
    fleet: Fleet
    settings: Settings
    recipe: Path
    documents: dict[str, dict[str, Any]]
    printed: Path
    said: Any

    @property
    def store(self) -> Store:
        return open_store(self.fleet.store)

    @property
    def catalog(self) -> Catalog:
        return Catalog.of(self.fleet)

    @property
    def address(self) -> str:
        return str(self.documents["serve"]["address"])

    def token(self, plant: str) -> str:
        return ensure_token(self.settings, plant=plant)

    def part(self, plant: str, *, role: str) -> pd.DataFrame:
        """The rows of the first part of a role that shows most frames."""
        rows = self.catalog.rows(plant)
        return rows[(rows["role"] == role) & (rows["part_id"] == rows[rows["role"] == role]["part_id"].iloc[0])]

    def frames(self, plant: str, *, part: pd.DataFrame) -> list[tuple[str, bytes]]:
        files = PlantFiles()
        root = self.fleet.plant(plant).images
        return [(Path(frame).name, files.read(root, frame)) for frame in part["frame"]]

    def bundle(self, plant: str) -> Path:
        """The plant's published bundle on this disk, with its members and its trunk where a store keeps them."""
        return fetched(
            self.store, digest=self.documents["compare"]["decisions"][plant]["bundle"], into=self.path.parent
        )

    def policy(self, plant: str) -> Path:
        digest = self.documents["compare"]["decisions"][plant]["policy_digest"]
        path = self.path.parent / f"{digest}.json"
        path.write_bytes(self.store.read(f"policies/{digest}.json"))
        return path


def fetched(store: Store, *, digest: str, into: Path) -> Path:
    bundles = Bundles(store)
    folder = bundles.fetch(digest, into / "bundles")
    manifest = json.loads((folder / "manifest.json").read_text())
    for member in manifest["members"]:
        bundles.fetch(member, into / "bundles")
    trunk = manifest["trunk"]["sha256"]
    if not (into / "trunks" / f"{trunk}.onnx").exists():
        store.download(f"trunks/{trunk}.onnx", into / "trunks" / f"{trunk}.onnx", sha256=trunk)
    return folder


@pytest.fixture(scope="module")
def trainer(object_store: ObjectStore) -> Iterator[ObjectStore]:
    """The keys of this module, and so of Ray's processes and the replicas, are those that training has."""
    with keys_of(object_store.trainer_env):
        yield object_store


@pytest.fixture(scope="module")
def walk(trainer: ObjectStore, ray_local: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("walk")
    bucket, seal = trainer.new_bucket(), trainer.new_bucket()
    trainer.open_to_trainer(bucket)
    path = with_new_plant(small_fleet(folder, *PLANTS, scale=0.08), NEW)
    with keys_of(trainer.env):
        path = into_bucket(path, bucket=bucket, seal=seal)
    recipe, printed = folder / "recipe.yaml", folder / "printed.txt"
    save_recipe(Recipe(stages=(Stage(cut=1, epochs=2),), views=2), recipe)
    settings, (show, said) = ray_local, console()
    fleet = load_fleet(path)
    documents: dict[str, dict[str, Any]] = {}
    with everything_printed(printed):
        for name, step in {
            "import": lambda: verbs.import_fleet(fleet, names=EVERY, show=show),
            "audit": lambda: verbs.audit_fleet(fleet, settings=settings, names=EVERY, show=show),
            "train": lambda: train(fleet, settings=settings, recipe=recipe, show=show),
            "compare": lambda: verdicts.compare(fleet, settings=settings, show=show),
            "evaluate": lambda: verdicts.evaluate(fleet, settings=settings, names=EVERY, show=show),
            "publish": lambda: release.publish(fleet, settings=settings, names=EVERY, show=show),
            "serve": lambda: serve_fleet(fleet, settings=settings, host="127.0.0.1", port=0),
        }.items():
            begun = time.monotonic()
            with keys_of(trainer.env if name in SEALED_VERBS else {}):
                documents[name] = step()
            print(f"{name}: {time.monotonic() - begun:.1f} s")
    yield Walk(path, fleet, settings, recipe, documents, printed, said)
    app.stop(fleet.fleet)


def train(fleet: Fleet, *, settings: Settings, recipe: Path, show: Any) -> dict[str, Any]:
    return verbs.train(
        fleet, settings=settings, recipe_file=recipe, seeds=(0,), leave_out=(), retry_failed=False, show=show
    )


def command(walk: Walk, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it."""
    env = {**os.environ, "CROSSPLANT_HOME": str(walk.settings.home), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, "-m", "crossplant", *words)
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    with walk.printed.open("a") as file:
        file.write(done.stdout + done.stderr)
    return done


def test_every_run_is_done_and_every_plant_has_a_column_a_decision_and_a_route(walk: Walk):
    runs = walk.documents["train"]["runs"]
    assert {run["state"] for run in runs} == {"done"}
    assert {run["kind"] for run in runs} == {"frozen", "own", "pooled", "warm", "sister", "normality"}
    compared = walk.documents["compare"]
    trained = [run["name"] for run in runs if run["kind"] != "normality"]
    assert all(set(PLANTS) <= set(compared["matrix"][name]) for name in trained)
    assert set(compared["decisions"]) == set(EVERY)
    assert walk.store.read("reports/compare.html").startswith(b"<!DOCTYPE html")
    routes = {row["plant"]: row["bundle"] for row in walk.documents["publish"]["plants"]}
    assert routes == {name: decision["bundle"] for name, decision in compared["decisions"].items()}


def test_the_demo_calls_every_endpoint_with_its_token_and_counts_by_environment(walk: Walk, monkeypatch):
    monkeypatch.setattr("serving.verbs.serve_fleet", lambda *_, **__: walk.documents["serve"])
    found = crossplant._called(walk.fleet, settings=walk.settings)
    assert set(found) == {"address", "endpoints", "metrics"}
    assert found["endpoints"] == {name: f"{found['address']}/plants/{name}/predict" for name in EVERY}
    for name in EVERY:
        counted = found["metrics"][name]["environments"]
        assert set(counted) <= set(walk.fleet.plant(name).environments)
        assert sum(row["requests"] for row in counted.values()) >= 1


def test_training_again_repeats_nothing(walk: Walk):
    ledger = {e.key: walk.store.read(e.key) for e in walk.store.list("runs") if e.key.endswith(".json")}
    show, said = console()
    again = train(walk.fleet, settings=walk.settings, recipe=walk.recipe, show=show)
    assert "0 to do" in said()
    assert again["runs"] == walk.documents["train"]["runs"]
    assert ledger == {e.key: walk.store.read(e.key) for e in walk.store.list("runs") if e.key.endswith(".json")}


def test_a_policy_is_solved_again_on_the_scores_that_the_comparison_kept_of_the_live_bundle(walk: Walk):
    given = {"checked": None, "num_parts": None, "is_promoted": False, "show": console()[0]}
    found = resolve(walk.fleet, settings=walk.settings, name="essen", **given)
    decision = walk.documents["compare"]["decisions"]["essen"]
    assert (found["bundle"], found["after"]["policy"]) == (decision["bundle"], decision["policy_digest"])
    assert b"<h3>What a part costs" in walk.store.read("reports/compare.html")


@pytest.mark.parametrize(("plant", "num_frames", "num_views"), [("essen", 2, 1), ("fargo", 1, 66), (NEW, 1, 1)])
def test_training_a_bundle_on_disk_and_http_give_one_tensor_and_one_answer(walk, plant, num_frames, num_views):
    part = walk.part(plant, role="decide")
    frames, environment, part_id = walk.frames(plant, part=part), part["environment"].iloc[0], part["part_id"].iloc[0]
    assert len(frames) == num_frames
    with Client(walk.address, token=walk.token(plant)) as client:
        over_http = client.predict(plant, frames, part_id=part_id, environment=environment)
    request = PartRequest(plant, tuple(Frame(*frame) for frame in frames), environment=environment, part_id=part_id)
    predictor = local_predictor(walk.bundle(plant), plant=plant, policy=walk.policy(plant))
    (answer,) = predict_local(predictor, [request])
    assert not isinstance(answer, InputError)
    on_disk = answer.model_dump(mode="json")
    for key in ("verdict", "defect", "confidence", "probabilities", "novelty", "frames", "location", "why"):
        assert on_disk[key] == over_http[key]
    tensors, probabilities, novelty, verdict = in_training(walk, plant=plant, part_id=part_id)
    assert [frame["tensor_digest"] for frame in over_http["frames"]] == tensors
    assert [frame["num_views"] for frame in over_http["frames"]] == [num_views] * num_frames
    assert over_http["probabilities"] == pytest.approx(probabilities, abs=1e-5)
    assert over_http["novelty"] == pytest.approx(novelty, abs=1e-4)
    assert over_http["verdict"] == verdict


def in_training(walk: Walk, *, plant: str, part_id: str) -> tuple[list[str], dict[str, float], float, str]:
    """Tensor digests of the part's frames, its class probabilities, novelty and verdict as `compare` finds them."""
    document = walk.documents["compare"]
    decision = document["decisions"][plant]
    plan = Plan.from_json(walk.store.read_json(f"runs/{document['plan']}/plan.json"))
    recipe = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)
    exports = Exports(Material(walk.fleet, cache=walk.settings.cache, recipe=recipe), plan=plan)
    inputs = role_inputs(plant, role="decide", exports=exports)
    assert inputs is not None
    names = inputs.frames.index[inputs.frames["part_id"] == part_id]
    at = [inputs.inputs[inputs.frame_groups == list(inputs.frames.index).index(name)] for name in names]
    leaf_sets = walk.fleet.leaf_sets(walk.fleet.plant(plant))
    scores = inputs.scores([inputs.probabilities(run) for run in decision["members"]], leaf_sets=leaf_sets)
    policy = Policy.from_json(walk.policy(plant).read_text())
    row = list(scores.part_ids).index(part_id)
    verdict = VERDICTS[int(decide_many(scores, policy).verdict[row])]
    calibrated = calibrate(scores.probs, policy.temperature)
    digests = [tensor_digest(np.ascontiguousarray(inputs.pixels[rows])) for rows in at]
    assert scores.novelty is not None
    return digests, dict(zip(scores.classes, calibrated[row], strict=True)), float(scores.novelty[row]), verdict


def test_a_plant_without_a_labelled_defect_is_served_and_what_is_unlike_its_good_parts_is_looked_at(walk: Walk):
    decision = walk.documents["compare"]["decisions"][NEW]
    assert (decision["kind"], decision["model"]) == ("normality", f"normality-{NEW}-s0")
    assert decision["why"].startswith("no defect is labelled, so no classifier can be judged")
    assert walk.documents["evaluate"]["plants"][NEW]["macro_f1"] is None
    rng = np.random.default_rng(1)
    with Client(walk.address, token=walk.token(NEW)) as client:
        good = [client.predict(NEW, [("good.png", textured(rng))]) for _ in range(8)]
        bad = client.predict(NEW, [("bad.png", textured(rng, blot=True))])
    assert {answer["verdict"] for answer in good} <= {"ok", "review"}
    assert sum(answer["verdict"] == "ok" for answer in good) >= 4
    assert (bad["verdict"], bad["defect"], bad["confidence"]) == ("review", None, 0.0)
    assert bad["why"] == "far from the good parts of this plant"
    assert bad["novelty"] > max(answer["novelty"] for answer in good)


def test_parts_are_counted_by_environment_and_every_answer_reaches_the_log_in_the_bucket(walk: Walk):
    part = walk.part("essen", role="decide")
    environment = part["environment"].iloc[0]
    with Client(walk.address, token=walk.token("essen")) as client:
        before = client.metrics("essen")["environments"].get(environment, {"requests": 0, "frames": 0})
        answer = client.predict("essen", walk.frames("essen", part=part), environment=environment)
        after = client.metrics("essen")["environments"][environment]
    assert after["requests"] - before["requests"] == 1
    assert after["frames"] - before["frames"] == len(part)
    begun, rows = time.monotonic(), {}
    while answer["request_id"] not in rows:
        assert time.monotonic() - begun < 10
        time.sleep(0.3)
        rows = {row["request_id"]: row for row in read_log(walk.store)}
    assert rows[answer["request_id"]]["verdict"] == answer["verdict"]
    assert rows[answer["request_id"]]["bundle"] == answer["model"]["bundle"]


def read_log(store: Store) -> list[dict[str, Any]]:
    return [
        row
        for entry in store.list("log/segments")
        for row in pa.ipc.open_file(store.read(entry.key)).read_all().to_pylist()
    ]


def test_the_command_asks_an_endpoint_with_the_token_kept_under_home(walk: Walk, tmp_path: Path):
    part = walk.part("essen", role="decide")
    for name, data in walk.frames("essen", part=part):
        (tmp_path / name).write_bytes(data)
    environment = str(part["environment"].iloc[0])
    words = ("--plant", "essen", "--address", walk.address, "--environment", environment, "--one-part", "--json", "-")
    done = command(walk, "predict", str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["predictions"]
    assert {"image", "part_id", "verdict", "defect", "confidence", "probabilities"} <= set(row)
    assert len(row["frames"]) == 2


def test_golden_parts_are_judged_as_before_ten_shots_of_one_alike_and_another_result_is_a_failed_check(walk, tmp_path):
    part = walk.part("fargo", role="decide")
    ((_, data),) = walk.frames("fargo", part=part)
    shots, last = tmp_path / "shots", tmp_path / "last.json"
    shots.mkdir()
    for number in range(10):
        (shots / f"{number}.png").write_bytes(data)
    words = ("predict", str(shots), "--plant", "fargo", "--address", walk.address)
    words += ("--environment", str(part["environment"].iloc[0]))
    done = command(walk, *words, "--repeats", "--json", str(last))
    assert done.returncode == 0, done.stderr
    document = json.loads(last.read_text())
    assert document["unexpected"] == []
    assert command(walk, *words, "--expect", str(last)).returncode == 0
    row = document["predictions"][3]
    row |= {"verdict": "ok" if row["verdict"] == "reject" else "reject", "defect": None}
    last.write_text(json.dumps(document))
    done = command(walk, *words, "--expect", str(last))
    assert done.returncode == 1
    assert "not as expected: 3.png: " in done.stdout + done.stderr
    assert "check failed: 1 results are not as expected" in done.stdout + done.stderr


def test_another_plants_token_opens_nothing_and_says_nothing(walk: Walk):
    url = f"{walk.address}/plants/essen/predict"
    assert httpx.post(url, content=b"x").status_code == 401
    wrong = httpx.post(url, content=b"x", headers={"Authorization": f"Bearer {walk.token('fargo')}"})
    headers = {"Authorization": f"Bearer {walk.token('fargo')}"}
    nobody = httpx.post(f"{walk.address}/plants/nowhere/predict", content=b"x", headers=headers)
    assert wrong.status_code == nobody.status_code == 403
    assert wrong.content == nobody.content


def test_a_promoted_policy_judges_within_seconds_and_a_rollback_takes_it_back(walk: Walk):
    store, journal = walk.store, Journal(walk.settings.journal_url)
    now = journal.route("essen")
    assert now is not None
    old = Policy.from_json(store.read(f"policies/{now.policy}.json").decode())
    new = old.model_copy(update={"pass_below": 0.0, "reject_above": 0.0, "impossible_above": 1.0})
    store.write(f"policies/{new.digest}.json", new.to_json().encode())
    show, _ = console()
    to = {"plant": "essen", "bundle": now.bundle[:10], "policy": new.digest[:10], "show": show}
    promoted = release.promote(walk.fleet, settings=walk.settings, **to)
    assert promoted["sequence"] == now.sequence + 1
    assert judged_by(walk, policy=new.digest) == "reject"
    back = release.rollback(walk.fleet, settings=walk.settings, plant="essen", show=show)
    assert (back["bundle"], back["policy"]) == (now.bundle, now.policy)
    judged_by(walk, policy=old.digest)


def judged_by(walk: Walk, *, policy: str) -> str:
    """The verdict on a part as soon as this policy gives it, which is soon."""
    part = walk.part("essen", role="decide")
    frames, environment = walk.frames("essen", part=part), part["environment"].iloc[0]
    begun = time.monotonic()
    with Client(walk.address, token=walk.token("essen")) as client:
        while (answer := client.predict("essen", frames, environment=environment))["model"]["policy"] != policy:
            assert time.monotonic() - begun < 10
            time.sleep(0.1)
    return str(answer["verdict"])


def test_status_shows_runs_and_routes_from_another_shell(walk: Walk):
    done = command(walk, "status", "--fleet", str(walk.path), "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {run["state"] for run in document["runs"]} == {"done"}
    assert {route["plant"] for route in document["routes"]} == set(EVERY)
    assert document["alarms"] == []


def test_a_bundle_with_one_byte_changed_is_refused_by_the_command_in_one_line(walk: Walk, tmp_path: Path):
    frame = tmp_path / "frame.jpg"
    frame.write_bytes(walk.frames("essen", part=walk.part("essen", role="decide"))[0][1])
    digest = walk.documents["compare"]["decisions"]["essen"]["bundle"]
    folder = fetched(walk.store, digest=digest, into=tmp_path)
    card = folder / "card.md"
    card.write_bytes(bytes([card.read_bytes()[0] ^ 1]) + card.read_bytes()[1:])
    done = command(walk, "predict", str(frame), "--bundle", str(folder), "--plant", "essen")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "card.md" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_keys_that_train_compare_publish_and_serve_do_not_open_the_seal(walk: Walk):
    """Every verb but `import` and `evaluate` has gone its way with them."""
    catalog = walk.catalog
    for read in (lambda: catalog.sealed("essen"), lambda: openings(catalog.seal), catalog.seal.list):
        with pytest.raises(InputError, match=r"the object store denied access"):
            read()
    assert any(catalog.store.read(entry.key) for entry in catalog.store.list("labels"))
    for verb in ("import", "evaluate"):
        done = command(walk, verb, "--fleet", str(walk.path))
        assert done.returncode == 2, done.stderr
        assert "denied access" in done.stderr
        assert "Traceback" not in done.stderr
    rows = catalog.rows("essen")
    assert rows.loc[rows["role"] == "test", ["class", "box", "severity"]].isna().all(axis=None)


def test_the_seal_was_opened_once_for_what_was_chosen_and_a_sixth_opening_is_refused(walk, monkeypatch):
    decisions = walk.documents["compare"]["decisions"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    first = [(o.plant, o.generation, o.bundles) for o in openings(walk.catalog.seal)]
    assert first == [(name, 1, (decisions[name]["bundle"],)) for name in EVERY]
    evaluated = walk.documents["evaluate"]["plants"]
    assert all(evaluated[name]["n"] > 0 for name in PLANTS)
    rows = walk.catalog.rows("essen")
    assert rows.loc[rows["role"] == "test", "class"].isna().all()
    for _ in range(4):
        open_test("essen", catalog=walk.catalog, who="t", bundles=["b"], now=NOW, budget=5)
    before = walk.catalog.seal.read(LEDGER)
    show, _ = console()
    with pytest.raises(SealError, match="opened 5 times of 5"):
        verdicts.evaluate(walk.fleet, settings=walk.settings, names=["essen"], show=show)
    assert walk.catalog.seal.read(LEDGER) == before


def test_no_credential_stands_in_anything_printed_logged_or_kept(walk: Walk):
    """The last test: it looks at what all others left behind."""
    tokens = {name: walk.token(name) for name in EVERY}
    secrets = [SECRET.encode(), TRAINER_SECRET.encode(), *(token.encode() for token in tokens.values())]
    assert KEY_ID.encode() not in walk.printed.read_bytes()
    for text in (walk.printed.read_bytes(), walk.said().encode()):
        assert not any(secret in text for secret in secrets)
    ray = next(Path(tempfile.gettempdir()).glob(f"crossplant-{os.getpid()}-*"))
    files = [
        p for root in (walk.settings.home, ray) for p in root.rglob("*") if p.is_file() and p.parent.name != "tokens"
    ]
    assert len(files) > 50
    kept = [(str(path), path.read_bytes()) for path in files]
    kept += [(entry.key, walk.store.read(entry.key)) for entry in walk.store.list() if entry.size < 1 << 20]
    found = [name for name, data in kept if any(secret in data for secret in secrets)]
    assert found == []
