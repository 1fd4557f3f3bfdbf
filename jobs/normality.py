"""The runs of kind `normality`: what a plant's good parts look like, fitted where their features lie.

One serves the plant's every bundle, and is its first model while there are no labelled defects to learn from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jobs.plan import RunSpec
from jobs.selection import Score
from jobs.train import Fitted
from plants.normality import FEW_DEFECTS, Normalities
from plants.plant import Trunk

if TYPE_CHECKING:
    from jobs.material import Material

FILE = "normality.npz"


def num_blocks(trunk: Trunk) -> int:
    """How many kinds of pooling a trunk's features hold side by side: means and maxima, or one.

    Maxima vary more and would hide the means; without them small defects are lost (README, Decisions).
    """
    return 2 if trunk.options.get("global_pool") == "catavgmax" else 1


def fit_normality(spec: RunSpec, *, material: Material) -> tuple[Fitted, Normalities]:
    """The normality of the run's plant from its good training parts, and the record of the run.

    Of a plant without a good class: from all its training parts, see `Normalities`. A part is good when its own label
    says so: a good tile of a defect part is left out. Raises InputError where there are fewer than two good views.
    """
    (name,) = spec.plants
    data = material.data(name)
    plant, rows = data.plant, data.rows.iloc[: data.num_train]
    ids = np.flatnonzero(rows["truth"].isin(plant.ok or plant.annotated))
    rows = rows.iloc[ids]
    found = Normalities.fit(
        name,
        data.fetch(0, ids=ids, views=np.zeros(len(ids), dtype=np.int64)).numpy() if len(ids) else np.zeros((0, 1)),
        environments=rows["environment"].to_numpy(dtype=object),
        lots=rows["lot"].to_numpy(dtype=object),
        num_blocks=num_blocks(material.trunk),
    )
    num = rows["part_id"].nunique()
    notes = [f"fitted on {len(ids)} views of {num} {'good' if plant.ok else 'known'} parts"]
    if num < FEW_DEFECTS:
        notes.append(f"{num} parts are few: what is usual is hardly known")
    if lacking := found.borrowed(name, plant.environments):
        notes.append(f"too few good views of their own, judged by the whole plant's: {', '.join(lacking)}")
    leaf_sets = material.fleet.leaf_sets(plant)
    leaves = tuple(dict.fromkeys(leaf for good in plant.ok for leaf in leaf_sets[good]))
    none = Score(value=None, nll=None, by_plant={})
    return Fitted(cut=0, leaves=leaves, state={}, score=none, start={}, notes=notes), found
