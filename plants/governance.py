"""What may be done with a plant's images: learned from, taken elsewhere, kept. Pure rules; the rooms above ask them.

`may_train: false`: no run learns from them (`jobs.plan`, `jobs.tune`) and no bundle is written that did
(`jobs.package`). The plant is still judged on its `decide` rows, and may be served what its sisters learned.
`may_leave: false`: they are in no run with another plant, in no parent of another plant's run, and nothing drawn from
them is in a bundle that serves another plant; their packs and thumbnails lie in the plant's own `store`, or only in the
cache of the machine that works, and another plant's import does not look at them.
`retention_days`: no copy of a frame is kept longer after it was taken, or, where `captured_at` is not known, after it
was copied. The plant's own folder of images is not ours to delete from. Where copies with pixels lie:

- packs, in the store and in the cache: `cluster.packs` refuses frames that are too old;
- activations of the frozen trunk, from which pixels can be guessed, in the cache: `jobs.activations`;
- thumbnails by which copies are found, where packs are: `cluster.signatures`;
- contact sheets, on the audit's page under home: `jobs.look`.

Each has a record beside it of its plants and oldest frames; `cluster.retention` deletes what is due whenever a verb of
the fleet runs. Small pictures of failures stand in the report of `compare` of plants that set neither of these two: a
report is passed on and kept. Nothing else holds pixels: probes are drawn, the prediction log and MLflow hold digests,
figures and names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import pandas as pd
from pydantic import Field

from plants.config import Config
from plants.errors import InputError
from plants.plant import Plant


class Governance(Config):
    """A plant's flags as plans and bundles record them, for an auditor."""

    may_train: bool = True
    may_leave: bool = True
    retention_days: int | None = Field(default=None, ge=1)


def flags(plants: Iterable[Plant]) -> dict[str, Governance]:
    """Plant -> its flags now."""
    return {p.name: Governance.model_validate({k: getattr(p, k) for k in Governance.model_fields}) for p in plants}


def words(plants: Iterable[Plant]) -> list[str]:
    """A line for every flag that keeps something from happening."""
    said = []
    for plant in plants:
        if not plant.may_train:
            said.append(f"plant {plant.name}: may_train is false: no run learns from its images")
        if not plant.may_leave:
            said.append(f"plant {plant.name}: may_leave is false: its images are in no run with another plant")
        if plant.retention_days is not None:
            days = plant.retention_days
            said.append(f"plant {plant.name}: retention_days is {days}: no copy of a frame is kept longer")
    return said


def may_hold(plant: Plant, *, serves: Iterable[str]) -> bool:
    """Whether a bundle that serves these plants may hold anything learned or drawn from this plant's images.

    Weights, normality and drift references are such things; figures in a report are not.
    """
    return plant.may_train and (plant.may_leave or set(serves) <= {plant.name})


def not_shown(plant: Plant) -> str:
    """Why pictures of this plant must not stand in a report that people pass on; empty where they may."""
    if not plant.may_leave:
        return "may_leave is false: its images do not leave the plant"
    if plant.retention_days is not None:
        return f"retention_days is {plant.retention_days}: a report may be kept longer"
    return ""


def check_holds(learned_from: Sequence[Plant], *, serves: Iterable[str]) -> None:
    """Raises InputError when a bundle for the plants it serves may not hold what was learned from one of these."""
    served = sorted(serves)
    for plant in learned_from:
        if may_hold(plant, serves=served):
            continue
        field = "may_leave" if plant.may_train else "may_train"
        raise InputError(
            f"a bundle that serves {', '.join(served)} must not hold what was learned from its images",
            plant=plant.name,
            field=field,
            remedy="Run `crossplant train` and `crossplant compare` again",
        )


def kept(plant: Plant, rows: pd.DataFrame, *, now: datetime) -> pd.DataFrame:
    """The label rows whose frames may be stored now: none taken more than `retention_days` ago."""
    if plant.retention_days is None or "captured_at" not in rows:
        return rows
    return rows[~(rows["captured_at"] < now - timedelta(days=plant.retention_days))]


def oldest(rows: pd.DataFrame, *, now: datetime) -> datetime:
    """Since when the oldest of these frames is held: when it was taken, or now, where no frame's time is known."""
    times = rows["captured_at"].dropna() if "captured_at" in rows else rows.index[:0]
    return min(times.min().to_pydatetime(), now) if len(times) else now


def is_due(plant: Plant, *, since: datetime, now: datetime) -> bool:
    """Whether a copy of a frame that is held since then has to go."""
    return plant.retention_days is not None and now - since > timedelta(days=plant.retention_days)
