"""From verdicts to routes: the verbs publish, promote, rollback and status."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from cluster.ledger import RunLedger
from cluster.registry import Bundles, Journal, Route
from cluster.settings import Settings
from cluster.storage import Store, open_store
from jobs.carry_out import latest_plan
from jobs.fleet import COMPARED
from jobs.verbs import new_table, who
from jobs.verdicts import EVALUATED, compared, decided_of
from plants.bundle import read as read_bundle
from plants.confirmation import is_of
from plants.costs import Policy
from plants.errors import CheckFailed, InputError
from plants.plant import Fleet

Certify = Callable[[str, str, str], None]
"""Stages (plant, bundle, policy) on this host; raises CheckFailed where no route may be live by them."""


def _uncertified(plant: str, bundle: str, policy: str) -> None:
    """For callers that write routes for nobody: no certificate is asked for."""


def publish(
    fleet: Fleet, *, settings: Settings, names: Sequence[str], show: Console, certify: Certify = _uncertified
) -> dict[str, Any]:
    """Plants without a champion get the chosen bundle as their route; others get it as the challenger.

    certify: see `Certify`; a plant that it refuses is named under `uncertified` and keeps what it has.
    """
    store = open_store(fleet.store)
    document = compared(store)
    evaluated = store.read_json(EVALUATED)["plants"] if store.exists(EVALUATED) else {}
    journal = Journal(settings.journal_url)
    rows: list[dict[str, Any]] = []
    withdrawn: list[str] = []
    contaminated: list[str] = []
    uncertified: list[str] = []
    for name in decided_of(names, document=document, show=show):
        decision, sealed = document["decisions"][name], evaluated.get(name, {})
        sealed = sealed if is_of(sealed, decision) else {}
        if sealed.get("withdrawn"):
            withdrawn.append(name)
            now = journal.route(name)
            live = "; it is live: see `crossplant rollback`" if now and is_of(sealed, {"bundle": now.bundle}) else ""
            show.print(f"plant {name}: not published: the sealed test withdrew the decision{live}", markup=False)
            continue
        if sealed.get("contaminated"):
            contaminated.append(name)
            learned = f"the model has learned from {sealed['contaminated']} of the sealed test's images"
            show.print(
                f"plant {name}: published unproven: {learned}. Import new lots with --new-generation", markup=False
            )
        if (sealed.get("int8") or {}).get("faults"):
            decision = {**decision, **{key: decision[f"float_{key}"] for key in ("bundle", "policy_digest")}}
            show.print(f"plant {name}: INT8 does not hold on the sealed test: published in float", markup=False)
        try:
            certify(name, decision["bundle"], decision["policy_digest"])
        except CheckFailed as error:
            uncertified.append(name)
            show.print(f"plant {name}: not published: {error}", markup=False, soft_wrap=True)
            continue
        route = _published(name, decision=decision, journal=journal)
        _mirror(route, fleet=fleet, settings=settings, show=show)
        rows.append(route.model_dump(include={"plant", "sequence", "bundle", "policy", "challenger"}))
    _show_routes(rows, show=show)
    first = rows[0] if len(rows) == 1 else {}
    refused = {"withdrawn": withdrawn, "contaminated": contaminated, "uncertified": uncertified}
    return {**first, "plants": rows, **refused}


def _published(name: str, *, decision: Mapping[str, Any], journal: Journal) -> Route:
    """A new route, or the decision as challenger of the one there is; unchanged where it is live already."""
    now = journal.route(name)
    bundle, policy = decision["bundle"], decision["policy_digest"]
    if now is None:
        return journal.promote(name, bundle=bundle, policy=policy, who=who(), expected=0, action="publish")
    if (now.bundle, now.policy) == (bundle, policy) or now.challenger == bundle:
        return now
    return journal.challenge(name, challenger=bundle, shares={}, who=who())


def promote(
    fleet: Fleet,
    *,
    settings: Settings,
    plant: str,
    bundle: str,
    policy: str | None,
    show: Console,
    expected: int | None = None,
    certify: Certify = _uncertified,
) -> dict[str, Any]:
    """The plant's new route; another policy of the same bundle leaves a challenger where it is.

    expected: the sequence of the route that this was decided on. Raises RouteTaken when it is another by now.
    certify: see `Certify`; what it raises is raised before the journal is touched.
    """
    fleet.plant(plant)
    store = open_store(fleet.store)
    digest = _whole(store, "bundles", bundle, field="bundle")
    chosen = (
        _whole(store, "policies", policy, field="policy") if policy else _policy_of(store, plant=plant, bundle=digest)
    )
    manifest, _ = read_bundle(Bundles(store).fetch(digest, settings.cache / "bundles"))
    if plant not in manifest.serves:
        raise InputError("the bundle does not serve it", plant=plant, remedy=f"It serves {', '.join(manifest.serves)}")
    solved = Policy.from_json(store.read(f"policies/{chosen}.json"), file=f"policies/{chosen}.json")
    if (solved.plant, solved.bundle) != (plant, digest):
        of = f"plant {solved.plant}, bundle {solved.bundle[:12]}"
        raise InputError(f"the policy was solved for {of}", plant=plant, field="policy", remedy="Name another")
    if _is_withdrawn(store, plant=plant, bundle=digest):
        show.print(f"alarm: plant {plant}: the sealed test withdrew the decision for this bundle", markup=False)
    certify(plant, digest, chosen)
    journal = Journal(settings.journal_url)
    now = journal.route(plant)
    beside = {"challenger": now.challenger, "shares": now.shares} if now and now.bundle == digest else {}
    route = journal.promote(plant, bundle=digest, policy=chosen, who=who(), expected=expected, **beside)
    _mirror(route, fleet=fleet, settings=settings, show=show)
    return _shown(route, show=show)


def rollback(fleet: Fleet, *, settings: Settings, plant: str, show: Console) -> dict[str, Any]:
    """The plant's route, one step back."""
    fleet.plant(plant)
    route = Journal(settings.journal_url).rollback(plant, who=who())
    _mirror(route, fleet=fleet, settings=settings, show=show)
    return _shown(route, show=show)


