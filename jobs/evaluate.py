"""The only opener of the sealed test: evaluates what `compare` chose, once, and writes who looked and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from cluster.catalog import Catalog
from cluster.lock import locked
from cluster.registry import Bundles
from cluster.storage import Store
from jobs.candidates import cell, figures_of
from jobs.incumbent import incumbent_at
from jobs.int8_gate import Judged, QuantisedExports, gate, published_files
from jobs.scoring import Exports, role_inputs
from jobs.severity import judged
from jobs.verdicts import EVALUATED
from plants import seal, splits
from plants.confirmation import against_promise, standing
from plants.costs import Policy
from plants.differences import paired
from plants.ensembles import from_json
from plants.errors import InputError
from plants.metrics import report
from plants.plant import Fleet
from plants.scores import PartScores
from plants.variants import faults

LEDGER = "ledger.jsonl"
HEAD = "sealed-head.json"
"""In the fleet's store, the digest of the last opening: a ledger that lost its end is found out."""


def openings(sealed: Store) -> list[seal.Opening]:
    """Every opening so far, oldest first, from the store that holds the answers."""
    return seal.read_ledger(sealed.read(LEDGER).decode()) if sealed.exists(LEDGER) else []


def open_test(
    name: str, *, catalog: Catalog, who: str, bundles: Sequence[str], now: datetime, budget: int
) -> pd.DataFrame:
    """The plant's test rows with their answers, after the ledger has counted the opening.

    Those of its latest generation, and of later ones in which others dealt lots that it has too.
    Raises SealError when the generation's budget is spent; nothing is read then.
    """
    with locked(catalog.seal, "ledger") as claim:
        rows, generation = closed_test(name, catalog=catalog, budget=budget)
        before = openings(catalog.seal)
        record = seal.opened(plant=name, generation=generation, who=who, bundles=bundles, at=now, after=before)
        claim.check()
        catalog.seal.write(LEDGER, "".join(opening.line for opening in [*before, record]).encode())
        catalog.store.write_json(HEAD, {"last": record.digest})
    return splits.unseal(rows, catalog.sealed(name))


def closed_test(name: str, *, catalog: Catalog, budget: int) -> tuple[pd.DataFrame, int]:
    """The plant's rows of its latest generation, answers blank, and its number; its test may be opened once more.

    Raises InputError without test rows, and SealError when the generation's budget is spent.
    """
    catalog.check_seal()
    rows = catalog.rows(name)
    generation = splits.generation_of(catalog.checked_record(), plant=name)
    rows = rows[rows["generation"] >= generation]
    if not (rows["role"] == "test").any():
        raise InputError("has no test rows", plant=name, remedy="Import more lots")
    before = openings(catalog.seal)
    seal.check_whole(before, last=_last_counted(catalog.store))
    seal.check_budget(before, plant=name, generation=generation, budget=budget)
    return rows, generation


def _last_counted(store: Store) -> str | None:
    """The digest of the last opening as the fleet's store knows it; one that no ledger holds where that is gone."""
    if store.exists(HEAD):
        return str(store.read_json(HEAD)["last"])
    return seal.START if store.exists(EVALUATED) else None


def evaluate_fleet(
    fleet: Fleet,
    *,
    names: Sequence[str],
    document: Mapping[str, Any],
    exports: Exports,
    who: str,
    now: datetime,
    budget: int,
    keep: Callable[[str, dict[str, Any]], None] = lambda name, row: None,
) -> dict[str, Any]:
    """The chosen models on the sealed test, beside the frozen baselines and the existing inspection; and the ledger.

    A chosen model that is significantly worse than the frozen baseline withdraws its decision. No test is opened before
    all can be, and before all chosen models have been judged once more on `decide`, so that none is spent on what fails
    to load; keep: takes each plant's row as soon as there is one.
    """
    catalog = exports.material.catalog
    plants: dict[str, Any] = {}
    for name in names:
        if name not in document["decisions"]:
            raise InputError("has no decision", plant=name, remedy="Run `crossplant compare` first")
        _, generation = closed_test(name, catalog=catalog, budget=budget)
        kept = exports.material.rows(name)
        if not ((kept["role"] == "test") & (kept["generation"] >= generation)).any():
            raise InputError("no test row may be judged: all are too old", plant=name, field="retention_days")
        _rehearse(name, document=document, exports=exports)
    for name in names:
        decision = document["decisions"][name]
        rows = open_test(name, catalog=catalog, who=who, bundles=[decision["bundle"]], now=now, budget=budget)
        plants[name] = _evaluate(name, rows=rows, decision=decision, document=document, exports=exports)
        plants[name]["opening"] = sum(opening.plant == name for opening in openings(catalog.seal))
        keep(name, plants[name])
    ledger = [opening.model_dump(mode="json") for opening in openings(catalog.seal)]
    return {"fleet": fleet.fleet, "synthetic": fleet.synthetic, "plants": plants, "ledger": ledger}


