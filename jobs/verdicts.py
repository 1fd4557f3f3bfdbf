"""The verbs compare and evaluate: which model at which plant, and what the sealed test says to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.ledger import RunLedger
from cluster.retention import enforce
from cluster.settings import Settings
from cluster.storage import Store, open_store
from jobs.alarms import is_lost
from jobs.carry_out import latest_plan
from jobs.fleet import COMPARED
from jobs.forked import mapping, warm_up
from jobs.incumbent_section import AGAINST
from jobs.plan import Plan
from jobs.tables import show_matrix, span
from jobs.verbs import new_table, who
from plants.arrival import MARGIN
from plants.errors import InputError
from plants.plant import Fleet
from plants.verdict import amount

if TYPE_CHECKING:
    from jobs.material import Material

EVALUATED = "reports/evaluate.json"
BUNDLE_SCORES = "scores/{bundle}/{plant}.parquet"
"""What a bundle says of the plant's `decide` parts."""


def compared(store: Store) -> dict[str, Any]:
    """The document that `compare` wrote. Raises InputError before the first."""
    try:
        found: dict[str, Any] = store.read_json(COMPARED)
    except FileNotFoundError:
        raise InputError("nothing has been compared", file=store.uri, remedy="Run `crossplant compare` first") from None
    return found


def exports_of(fleet: Fleet, *, settings: Settings, plan: Plan) -> Any:
    """The exported trunk and branches of a plan."""
    from jobs.material import Material
    from jobs.scoring import Exports

    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=plan.deepest, trunk=plan.trunk)
    if not plan.data and material.model.interpolation != "bilinear":
        remedy = "Run `crossplant train`, or set interpolation: bilinear in `trunks`"
        what = (
            f"plan {plan.plan_id} learned from frames resized bilinearly, now they are {material.model.interpolation}"
        )
        raise InputError(what, field="trunks", remedy=remedy)
    return Exports(material, plan=plan)


def compare(
    fleet: Fleet, *, settings: Settings, show: Console, is_robust: bool = True, floor_margin: float = MARGIN
) -> dict[str, Any]:
    """Matrix, decisions with bundles and policies in the store, and the HTML report.

    is_robust: whether the chosen models are judged on corrupted parts too.
    """
    if settings.is_embedded:
        warm_up("jobs.compare")
    from jobs.compare import SCORES, compare_fleet
    from jobs.package import publish_decision
    from jobs.provenance import provenance
    from jobs.transfer import with_seconds

    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    store = open_store(fleet.store)
    plan = latest_plan(store)
    records = RunLedger(store, plan.plan_id).load()
    done = [run.run_id for run in plan.runs if run.run_id in records and records[run.run_id].state == "done"]
    if not done:
        raise InputError("no run has finished", file=f"runs/{plan.plan_id}", remedy="Run `crossplant train` again")
    exports = exports_of(fleet, settings=settings, plan=plan)
    if plan.data and exports.material.catalog.data_digest(list(plan.data)) != plan.data_digest.partition("|")[0]:
        show.print("note: rows to learn from changed since the plan was trained: `crossplant train` learns from them")
    seed = min(run.seed for run in plan.runs)
    with mapping(settings) as map_tasks:
        document = compare_fleet(
            fleet,
            plan=plan,
            exports=exports,
            done=done,
            refused=[run_id for run_id, record in records.items() if record.state == "refused"],
            seed=seed,
            floor_margin=floor_margin,
            say=lambda text: show.print(text, markup=False),
            map_tasks=map_tasks,
            is_robust=is_robust,
        )
    prepared = RunLedger(store, plan.plan_id).preparations()
    document["transfer"] = with_seconds(document["transfer"], plan=plan, records=records, prepared=prepared)
    finished = {run_id: record.finished_at for run_id, record in records.items()}
    for name, decision in document["decisions"].items():
        decision["bundle"], decision["policy_digest"] = publish_decision(
            name, document=document, plan=plan, exports=exports, finished=finished
        )
        scores = store.read(SCORES.format(plant=name))
        store.write(BUNDLE_SCORES.format(bundle=decision["bundle"], plant=name), scores)
    document["data"] = provenance(plan=plan, exports=exports)
    report = write_report(document, material=exports.material, settings=settings)
    document["report"] = str(report)
    store.write_json(COMPARED, document)
    show_matrix(document, show=show)
    show.print(f"report: {report}", markup=False, soft_wrap=True)
    return document