def status(fleet: Fleet, *, settings: Settings, show: Console) -> dict[str, Any]:
    """Runs of the latest plan, routes of all plants, and what needs somebody's eye."""
    store = open_store(fleet.store)
    runs: list[dict[str, Any]] = []
    if store.exists("runs/latest.json"):
        plan = latest_plan(store)
        records = RunLedger(store, plan.plan_id).load()
        for run in plan.runs:
            record = records.get(run.run_id)
            runs.append(
                {
                    "name": run.run_id,
                    "state": record.state if record else "waiting",
                    "error": record.error if record else None,
                }
            )
    names = {plant.name for plant in fleet.plants}
    routes = [r.model_dump(mode="json") for r in Journal(settings.journal_url).current().values() if r.plant in names]
    alarms = [f"run {run['name']} failed: {run['error']}" for run in runs if run["state"] == "failed"]
    alarms += [f"plant {name} has no route" for name in sorted(names - {route["plant"] for route in routes})]
    alarms += [
        f"plant {route['plant']}: the sealed test withdrew the decision for its {place}, {route[place][:12]}"
        for route in routes
        for place in ("bundle", "challenger")
        if route[place] and _is_withdrawn(store, plant=route["plant"], bundle=route[place])
    ]
    counts = {
        state: sum(run["state"] == state for run in runs)
        for state in ("done", "running", "waiting", "refused", "failed")
    }
    show.print("runs: " + ", ".join(f"{n} {state}" for state, n in counts.items()), markup=False)
    _show_routes(routes, show=show)
    for alarm in alarms:
        show.print(f"alarm: {alarm}", markup=False, soft_wrap=True)
    return {"runs": runs, "routes": routes, "alarms": alarms}


def _is_withdrawn(store: Store, *, plant: str, bundle: str) -> bool:
    """Whether the sealed test's last word on this plant was about this bundle, and against it."""
    row = store.read_json(EVALUATED)["plants"].get(plant, {}) if store.exists(EVALUATED) else {}
    return bool(row.get("withdrawn")) and is_of(row, {"bundle": bundle})


def _policy_of(store: Store, *, plant: str, bundle: str) -> str:
    """The policy that the last comparison solved for a bundle at a plant, or the only one in the store."""
    decision = store.read_json(COMPARED)["decisions"].get(plant, {}) if store.exists(COMPARED) else {}
    if decision.get("bundle") == bundle:
        return str(decision["policy_digest"])
    found = []
    for entry in store.list("policies"):
        solved = Policy.from_json(store.read(entry.key), file=entry.key)
        if (solved.plant, solved.bundle) == (plant, bundle):
            found.append(entry.key.removeprefix("policies/").removesuffix(".json"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} policies were" if found else "no policy was"
    known = f": {', '.join(digest[:12] for digest in found)}" if found else ""
    raise InputError(f"{what} solved for this bundle", plant=plant, remedy=f"Name one with --policy DIGEST{known}")


def _whole(store: Store, prefix: str, start: str, *, field: str) -> str:
    """The one digest that begins so."""
    names = {entry.key.split("/")[1].removesuffix(".json") for entry in store.list(prefix)}
    found = sorted(name for name in names if name.startswith(start))
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        known = ", ".join(name[:12] for name in found or sorted(names)[:10])
        raise InputError(
            f"{what} published {field} begins with {start!r}",
            field=field,
            remedy=f"Known: {known}" if known else "Publish one first: crossplant publish",
        )
    return found[0]


def _mirror(route: Route, *, fleet: Fleet, settings: Settings, show: Console) -> None:
    from cluster.tracking import mirror, prepare_tracking

    try:
        prepare_tracking(settings)
    except Exception as error:
        show.print(f"MLflow cannot be reached ({type(error).__name__}); the route stands", markup=False)
        return
    said = mirror(settings.tracking_uri, fleet=fleet.fleet, route=route, source=f"{fleet.store}/bundles")
    if said:
        show.print(said, markup=False, soft_wrap=True)


def _shown(route: Route, *, show: Console) -> dict[str, Any]:
    row = {"plant": route.plant, "sequence": route.sequence, "bundle": route.bundle, "policy": route.policy}
    _show_routes([row], show=show)
    return row


def _show_routes(rows: Sequence[Mapping[str, Any]], *, show: Console) -> None:
    table = new_table("Routes", "plant", "sequence", "bundle", "policy", "challenger")
    for row in rows:
        challenger = row.get("challenger")
        table.add_row(
            row["plant"],
            str(row["sequence"]),
            row["bundle"][:12],
            row["policy"][:12],
            challenger[:12] if challenger else "",
        )
    show.print(table)
