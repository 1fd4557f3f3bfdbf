"""A refresh: what goes on from where it was, what is trained in full, and what it never does."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cluster.catalog import Catalog
from cluster.ledger import RunLedger, RunRecord
from cluster.settings import Settings
from cluster.storage import Store, open_store
from jobs.carry_out import Trained, latest_plan
from jobs.fit import fit_run
from jobs.fleet import COMPARED, planned
from jobs.forked import run_forked
from jobs.material import Material
from jobs.plan import Plan, RunSpec, make_plan
from jobs.recipe import Recipe, Stage
from jobs.refresh import EPOCHS, News, is_much_new, refresh_fleet, refreshed, root_of, shortened
from plants.errors import CheckFailed, InputError, NoSpace
from plants.plant import Fleet
from tests.fleets import held_back, imported, small_fleet, trained
from tests.jobs.test_plan import PARTS, fleet

WEIGHTS = "w"


def plan_of(f: Fleet, *, data: str, **more: Any) -> Plan:
    counts = {"train_parts": PARTS, "train_defects": {**PARTS, "tiles": 5}}
    digests = {plant.name: f"{plant.name}-{data}" for plant in f.plants}
    return make_plan(f, recipe=Recipe(), data_digest=data, data=digests, **counts, **more)


def finished(plan: Plan, folder: Path, *, cut: int = 1, failed: tuple[str, ...] = ()) -> Store:
    """A store in which the plan's runs have ended, each with its stage kept."""
    store = open_store(folder)
    store.write_json(f"runs/{plan.plan_id}/plan.json", plan.to_json())
    store.write_json("runs/latest.json", {"plan": plan.plan_id})
    ledger = RunLedger(store, plan.plan_id)
    for run in plan.runs:
        ledger.put(RunRecord(run_id=run.run_id, state="failed" if run.run_id in failed else "done"))
        words = {"cut": cut if run.recipe["stages"] else 0, "weights_digest": WEIGHTS, "start": "model"}
        store.write_json(f"runs/{plan.plan_id}/{run.run_id}/model.json", words)
    return store


def compared(store: Store, plan: Plan, **members: list[str]) -> None:
    decisions = {name: {"members": runs} for name, runs in members.items()}
    store.write_json(COMPARED, {"plan": plan.plan_id, "decisions": decisions})


def refresh_of(
    latest: Plan, *, full: Plan, store: Store, weights: str = WEIGHTS, news: News = lambda run, since: True
) -> Plan:
    return refreshed(latest, full=full, store=store, weights_digest=weights, news=news)


def starts(plan: Plan) -> dict[str, str | None]:
    return {run.run_id: run.start for run in plan.runs}


def test_what_was_decided_for_goes_on_from_its_weights_beside_new_floors(tmp_path):
    old, full = plan_of(fleet(), data="d"), plan_of(fleet(), data="e")
    store = finished(old, tmp_path)
    compared(store, old, neu=["warm-neu-s0"], xsdd=["pooled-s0", "own-xsdd-s0"], tiles=["frozen-tiles-s0"])
    plan = refresh_of(old, full=full, store=store)
    begun = {run_id: f"{old.plan_id}/{run_id}" for run_id in ("pooled-s0", "own-xsdd-s0", "warm-neu-s0")}
    floors = [run.run_id for run in full.runs if run.kind in ("frozen", "normality")]
    assert starts(plan) == {**dict.fromkeys(floors), **begun}
    assert {run.run_id: run for run in plan.runs if run.run_id in floors} == {r: full.run(r) for r in floors}
    assert plan.learned_from(["warm-neu-s0"]) == ("neu", "xsdd")
    assert (plan.base, plan.snapshots("neu")) == (old.plan_id, ("neu-e", "neu-d"))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.plan_id not in (old.plan_id, full.plan_id)


def test_without_a_comparison_of_that_plan_every_run_goes_on(tmp_path):
    old, full = plan_of(fleet(), data="d"), plan_of(fleet(), data="e")
    store = finished(old, tmp_path)
    compared(store, full, neu=["warm-neu-s0"])
    plan = refresh_of(old, full=full, store=store)
    assert starts(plan).keys() == {run.run_id for run in full.runs}
    assert all(run.start for run in plan.runs if run.kind not in ("frozen", "normality"))


