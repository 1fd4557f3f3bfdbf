"""The verb `compress`: after `compare`, before `publish`. What is kept makes new bundles that name both variants."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.host import this_host
from cluster.registry import Bundles
from cluster.settings import Settings
from cluster.storage import Store, open_store
from jobs.fleet import COMPARED
from jobs.int8 import Workshop, climb
from jobs.int8_bundles import Attaching
from jobs.int8_gate import Files, Judged, judged_models
from jobs.ladder import FLOAT, Tried, kept, sentence
from jobs.plan import Plan
from jobs.verbs import new_table
from jobs.verdicts import BUNDLE_SCORES, compared, exports_of
from plants.bundle import parse
from plants.costs import Policy
from plants.plant import Fleet
from plants.variants import PlantGate

COMPRESSED = "reports/compress.json"


def compress(fleet: Fleet, *, settings: Settings, show: Console) -> dict[str, Any]:
    """INT8 of what was decided for, beside float where it holds, else float alone; the decisions name what was kept.

    Without a decision nothing can be judged: raises InputError.
    """
    store = open_store(fleet.store)
    document = compared(store)
    plan = Plan.from_json(store.read_json(f"runs/{document['plan']}/plan.json"))
    exports = exports_of(fleet, settings=settings, plan=plan)
    for decision in document["decisions"].values():
        decision |= {"bundle": _float_of(decision, "bundle"), "policy_digest": _float_of(decision, "policy_digest")}
    serves = _Serves(store)
    judged = judged_models(document, serves=serves)
    scratch = settings.cache / "int8"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        of_runs = _of_runs(judged, serves=serves)
        workshop = Workshop(exports, judged, of_runs, Path(folder))
        tried, files = climb(workshop, say=lambda text: show.print(text, markup=False, soft_wrap=True))
        found = kept(tried)
        if found is not None and files is not None:
            _attach(document, kept=found, files=files, judged=judged, store=store, cache=settings.cache / "bundles")
        variants = _variants(workshop, tried=tried, files=files)
    store.write_json(COMPARED, document)
    result = {
        "fleet": fleet.fleet,
        "synthetic": fleet.synthetic,
        "plan": document["plan"],
        "host": this_host().model_dump(mode="json"),
        "variants": variants,
        "kept": found.rung.name if found else FLOAT,
        "why": sentence(tried),
        "plants": {where: one.model_dump(mode="json") for where, one in (found or tried[-1]).gates.items()}
        if tried
        else {},
        "bundles": {name: decision["bundle"] for name, decision in document["decisions"].items()},
    }
    store.write_json(COMPRESSED, result)
    _show(result, show=show)
    return result


def _float_of(decision: Mapping[str, Any], key: str) -> str:
    """The bundle or policy as `compare` published it, also where an earlier `compress` put another in its place."""
    return str(decision.get(f"float_{key}", decision[key]))


class _Serves:
    """The plants that a published bundle serves, by its digest."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, digest: str) -> Sequence[str]:
        path = f"bundles/{digest}/manifest.json"
        return tuple(parse(self._store.read(path), source=path).serves)


def _of_runs(judged: Sequence[Judged], *, serves: _Serves) -> dict[str, Sequence[str]]:
    """Run -> the plants that any bundle with it serves."""
    found: dict[str, set[str]] = {}
    for one in judged:
        for run in one.decision["members"]:
            found.setdefault(run, set()).update(serves(one.decision["bundle"]))
    return {run: sorted(names) for run, names in found.items()}


def _attach(
    document: dict[str, Any], *, kept: Tried, files: Files, judged: Sequence[Judged], store: Store, cache: Path
) -> None:
    """Every decision's bundle has both variants, its policy names that bundle, and the document both."""
    bundles = Bundles(store)
    attaching = Attaching(
        bundles, cache, files, bundles.publish_trunk(files.trunk), kept.rung.name, _by_model(kept.gates, judged=judged)
    )
    for name, decision in document["decisions"].items():
        before, policy_before = decision["bundle"], decision["policy_digest"]
        digest = attaching(before)
        policy = Policy.model_validate({**decision["policy"], "bundle": digest})
        store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
        scores = store.read(BUNDLE_SCORES.format(bundle=before, plant=name))
        store.write(BUNDLE_SCORES.format(bundle=digest, plant=name), scores)
        decision |= {"float_bundle": before, "float_policy_digest": policy_before}
        decision |= {"bundle": digest, "policy_digest": policy.digest}


def _by_model(gates: Mapping[str, PlantGate], *, judged: Sequence[Judged]) -> dict[str, dict[str, PlantGate]]:
    found: dict[str, dict[str, PlantGate]] = {}
    for one in judged:
        gate = gates.get(f"{one.plant}: {one.model}") or gates.get(one.plant)
        if gate is not None:
            found.setdefault(one.model, {})[one.plant] = gate
    return found


def _variants(workshop: Workshop, *, tried: Sequence[Tried], files: Files | None) -> list[dict[str, Any]]:
    found = kept(tried)
    in_float = [gate.macro_f1.float32 for gate in (tried[-1].gates if tried else {}).values()]
    rows = [
        {
            "name": FLOAT,
            "bytes": workshop.size(),
            "ms_per_image": round(tried[-1].speed.float_ms, 4) if tried else None,
            "macro_f1": min((value for value in in_float if value is not None), default=None),
            "kept": True,
            "why": "the reference",
        }
    ]
    for one in tried:
        rows.append(
            {
                "name": one.rung.name,
                "bytes": workshop.size(files) if one is tried[-1] else None,
                "ms_per_image": round(one.speed.int8_ms, 4),
                "speedup": round(one.speed.ratio, 3),
                "macro_f1": one.worst_macro_f1,
                "kept": one is found,
                "why": "; ".join(one.faults) or "every plant holds its gate and it is faster here",
            }
        )
    return rows


def _show(result: Mapping[str, Any], *, show: Console) -> None:
    table = new_table("Variants: trunk and branches", "variant", "MB", "ms an image", "worst macro-F1", "kept", "why")
    for row in result["variants"]:
        size, f1 = row["bytes"], row["macro_f1"]
        table.add_row(
            row["name"],
            "" if size is None else f"{size / 1e6:.2f}",
            "" if row["ms_per_image"] is None else f"{row['ms_per_image']:.2f}",
            "" if f1 is None else f"{100 * f1:.1f}",
            "yes" if row["kept"] else "",
            row["why"],
        )
    show.print(table)
    gates = new_table("INT8 against float on decide", "plant", "parts", "macro-F1", "money a part", "flips", "verdicts")
    for where, gate in result["plants"].items():
        f1, cost = gate["macro_f1"], gate["cost"]
        gates.add_row(
            where,
            str(gate["n"]),
            _pair(f1, by=100, digits=1),
            _pair(cost, by=1, digits=0),
            str(gate["flips"]),
            str(gate["verdict_flips"]),
        )
    if result["plants"]:
        show.print(gates)
    show.print(result["why"], markup=False, soft_wrap=True)
    if result["synthetic"]:
        show.print("These data are synthetic: the figures say nothing about a real plant.", style="bold")


def _pair(pair: Mapping[str, float | None], *, by: float, digits: int) -> str:
    said = ["-" if pair[key] is None else f"{by * pair[key]:.{digits}f}" for key in ("float32", "int8")]
    return " -> ".join(said)
