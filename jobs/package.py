"""What a decision becomes: a bundle of exported files with proof and card, and a policy, both named by digest."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.torch import save_file

from cluster.registry import Bundles
from jobs import factors
from jobs.evidence import evidence
from jobs.lora import tier
from jobs.model import Aligned, Branch
from jobs.plan import Plan
from jobs.proof import probe
from jobs.scoring import Exports
from jobs.severity import served_at
from plants import bundle, splits
from plants.bundle import Manifest, PlantView, TrunkRef
from plants.costs import Policy
from plants.ensembles import from_json, union
from plants.governance import check_holds, flags, may_hold
from plants.normality import Normalities
from plants.plant import Fleet


def publish_decision(
    name: str, *, document: Mapping[str, Any], plan: Plan, exports: Exports, finished: Mapping[str, str | None]
) -> tuple[str, str]:
    """The chosen model of a plant, with its members, and its policy lie in the store; returns both digests.

    finished: when each run ended; it stands in the manifest, so that the same run gives the same bundle.
    """
    decision = document["decisions"][name]
    store = exports.material.store
    trunk = Bundles(store).publish_trunk(exports.material.trunk_path)
    digests = [
        _publish_run(
            run_id, plant=name, document=document, plan=plan, exports=exports, trunk=trunk, at=finished[run_id]
        )
        for run_id in decision["members"]
    ]
    digest = digests[0]
    if len(digests) > 1:
        digest = _publish_ensemble(
            name, members=digests, document=document, plan=plan, exports=exports, trunk=trunk, finished=finished
        )
    policy = Policy.model_validate({**decision["policy"], "bundle": digest})
    store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
    return digest, policy.digest


def _publish_run(
    run_id: str, *, plant: str, document: Mapping[str, Any], plan: Plan, exports: Exports, trunk: str, at: str | None
) -> str:
    spec = plan.run(run_id)
    words = exports.words(run_id)
    fleet = exports.material.fleet
    serves = spec.serves(plant) if fleet.plant(plant).may_leave else [plant]
    learned_from = plan.learned_from([run_id])
    check_holds([fleet.plant(name) for name in learned_from], serves=serves)
    manifest = Manifest(
        kind=words["kind"],
        run_id=run_id,
        name=f"{fleet.fleet}/{run_id}",
        plants=learned_from,
        leaves=tuple(words["leaves"]),
        trunk=trunk_ref(exports, sha256=trunk),
        cut=words["cut"],
        tier=tier(words, model=exports.material.model),
        branch_inputs="map" if words["cut"] else "features",
        serves=_views(fleet, serves),
        governance=flags(map(fleet.plant, sorted({*learned_from, *serves}))),
        seed=spec.seed,
        recipe=spec.recipe,
        splits_digest=splits_digest(exports),
        data={name: plan.data[name] for name in learned_from if name in plan.data},
        parent=spec.start or ", ".join(spec.sources) or None,
        code_version=code_version(),
        created_at=at or "",
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if spec.kind != "normality":
            _, branch, path = exports.branch(run_id)
            (folder / "branch.onnx").write_bytes(path.read_bytes())
            _write_evidence(folder, branch=branch, path=path, exports=exports)
            if words.get("adapter"):
                adapter = exports.material.store.read(f"runs/{plan.plan_id}/{run_id}/{bundle.ADAPTER}")
                (folder / bundle.ADAPTER).write_bytes(adapter)
            if manifest.tier == "adapter":
                manifest = _on_shared_stages(manifest, folder, branch=branch, words=words, exports=exports)
            save_file({k: v.contiguous() for k, v in branch.state_dict().items()}, folder / "weights.safetensors")
            head = exports.severity(run_id)
            if head and (where := served_at(run_id, document=document, serves=serves)):
                head.serving(where).save(folder / bundle.SEVERITY)
        np.savez(folder / "probe.npz", **probe(run_id, exports=exports))
        figures = dict(document["matrix"].get(run_id, {}))
        known = _normality(manifest.serves, exports=exports)
        _write_words(folder, run_id=run_id, manifest=manifest, figures=figures, document=document, known=known)
        bundle.write(folder, manifest)
        return Bundles(exports.material.store).publish(folder)


def _on_shared_stages(
    manifest: Manifest, folder: Path, *, branch: Branch, words: Mapping[str, Any], exports: Exports
) -> Manifest:
    """The factors are in the folder, and the stages, which a fleet's adapters share, in the store beside its trunk.

    Where a branch cannot be told from its adapter so, it is served merged, as the manifest then says.
    """
    found = factors.split(branch, model=exports.material.model, rank=words["adapter"]["rank"])
    if found is None:
        return manifest
    np.savez(folder / bundle.FACTORS, **found.factors)
    with tempfile.TemporaryDirectory() as scratch:
        stages = Path(scratch) / "stages.onnx"
        stages.write_bytes(found.stages)
        return manifest.model_copy(update={"stages": Bundles(exports.material.store).publish_trunk(stages)})


def _write_evidence(folder: Path, *, branch: Branch, path: Path, exports: Exports) -> None:
    """Where a verdict comes from is in the folder, as far as the files tell; see `jobs.evidence`."""
    weight = branch.head.weight.detach().cpu().numpy()
    if branch.cut == 0 and isinstance(branch.align, Aligned):
        weight = weight * branch.align.scale.detach().cpu().numpy().reshape(1, -1)
    source, features = (path, "features") if branch.cut else (exports.material.trunk_path, "cut0")
    found = evidence(onnx.load(str(source)), features=features, weight=weight)
    if found is not None:
        (folder / bundle.EVIDENCE).write_bytes(found.SerializeToString(deterministic=True))


def _publish_ensemble(
    name: str,
    *,
    members: list[str],
    document: Mapping[str, Any],
    plan: Plan,
    exports: Exports,
    trunk: str,
    finished: Mapping[str, str | None],
) -> str:
    fleet, decision = exports.material.fleet, document["decisions"][name]
    runs = decision["members"]
    mix = from_json(decision, num=len(runs))
    learned_from = plan.learned_from(runs)
    check_holds([fleet.plant(plant) for plant in learned_from], serves=[name])
    manifest = Manifest(
        kind="ensemble",
        run_id=decision["model"],
        name=f"{fleet.fleet}/{decision['model']}",
        plants=learned_from,
        leaves=union([tuple(exports.words(run_id)["leaves"]) for run_id in runs]),
        trunk=trunk_ref(exports, sha256=trunk),
        serves=_views(fleet, [name]),
        governance=flags(map(fleet.plant, sorted({*learned_from, name}))),
        seed=document["seed"],
        splits_digest=splits_digest(exports),
        data={name: plan.data[name] for name in learned_from if name in plan.data},
        members=tuple(members),
        weights=mix.weights,
        rule=mix.rule,
        code_version=code_version(),
        created_at=max(finished[run_id] or "" for run_id in runs),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        figures = document["matrix"][decision["model"]]
        known = _normality(manifest.serves, exports=exports)
        _write_words(
            folder, run_id=decision["model"], manifest=manifest, figures=figures, document=document, known=known
        )
        bundle.write(folder, manifest)
        return Bundles(exports.material.store).publish(folder)


def trunk_ref(exports: Exports, *, sha256: str) -> TrunkRef:
    """The trunk, as manifests name it."""
    model = exports.material.model
    return TrunkRef(
        sha256=sha256,
        backbone=exports.material.trunk.backbone,
        weights_digest=model.weights_digest,
        size_px=exports.material.trunk.size_px,
        interpolation=model.interpolation,
        cuts=model.cuts,
    )


def _views(fleet: Fleet, names: list[str]) -> dict[str, PlantView]:
    return {
        name: PlantView(
            classes=fleet.plant(name).annotated,
            ok=fleet.plant(name).ok,
            leaf_sets=fleet.leaf_sets(fleet.plant(name)),
            environments=fleet.plant(name).environments,
        )
        for name in names
    }


def splits_digest(exports: Exports) -> str:
    """The digest of the record of who plays which role; empty before there is one."""
    assignments = exports.material.catalog.assignments()
    return "" if assignments is None else splits.digest(assignments)


def code_version() -> str:
    """The installed version of crossplant."""
    return importlib.metadata.version("crossplant")


def _normality(serves: Collection[str], *, exports: Exports) -> Normalities:
    """What is normal at these plants, as far as the plan's runs know."""
    fleet = exports.material.fleet
    held = [name for name in serves if may_hold(fleet.plant(name), serves=serves)]
    return Normalities({at: one for name in held for at, one in exports.normality(name).by_place.items()})