@pytest.mark.parametrize(
    ("change", "failed", "weights"),
    [({"neu": {"may_leave": False}}, (), WEIGHTS), ({}, ("warm-neu-s0",), WEIGHTS), ({}, (), "others")],
    ids=["lineage that is no longer allowed", "a run that failed", "another trunk"],
)
def test_what_cannot_go_on_is_trained_in_full_from_its_parent(tmp_path, change, failed, weights):
    third = {"tiles": {"classes": {"free": "ok", "scratch": "scratch"}, "ok": ["free"]}}
    old = plan_of(fleet(**third), data="d")
    full = plan_of(fleet(**{**third, **change}), data="e")
    store = finished(old, tmp_path, failed=failed)
    compared(store, old, neu=["warm-neu-s0"], xsdd=["warm-xsdd-s0"], tiles=["own-tiles-s0"])
    plan = refresh_of(old, full=full, store=store, weights=weights)
    if change:  # neu is alone now: nothing may begin with what it has taught the pool
        assert plan.run("warm-xsdd-s0") == full.run("warm-xsdd-s0")
        assert plan.run("pooled-s0") == full.run("pooled-s0")
        assert plan.run("own-tiles-s0").start
    elif failed:
        assert plan.run("warm-neu-s0") == full.run("warm-neu-s0")
        assert plan.run("pooled-s0").start
    else:
        assert not any(run.start for run in plan.runs)


def test_a_new_plant_gets_its_own_model_in_full(tmp_path):
    two = fleet()
    two = two.model_copy(update={"plants": two.plants[:2]})
    old, full = plan_of(two, data="d"), plan_of(fleet(), data="e")
    store = finished(old, tmp_path)
    compared(store, old, neu=["own-neu-s0"], xsdd=["own-xsdd-s0"])
    plan = refresh_of(old, full=full, store=store)
    assert plan.run("own-tiles-s0") == full.run("own-tiles-s0")
    assert "frozen-tiles-s0" in starts(plan)


def test_the_same_data_are_not_learned_again_and_an_unfinished_plan_is_finished_first(tmp_path):
    old, full = plan_of(fleet(), data="d"), plan_of(fleet(), data="e")
    store = finished(old, tmp_path)
    assert refresh_of(old, full=plan_of(fleet(), data="d"), store=store) == old
    plan = refresh_of(old, full=full, store=store)
    assert refresh_of(plan, full=full, store=store) == plan  # killed before its first run ended: the same command
    later = refresh_of(plan, full=plan_of(fleet(), data="f"), store=store)
    assert (later.base, later.data_digest) == (old.plan_id, "f")  # what was not finished is left
    RunLedger(store, old.plan_id).put(RunRecord(run_id="own-neu-s0", state="running"))
    with pytest.raises(InputError, match=r"the latest plan is not finished.*then --refresh"):
        refresh_of(old, full=full, store=store)


def test_what_was_trained_before_runs_left_a_start_is_trained_in_full(tmp_path):
    old, full = plan_of(fleet(), data="d"), plan_of(fleet(), data="e")
    store = finished(old, tmp_path)
    for run in old.runs:
        store.write_json(f"runs/{old.plan_id}/{run.run_id}/model.json", {"cut": 1, "weights_digest": WEIGHTS})
    assert not any(run.start for run in refresh_of(old, full=full, store=store).runs)


def test_a_plant_whose_model_takes_more_than_one_seed_is_refreshed_with_all_its_runs(tmp_path):
    old = plan_of(fleet(), data="d", seeds=(0, 1), average=True)
    store = finished(old, tmp_path)
    compared(store, old, neu=["average-own-neu-s0"], xsdd=["own-xsdd-s0"], tiles=["own-tiles-s0"])
    plan = refresh_of(old, full=plan_of(fleet(), data="e", average=True), store=store)
    assert {run.kind for run in plan.runs if run.target == "neu"} >= {"own", "warm", "sister", "average", "frozen"}
    assert {run.kind for run in plan.runs if run.target == "tiles"} == {"own", "frozen", "normality"}


def test_a_refresh_of_a_refresh_remembers_all_it_has_learned_from_and_the_whole_recipe(tmp_path):
    plans = [plan_of(fleet(), data=data) for data in "def"]
    store = finished(plans[0], tmp_path)
    once = refresh_of(plans[0], full=plans[1], store=store)
    finished(once, tmp_path)
    twice = refresh_of(once, full=plans[2], store=store)
    assert twice.snapshots("neu") == ("neu-f", "neu-e", "neu-d")
    assert twice.run("warm-neu-s0").start == f"{once.plan_id}/warm-neu-s0"
    assert twice.learned_from(["warm-neu-s0"]) == ("neu", "xsdd")
    assert root_of(twice, store=store).deepest == Recipe()