def write_report(document: Mapping[str, Any], *, material: Material, settings: Settings) -> Path:
    """The HTML report stands under home and in the store, with what is known of the sealed test; returns its path."""
    from jobs import report
    from jobs.thumbnails import pictures

    store, fleet = material.store, material.fleet.fleet
    sealed = store.read_json(EVALUATED) if store.exists(EVALUATED) else None
    path = settings.home / "reports" / fleet / "compare.html"
    report.write_report({**document, "sealed": sealed, "pictures": pictures(document, material=material)}, path)
    store.upload(path, "reports/compare.html")
    return path


def evaluate(fleet: Fleet, *, settings: Settings, names: Sequence[str], show: Console) -> dict[str, Any]:
    """The chosen models on the sealed test, and the ledger; plants without a decision are named."""
    from jobs.evaluate import evaluate_fleet

    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    store = open_store(fleet.store)
    document = compared(store)
    kept = dict(store.read_json(EVALUATED)["plants"]) if store.exists(EVALUATED) else {}

    def keep(name: str, row: dict[str, Any]) -> None:
        decision = document["decisions"][name]
        kept[name] = {**row, "bundle": decision["bundle"], "float_bundle": decision.get("float_bundle")}
        store.write_json(EVALUATED, {"fleet": fleet.fleet, "synthetic": fleet.synthetic, "plants": kept})

    plan = Plan.from_json(store.read_json(f"runs/{document['plan']}/plan.json"))
    exports = exports_of(fleet, settings=settings, plan=plan)
    found = evaluate_fleet(
        fleet,
        names=decided_of(names, document=document, show=show),
        document=document,
        exports=exports,
        who=who(),
        now=datetime.now(UTC),
        budget=settings.budget,
        keep=keep,
    )
    store.write_json(EVALUATED, {**found, "plants": kept})
    report = write_report(document, material=exports.material, settings=settings)
    table = new_table(
        "Sealed test, opened once for what was chosen", "plant", "model", "macro-F1", "money a part", "frozen", ""
    )
    for name, row in sorted(found["plants"].items(), key=lambda item: item[1]["macro_f1"] or 0):
        opened = sum(opening["plant"] == name for opening in found["ledger"])
        words = f"opening {opened}" + (f"; {row['standing']}" if row["standing"] else "")
        if row["withdrawn"]:
            words = "WITHDRAWN: worse than the frozen baseline"
        if (promise := row["against_decide"]) and promise["words"] == "worse than promised":
            words += f"; WORSE THAN PROMISED: {amount(promise)} than on decide"
        if (gap := row.get(AGAINST)) and is_lost(gap):
            words += f"; DEARER THAN THE EXISTING INSPECTION: {amount(gap)}"
        if row["contaminated"]:
            words += f"; CONTAMINATED: it has learned from {row['contaminated']} of these images"
        if (row.get("int8") or {}).get("faults"):
            words += f"; INT8 IS NOT PUBLISHED: {row['int8']['faults'][0]}"
        base = span(row.get("frozen") or row, "macro_f1")
        table.add_row(name, row["model"], span(row, "macro_f1"), span(row, "cost"), base, words)
    show.print(table)
    show.print(f"report: {report}", markup=False, soft_wrap=True)
    return found


def decided_of(names: Sequence[str], *, document: Mapping[str, Any], show: Console) -> list[str]:
    """The plants that have a decision; the others are named. Raises InputError when none has one."""
    decided = [name for name in names if name in document["decisions"]]
    missing = ", ".join(name for name in names if name not in document["decisions"])
    if not decided:
        raise InputError("has no decision", plant=missing, remedy="`crossplant compare` says why, or was not run")
    if missing:
        show.print(f"left out, without a decision: {missing}", markup=False)
    return decided
