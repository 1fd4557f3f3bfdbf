"""Of what data, splits and code a comparison was made, for an auditor who will ask in a year."""

from __future__ import annotations

from typing import Any

from jobs.package import code_version, splits_digest
from jobs.plan import Plan
from jobs.scoring import Exports
from plants.governance import flags
from plants.plant import Plant


def provenance(*, plan: Plan, exports: Exports) -> dict[str, Any]:
    """Versions and digests, and for every plant how its lots were dealt to roles. The sealed answers are not read."""
    fleet, material = exports.material.fleet, exports.material
    return {
        "code_version": code_version(),
        "trunk": material.trunk.name,
        "weights_digest": material.model.weights_digest,
        "data_digest": plan.data_digest,
        "splits_digest": splits_digest(exports),
        "plants": {plant.name: _dealt(plant, plan=plan, exports=exports) for plant in fleet.plants},
    }


def _dealt(plant: Plant, *, plan: Plan, exports: Exports) -> dict[str, Any]:
    rows = exports.material.rows(plant.name)
    num_lots = rows["lot"].nunique()
    roles = {}
    for role, group in rows.groupby("role"):
        lots = int(group["lot"].nunique())
        parts = int(group["part_id"].nunique())
        roles[str(role)] = {"frames": len(group), "parts": parts, "lots": lots, "share": round(lots / num_lots, 6)}
    shares = plant.shares or exports.material.fleet.shares
    said = flags([plant])[plant.name].model_dump(mode="json")
    return {
        "snapshot": plan.data.get(plant.name),
        "roles": roles,
        "declared": shares.model_dump(mode="json", exclude={"order"}),
        "order": shares.order,
        "lots_are_known": bool(rows["lot_known"].all()) if len(rows) else False,
        "governance": ", ".join(f"{key}: {value}" for key, value in said.items()),
    }