def test_stages_go_on_where_much_is_new_since_they_learned_last_and_the_head_alone_elsewhere(tmp_path):
    plans = [plan_of(fleet(), data=data) for data in "defg"]
    store, asked = finished(plans[0], tmp_path), []

    def news(run: RunSpec, since: Plan) -> bool:
        asked.append((run.run_id, since.data_digest))
        return (run.run_id, since.data_digest) in (("own-neu-s0", "d"), ("own-xsdd-s0", "e"))

    def epochs(plan: Plan, run_id: str) -> list[int]:
        return [stage["epochs"] for stage in plan.run(run_id).recipe["stages"]]

    latest, found = plans[0], []
    for full in plans[1:]:
        latest = refresh_of(latest, full=full, store=store, news=news)
        found.append([epochs(latest, run_id) for run_id in ("own-neu-s0", "own-xsdd-s0")])
        finished(latest, tmp_path)
    assert found == [[[EPOCHS], [0]], [[0], [0]], [[0], [0]]]
    assert [since for run_id, since in asked if run_id == "own-neu-s0"] == ["d", "e", "e"]
    assert [since for run_id, since in asked if run_id == "own-xsdd-s0"] == ["d", "d", "d"]
    assert all(run.start for run in latest.runs if run.kind == "own")


@pytest.mark.parametrize(
    ("new", "changed", "other", "gone", "expected"),
    [
        (0, 0, False, False, False),
        (20, 0, False, False, False),
        (21, 0, False, False, True),
        (0, 21, False, False, True),
        (1, 0, True, False, True),
        (0, 0, False, True, True),
    ],
    ids=["nothing", "a fifth", "over a fifth", "corrected labels", "another class", "what it learned from is gone"],
)
def test_much_is_new_by_rows_that_came_or_were_corrected_or_by_a_class(tmp_path, new, changed, other, gone, expected):
    catalog = Catalog(open_store(tmp_path))
    now = [(f"{i}", "b" if i < changed else "c" if other and i == 99 else "a") for i in range(100)]
    before = [(sha, "a") for sha, _ in now[: 100 - new]] + [("x", "b")]

    def learned(plant: str, *, digest: str | None) -> pd.DataFrame:
        if gone and digest:
            raise InputError("the rows a model learned from are gone")
        return pd.DataFrame(before if digest else now, columns=["sha256", "class"])

    catalog.learned = learned
    run = RunSpec("own-neu-s0", "own", ("neu",), 0, {"stages": []})
    since = Plan("f", "d", runs=(run,), data={"neu": "then"})
    assert is_much_new(run, since, now={"neu": "now"}, catalog=catalog) is expected
    assert not is_much_new(run, since, now={"neu": "then"}, catalog=catalog)  # its rows are not even read


@pytest.mark.parametrize(
    ("epochs", "warmup", "cut", "few", "expected"),
    [
        (8, 1, 1, 5, [(1, 5, 1)]),
        (3, 2, 2, 5, [(2, 3, 2)]),
        (8, 7, 2, 5, [(2, 5, 4)]),
        (8, 1, 0, 5, []),
        (8, 1, 2, 0, [(2, 0, 0)]),
    ],
)
def test_only_the_stage_that_had_won_is_trained_on_for_few_epochs_or_none(epochs, warmup, cut, few, expected):
    recipe = Recipe(stages=tuple(Stage(cut=c, epochs=epochs, warmup_epochs=warmup) for c in (1, 2)))
    found = shortened(recipe, cut=cut, epochs=few)
    assert [(stage.cut, stage.epochs, stage.warmup_epochs) for stage in found.stages] == expected
    assert found.model_copy(update={"stages": recipe.stages}) == recipe


@dataclass(frozen=True)
class Grown:
    """Two plants trained on 85 % of their lots and compared; the others came, and all was refreshed in two attempts."""

    fleet: Fleet
    settings: Settings
    before: Plan
    after: Trained
    refusals: tuple[NoSpace, ...]
    events: list[dict[str, Any]]
    opened: list[str]
    """Plants whose sealed answers were asked for."""

    @property
    def store(self) -> Store:
        return open_store(self.fleet.store)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    folder = tmp_path_factory.mktemp("grown")
    path = small_fleet(folder / "fleet", "arden", "essen", scale=0.1)
    arrive = held_back(path)
    works = trained(path, home=folder / "home")
    compared(works.store, works.plan, arden=["warm-arden-s0"], essen=["own-essen-s0"])
    arrive()
    fleet, settings = imported(path), works.settings
    events: list[dict[str, Any]] = []
    opened: list[str] = []
    refusals = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "sealed", lambda self, plant: opened.append(plant))
        patch.setattr("ray.init", lambda *a, **k: pytest.fail("Ray was started"))
        small = settings.model_copy(update={"cache_gb": 1e-5})
        for refused in [lambda: refresh_fleet(fleet, settings=small), lambda: on_a_full_disk(fleet, settings, folder)]:
            with pytest.raises(NoSpace) as error:
                refused()
            refusals.append(error.value)
        after = refresh_fleet(fleet, settings=settings, say=lambda event: events.append(dict(event)))
    return Grown(fleet, settings, works.plan, after, tuple(refusals), events, opened)