def _novelty_words(manifest: Manifest, found: Normalities) -> list[str]:
    """Where the bundle knows good parts, and which environments borrow their plant's."""
    lines = []
    for name, view in manifest.serves.items():
        borrowed = ", ".join(found.borrowed(name, view.environments))
        what = "distance to its good training parts" if view.ok else "distance to everything that is known there"
        few = f"; too few views of their own, judged by the whole plant's: {borrowed}" if borrowed else ""
        lines.append(f"Novelty at {name}: {what}{few}." if found.knows(name) else f"Novelty at {name}: not known.")
    return lines


def _map_words(folder: Path, *, manifest: Manifest) -> list[str]:
    """Whether a verdict comes with the place that it was found at."""
    if manifest.kind in ("ensemble", "normality"):
        return [f"Activation map: {'as far as members have one' if manifest.kind == 'ensemble' else 'none'}."]
    has_map = (folder / bundle.EVIDENCE).exists()
    why = f"none, {manifest.trunk.backbone} computes on what it pooled, so nothing exact can be said"
    return [f"Activation map: {'yes, exact for its linear head' if has_map else why}."]


def _severity_words(document: Mapping[str, Any], *, serves: Collection[str]) -> list[str]:
    """What the severities of the models that were decided for are worth at these plants, where any are labelled."""
    known = {name: document["details"].get(name, {}).get("severity") for name in serves}
    return [f"Severity at {name}: {found['words']}." for name, found in known.items() if found]


