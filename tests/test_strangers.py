"""A plant that cannot have scratches is sent fifty of them: they are stopped, and none passes with confidence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.catalog import Catalog
from jobs.scoring import Exports
from tests.fleets import Works, small_fleet, trained
from tests.strangers import Sent, decided, frames_of, judged_by, scratched

pytestmark = pytest.mark.slow
REAL_DATA = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data"))
KINDS = ("own", "pooled", "normality")


@dataclass(frozen=True)
class Ready:
    """A fleet that is trained and compared."""

    works: Works
    exports: Exports
    document: dict[str, Any]

    @classmethod
    def of(cls, path: Path, *, home: Path) -> Ready:
        works = trained(path, home=home, kinds=KINDS)
        exports = works.exports()
        done = [run.run_id for run in works.plan.runs if run.kind in KINDS]
        return cls(works, exports, decided(exports, plan=works.plan, done=done))

    def judged(self, run_id: str | None, plant: str, images: list[bytes]) -> Sent:
        how = {"exports": self.exports, "plan": self.works.plan, "document": self.document}
        return judged_by(run_id, plant, images, settings=self.works.settings, **how)


def stopped(found: Sent) -> None:
    said = found.document()
    assert found.stopped.of == 50
    assert found.stopped.hits >= 45, said
    assert found.num_sure == 0, said


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """`arden`, whose covers are scratched, and `essen`, whose glaze cannot be."""
    folder = tmp_path_factory.mktemp("embedded")
    shares = {"train": 0.4, "select": 0.1, "decide": 0.4, "test": 0.1}  # so that 20 good parts say what is novel
    return Ready.of(small_fleet(folder / "fleet", "arden", "essen", scale=0.4, shares=shares), home=folder / "home")


@pytest.mark.parametrize("model", [None, "pooled-s0"])
def test_another_plants_scratches_are_stopped_by_what_was_decided_and_by_the_pooled_model(embedded: Ready, model):
    stopped(embedded.judged(model, "essen", scratched("arden", 50)[0]))


@pytest.mark.real
def test_fifty_real_scratches_are_stopped_at_a_real_plant_that_has_none(tmp_path: Path):
    if not (REAL_DATA / "steel").is_dir():
        pytest.skip(f"the real plants are not under {REAL_DATA}: set CROSSPLANT_REAL_DATA")
    from tests.benchmarks.bench_real import fleet

    ready = Ready.of(fleet(tmp_path, backbone="embedded", data=REAL_DATA.resolve(), weights=tmp_path), home=tmp_path)
    mills = (("neu", "scratches"), ("xsdd", "surface_scratch"))
    images = [
        image
        for name, scratch in mills
        for image in frames_of(ready.works.fleet.plant(name), Catalog.of(ready.works.fleet).rows(name), name=scratch)
    ]
    for model in (None, "pooled-s0"):
        stopped(ready.judged(model, "magnetic", images[:25] + images[-25:]))