def on_a_full_disk(fleet: Fleet, settings: Settings, folder: Path) -> None:
    """A refresh whose cache lies on a disk with 100 kB to spare, where this user may mount one."""
    disk = folder / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        raise NoSpace("the disk is full (not tried: this user may not mount one)")
    try:
        shutil.copytree(settings.cache / "exports", disk / "cache" / "exports")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
        with pytest.MonkeyPatch.context() as patch:  # a disk that fills up later than the check before the start
            patch.setattr("jobs.budget.check_room", lambda *args, **more: None)
            refresh_fleet(fleet, settings=Settings(home=disk, slots=2, tracking_uri=settings.tracking_uri))
    finally:
        left = [path.name for path in disk.rglob("*.part")]
        subprocess.run(["umount", "-l", str(disk)], check=True)
        assert not left


@pytest.mark.slow
def test_a_full_cache_and_a_full_disk_end_the_command_with_one_line_and_the_same_command_goes_on(grown):
    bounded, full = map(str, grown.refusals)
    assert "the cache may hold 1e-05 GB (CROSSPLANT_CACHE_GB) and " in bounded
    assert bounded.endswith("Make space there; then the same command goes on where this one was")
    assert "the disk is full" in full
    assert {record.error or record.state for record in grown.after.records.values()} == {"done"}
    assert all(record.strikes == 0 for record in grown.after.records.values())


@pytest.mark.slow
def test_a_refresh_learns_old_and_new_rows_here_without_ray_and_opens_no_seal(grown):
    plan = grown.after.plan
    assert not grown.opened
    assert starts(plan)["warm-arden-s0"] == f"{grown.before.plan_id}/warm-arden-s0"
    assert starts(plan).keys() > {"warm-arden-s0", "own-essen-s0", "frozen-arden-s0", "normality-essen-s0"}
    assert not starts(plan).keys() & {"pooled-s0", "own-arden-s0", "sister-arden-s0"}
    material = Material(grown.fleet, cache=grown.settings.cache, recipe=Recipe())
    words, state, _ = material.load("warm-arden-s0", plan_id=plan.plan_id)
    parent, begun, _ = material.load("warm-arden-s0", plan_id=grown.before.plan_id)
    assert words["cut"] == parent["cut"]
    assert not torch.equal(state["head.weight"], begun["head.weight"])
    assert any("head fitted on the parent's features" in note for note in words["notes"])
    (said,) = (event for event in grown.events if event["kind"] == "plan")
    assert any("the heads alone are fitted again: warm-arden-s0" in note for note in said["notes"])
    assert all(torch.equal(state[key], begun[key]) for key in begun if not key.startswith("head."))
    assert {event["plant"] for event in grown.events if event["kind"] == "prepared"} == {"arden", "essen"}


@pytest.mark.slow
def test_rows_that_were_learned_from_keep_their_role_in_a_refresh_and_more_have_come(grown):
    for name in ("arden", "essen"):
        learned = [Catalog.of(grown.fleet).learned(name, digest=p.data[name]) for p in (grown.before, grown.after.plan)]
        both = learned[0].merge(learned[1], on="frame", suffixes=("", "_new"))
        assert len(both) == len(learned[0]) < len(learned[1])
        assert (both["role"] == both["role_new"]).all()


@pytest.mark.slow
def test_the_same_command_again_does_nothing(grown):
    again = refresh_fleet(grown.fleet, settings=grown.settings)
    assert (again.plan, again.records) == (grown.after.plan, grown.after.records)
    assert latest_plan(grown.store) == grown.after.plan


@pytest.mark.slow
def test_a_frozen_floor_of_a_refresh_is_the_one_of_a_full_training(grown, tmp_path):
    recipe = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)
    material = Material(grown.fleet, cache=tmp_path, recipe=recipe)
    full = planned(grown.fleet, material=material, recipe=recipe)
    fit_run(full.run("frozen-essen-s0"), material=material, plan=full)
    one, other = (material.load("frozen-essen-s0", plan_id=p.plan_id)[1] for p in (grown.after.plan, full))
    torch.testing.assert_close(one["head.weight"], other["head.weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_lanes_that_cannot_begin_end_the_refresh_with_their_cause(works, monkeypatch):
    plan = Plan("f", "d", runs=(RunSpec("own-arden", "own", ("arden",), 0, {"stages": []}),))
    material = Material(works.fleet, cache=works.settings.cache, recipe=Recipe())
    broken = {**material.to_config(), "recipe": {"views": 0}}
    monkeypatch.setattr(material, "to_config", lambda: broken)
    with pytest.raises(CheckFailed, match=r"lanes could not be kept at work: lane 0 ended with 1"):
        run_forked(plan, material=material, settings=works.settings, say=lambda event: None)