def _write_words(
    folder: Path,
    *,
    run_id: str,
    manifest: Manifest,
    figures: Mapping[str, Any],
    document: Mapping[str, Any],
    known: Normalities,
) -> None:
    """report.json and card.md: what it is, what it was judged at, where its limits lie; normality.npz where known."""
    if known.by_place:
        known.save(folder / "normality.npz")
    frozen = {
        name: document["matrix"].get(f"frozen-{name}-s{document['seed']}", {}).get(name) for name in manifest.serves
    }
    report = {"run": run_id, "role": "decide", "plants": figures, "frozen": frozen}
    (folder / "report.json").write_text(json.dumps(report, sort_keys=True), encoding="utf-8")
    lines = [
        f"# {manifest.name}",
        "",
        *(["**The data were generated: these figures say nothing about a real plant.**", ""] * document["synthetic"]),
        f"A model of kind `{manifest.kind}`, learned from {', '.join(manifest.plants)}; "
        f"backbone {manifest.trunk.backbone} at {manifest.trunk.size_px} px, cut {manifest.cut}, seed {manifest.seed}.",
        "",
        "| plant | macro-F1 on decide | frozen baseline | money a part | parts | lots |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(figures.items(), key=lambda item: item[1]["macro_f1"] or 0):
        base = (frozen.get(name) or {}).get("macro_f1")
        cells = [name, _span(row, "macro_f1"), _short(base), _span(row, "cost"), str(row["n"]), str(row["n_lots"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *_novelty_words(manifest, known),
        *_map_words(folder, manifest=manifest),
        *_severity_words(document, serves=manifest.serves),
        "",
        "Intervals are 95 %, by bootstrap over lots. Figures on `decide`, on which models were chosen and thresholds",
        "solved, flatter; the sealed test is in the fleet's reports. It knows only what it was shown: other products,",
        "cameras or light need new labels and a new comparison.",
        "",
    ]
    (folder / "card.md").write_text("\n".join(lines), encoding="utf-8")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _span(row: Mapping[str, Any], key: str) -> str:
    if row[f"{key}_low"] is None:
        return _short(row[key])
    return f"{_short(row[key])} ({_short(row[f'{key}_low'])} to {_short(row[f'{key}_high'])})"