def _rehearse(name: str, *, document: Mapping[str, Any], exports: Exports) -> None:
    """All that will be done with the sealed test is done with `decide`. Raises InputError where it cannot be."""
    decision, rows = document["decisions"][name], exports.material.rows(name)
    try:
        _evaluate(name, rows=rows, decision=decision, document=document, exports=exports, role="decide")
    except (InputError, KeyError, FileNotFoundError) as error:
        cause = error.detail if isinstance(error, InputError) else f"{type(error).__name__} {error}"
        what = f"what was decided cannot be judged as the fleet is now, so that no test was opened: {cause}"
        remedy = "Run `crossplant train` and `crossplant compare` again"
        raise InputError(what, plant=name, remedy=remedy) from error


def _evaluate(
    name: str,
    *,
    rows: pd.DataFrame,
    decision: Mapping[str, Any],
    document: Mapping[str, Any],
    exports: Exports,
    role: str = "test",
) -> dict[str, Any]:
    fleet = exports.material.fleet
    plant = fleet.plant(name)
    inputs = role_inputs(name, role=role, exports=exports, rows=rows)
    if inputs is None:
        raise InputError(f"no {role} row has an annotated class", plant=name)
    leaf_sets = fleet.leaf_sets(plant)
    policy = Policy.model_validate(decision["policy"])
    said = [inputs.probabilities(run) for run in decision["members"]]
    scores = inputs.scores(said, leaf_sets=leaf_sets, mix=from_json(decision, num=len(said)))
    figures = figures_of(scores, kind=decision["kind"], policy=policy, plant=plant, fleet=fleet)
    row = {**cell(figures=figures), "model": decision["model"], "details": figures}
    row["contaminated"] = contaminated(rows, name=name, members=decision["members"], exports=exports)
    if decision.get("float_bundle", decision["bundle"]) != decision["bundle"]:
        given = {"decision": decision, "policy": policy, "exports": exports, "role": role}
        row["int8"] = _int8(name, rows=rows, in_float=scores, **given)
    frozen = f"frozen-{name}-s{document['seed']}"
    if frozen in document["matrix"] and decision["members"] != [frozen]:
        base_policy = Policy.model_validate(decision["frozen_policy"])
        base = inputs.scores([inputs.probabilities(frozen)], leaf_sets=leaf_sets)
        row["frozen"] = cell(figures=report(base, policy=base_policy))
        gain = paired(scores, base, policy_a=policy, policy_b=base_policy)
        row["gain"] = gain if gain["metric"] == "cost" or decision["kind"] != "normality" else None
    there, beside = incumbent_at(plant, fleet=fleet, inputs=inputs, scores=scores, policy=policy, seed=document["seed"])
    row |= beside | {name: its | beside[name] for name, its in there.items()}
    if (document["details"].get(name, {}).get("severity") or {}).get("is_shown"):
        mix = from_json(decision, num=len(said))
        named = {"members": decision["members"], "mix": mix, "exports": exports, "seed": document["seed"]}
        row["severity"] = judged([inputs], **named)
    row["standing"] = standing(row.get("gain"))
    row["withdrawn"] = row["standing"] == "contradicted"
    row["against_decide"] = against_promise(row, document["matrix"][decision["model"]][name])
    return row


def _int8(
    name: str,
    *,
    rows: pd.DataFrame,
    in_float: PartScores,
    decision: Mapping[str, Any],
    policy: Policy,
    exports: Exports,
    role: str,
) -> dict[str, Any]:
    """What the INT8 files that were published say of the same parts, and why they may not serve, if so."""
    bundles, cache = Bundles(exports.material.store), exports.material.cache
    exports = QuantisedExports(exports, files=published_files(decision["bundle"], bundles=bundles, cache=cache))
    inputs = role_inputs(name, role=role, exports=exports, rows=rows)
    assert inputs is not None, "float has seen them"
    plant = exports.material.fleet.plant(name)
    in_int8 = Judged(name, decision["model"], decision).scores(inputs, fleet=exports.material.fleet)
    found = gate(in_float, in_int8, policy=policy, plant=plant, is_named=decision["kind"] != "normality")
    return {**found.model_dump(mode="json"), "faults": faults(found)}


def contaminated(rows: pd.DataFrame, *, name: str, members: Sequence[str], exports: Exports) -> int:
    """How many of these test rows of a plant show an image, a part or a lot that the model has learned from.

    By the snapshots of the plan, so also what plays another role by now; images and lots at whatever plant.
    """
    catalog = exports.material.catalog
    images: set[str] = set()
    lots: set[str] = set()
    is_own = pd.Series(False, index=rows.index)
    for plant in exports.plan.learned_from(members):
        now = catalog.rows(plant)
        learned = pd.concat([catalog.learned(plant, digest=digest) for digest in exports.plan.snapshots(plant)])
        now = now[now["frame"].isin(learned["frame"])]
        images.update(learned["sha256"])
        lots.update(lot for table in (learned, now) for lot in table.loc[table["lot_known"].astype(bool), "lot"])
        if plant == name:
            is_own |= rows["frame"].isin(learned["frame"]) | rows["part_id"].isin(learned["part_id"])
    is_shared = rows["lot"].isin(lots) & rows["lot_known"].astype(bool)
    return int((rows["sha256"].isin(images) | is_shared | is_own).sum())
