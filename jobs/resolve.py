"""A new policy for the bundle that judges a plant, without learning: the defect rate has moved, or the prices have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.registry import Journal
from cluster.settings import Settings
from cluster.storage import Store, open_store
from jobs import release, verdicts
from jobs.verbs import new_table
from plants.bundle import parse
from plants.checked import read_checked
from plants.costs import Policy, expected_cost, review_capacity, review_load, solve, solve_by_novelty
from plants.errors import InputError
from plants.plant import Costs, Fleet, Plant
from plants.prevalence import Prevalence, costs_at, prevalence
from plants.scores import PartScores


def resolve(
    fleet: Fleet,
    *,
    settings: Settings,
    name: str,
    checked: Path | None,
    num_parts: int | None,
    is_promoted: bool,
    show: Console,
    certify: release.Certify | None = None,
) -> dict[str, Any]:
    """A policy of the plant's live bundle, solved at the measured defect rate, is in the store; see `before`, `after`.

    checked: what people found, as `plants.checked` reads it; num_parts: all parts of that period. Without them the
    policy is solved at the defect rate and the prices of the fleet's file. Where the plant has no route yet, the bundle
    is the one that `compare` decided for. certify: what `jobs.release.promote` asks before the route changes.
    """
    plant, store = fleet.plant(name), open_store(fleet.store)
    if not plant.ok:
        raise InputError("no class is good here, so there is no money to solve for", plant=name, field="ok")
    found = measured(plant, file=checked, num_parts=num_parts, show=show)
    route = Journal(settings.journal_url).route(name)
    if route is None and is_promoted:
        raise InputError("has no route yet", plant=name, remedy="Run `crossplant publish` first")
    bundle, old = (route.bundle, route.policy) if route else _decided(store, plant=name)
    before = Policy.from_json(store.read(f"policies/{old}.json"), file=f"policies/{old}.json")
    scores = bundle_scores(store, plant=plant, bundle=bundle)
    manifest = f"bundles/{bundle}/manifest.json"
    is_first = store.exists(manifest) and parse(store.read(manifest), source=manifest).kind == "normality"
    solver = solve_by_novelty if is_first else solve
    after = solver(scores, costs=costs_at(plant.costs, found) if found else plant.costs, plant=name, bundle=bundle)
    store.write(f"policies/{after.digest}.json", after.to_json().encode())
    document: dict[str, Any] = {
        "plant": name,
        "bundle": bundle,
        "prevalence": asdict(found) if found else None,
        "review_capacity": review_capacity(after.costs),
        "before": _side(before, scores=scores, costs=after.costs),
        "after": _side(after, scores=scores, costs=after.costs),
        "sequence": None,
    }
    _show(document, show=show)
    given = {"plant": name, "bundle": bundle, "policy": after.digest}
    if is_promoted and route and old != after.digest:
        given |= {"certify": certify} if certify else {}
        promoted = release.promote(fleet, settings=settings, expected=route.sequence, show=show, **given)
        document["sequence"] = promoted["sequence"]
    elif old != after.digest:
        words = " ".join(f"--{key} {value[:12]}" for key, value in given.items())
        show.print(f"to judge by it: crossplant promote {words}", markup=False, soft_wrap=True)
    return document


def measured(plant: Plant, *, file: Path | None, num_parts: int | None, show: Console) -> Prevalence | None:
    """The line's defect rate from a file of checked parts; None without one. Raises InputError for half of the two."""
    if file is None and num_parts is None:
        return None
    if file is None or num_parts is None:
        field, remedy = (
            ("--checked", "Name the checked parts") if file is None else ("--parts", "Say how many were made")
        )
        raise InputError(
            "is missing: a rate needs the checked parts and the number of all parts", field=field, remedy=remedy
        )
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(reason, plant=plant.name, file=str(file), field="--checked") from None
    found = read_checked(data, plant=plant, file=str(file))
    if found.num_returned:
        show.print(f"{found.num_returned} returned parts are left out: customers picked them, not the audit sample")
    if found.lots is None:
        words = "no column `lot`: the rate's interval takes parts as independent, too narrow where defects come in lots"
        show.print(words, soft_wrap=True)
    try:
        return prevalence(found.is_defect, found.sample_prob, num_parts=num_parts, lots=found.lots)
    except InputError as error:
        raise InputError(
            error.detail, plant=plant.name, file=str(file), field=error.field, remedy=error.remedy
        ) from None


def bundle_scores(store: Store, *, plant: Plant, bundle: str) -> PartScores:
    """What the bundle said of the plant's `decide` parts when it was compared. Raises InputError where nothing is."""
    key = verdicts.BUNDLE_SCORES.format(bundle=bundle, plant=plant.name)
    if not store.exists(key):
        remedy = "Run `crossplant compare` and `crossplant publish` again"
        raise InputError("the scores of its bundle were not kept", plant=plant.name, file=store.at(key), remedy=remedy)
    scores = PartScores.from_parquet(store.read(key))
    if (scores.classes, scores.ok) != (plant.annotated, plant.ok):
        remedy = "Run `crossplant train` and `crossplant compare` again"
        raise InputError("its classes are not those of its bundle", plant=plant.name, field="classes", remedy=remedy)
    return scores


def _decided(store: Store, *, plant: str) -> tuple[str, str]:
    decision = verdicts.compared(store)["decisions"].get(plant)
    if decision is None:
        raise InputError("has no decision", plant=plant, remedy="`crossplant compare` says why")
    return decision["bundle"], decision["policy_digest"]


def _side(policy: Policy, *, scores: PartScores, costs: Costs) -> dict[str, Any]:
    """The policy, and what it is worth at the new rate and prices; on the parts it was solved on, so flattered."""
    now = policy.model_copy(update={"costs": costs})
    at_estimate = now.model_copy(
        update={"costs": costs.model_copy(update={"defect_rate": (costs.defect_rate[0],) * 3})}
    )
    return {
        "policy": policy.digest,
        "defect_rate": list(policy.costs.defect_rate),
        "pass_below": policy.pass_below,
        "reject_above": policy.reject_above,
        "cost": expected_cost(scores, now),
        "cost_at_estimate": expected_cost(scores, at_estimate),
        "review_load": review_load(scores, now),
        "note": list(policy.note),
    }


def _show(document: Mapping[str, Any], *, show: Console) -> None:
    name, before, after = document["plant"], document["before"], document["after"]
    table = new_table(f"Policy of plant {name}, bundle {document['bundle'][:12]}", "", "before", "after")
    for words, key, form in (
        ("solved at a defect rate of", "defect_rate", lambda rate: "{:.3%} ({:.3%} to {:.3%})".format(*rate)),
        ("passes below a defect probability of", "pass_below", "{:.4g}".format),
        ("rejects above", "reject_above", "{:.4g}".format),
        ("money a part at the new high end", "cost", _money),
        ("money a part at the new estimate", "cost_at_estimate", _money),
        ("share of parts to review at the high end", "review_load", _share),
    ):
        table.add_row(words, form(before[key]), form(after[key]))
    show.print(table)
    lines = [f"people can review {document['review_capacity']:.2%} of the parts", *after["note"]]
    if after["pass_below"] != before["pass_below"]:
        lines.append(
            "stricter: fewer parts pass" if after["pass_below"] < before["pass_below"] else "laxer: more parts pass"
        )
    if document["prevalence"]:
        rate = ", ".join(f"{value:.3g}" for value in after["defect_rate"])
        lines.append(f"for the next comparison, write costs: {{defect_rate: [{rate}]}} into the fleet's file")
    for line in lines:
        show.print(f"{name}: {line}", markup=False, soft_wrap=True)


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
