"""Parts whose defect cannot occur at the plant that they are sent to: what becomes of them, through a real endpoint.

What knows them: a model that learned the defect elsewhere puts mass on a class the plant cannot have, and the distance
to the plant's good parts knows no names at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from cluster.access import Access
from cluster.registry import Journal
from jobs.candidates import candidate_of
from jobs.compare import compare_fleet
from jobs.package import publish_decision
from jobs.plan import Plan
from jobs.scoring import Exports, role_inputs
from plants import surfaces as draw
from plants.factories import FACTORIES, Kind
from plants.rendering import encode
from plants.stats import Rate
from plants.synthetic import GRAIN_PX, Part, draw_frame
from serving.app import build_app
from serving.wiring import open_service

FINISHED = "2026-03-01T00:00:00+00:00"
SURE = 0.9


@dataclass(frozen=True)
class Sent:
    """What became of parts that a plant cannot have."""

    verdicts: Mapping[str, int]
    why: Mapping[str, int]
    passed_at: tuple[float, ...] = field(default=())
    """The confidence of each that passed, the highest first."""

    @property
    def stopped(self) -> Rate:
        """Rejected or reviewed."""
        total = sum(self.verdicts.values())
        return Rate(total - self.verdicts.get("ok", 0), total)

    @property
    def num_sure(self) -> int:
        """Passed, and said to be good with a confidence above 0.9."""
        return sum(confidence > SURE for confidence in self.passed_at)

    def document(self) -> dict[str, Any]:
        """The figures, with Wilson's interval."""
        interval = self.stopped.interval()
        return {
            "sent": self.stopped.of,
            **dict(self.verdicts),
            "stopped": self.stopped.value,
            "stopped_low": interval.low if interval else None,
            "stopped_high": interval.high if interval else None,
            "passed_above_0.9": self.num_sure,
            "most_confident_pass": max(self.passed_at, default=None),
            "why": dict(self.why),
        }


def sent(http: TestClient, plant: str, images: Iterable[bytes], *, token: str, environments: Sequence[str]) -> Sent:
    """Every image to the plant's endpoint, its environments in turn."""
    answers = []
    for at, image in enumerate(images):
        headers = {"Authorization": f"Bearer {token}"}
        query = {"environment": environments[at % len(environments)], "part_id": str(at)}
        response = http.post(f"/plants/{plant}/predict", params=query, content=image, headers=headers)
        assert response.status_code == 200, response.text
        answers.append(response.json())
    passed = sorted((one["confidence"] for one in answers if one["verdict"] == "ok"), reverse=True)
    return Sent(
        Counter(one["verdict"] for one in answers), Counter(one["why"] for one in answers), passed_at=tuple(passed)
    )


def decided(exports: Exports, *, plan: Plan, done: Sequence[str]) -> dict[str, Any]:
    """What `compare` finds, without its report."""
    return compare_fleet(exports.material.fleet, plan=plan, exports=exports, done=done, seed=0, is_robust=False)


def judged_by(
    run_id: str | None,
    plant: str,
    images: Sequence[bytes],
    *,
    exports: Exports,
    plan: Plan,
    document: Mapping[str, Any],
    settings: Any,
) -> Sent:
    """The images through the endpoint of a plant that is served by a run with the policy solved for it.

    run_id: what `compare` has decided when None.
    """
    fleet, store = exports.material.fleet, exports.material.store
    if run_id is not None:
        inputs = role_inputs(plant, role="decide", exports=exports)
        assert inputs is not None
        one = candidate_of(
            run_id, plan.run(run_id).kind, (run_id,), plant=fleet.plant(plant), inputs=inputs, exports=exports
        )
        said = {"model": run_id, "members": [run_id], "weights": None, "rule": None}
        decision = {**document["decisions"][plant], **said, "policy": one.policy.model_dump(mode="json")}
        document = {**document, "decisions": {plant: decision}}
    finished = {run.run_id: FINISHED for run in plan.runs}
    bundle, policy = publish_decision(plant, document=document, plan=plan, exports=exports, finished=finished)
    Journal(settings.journal_url).promote(plant, bundle=bundle, policy=policy, who="test")
    token = Access(settings.journal_url).issue("plant", plant=plant, ttl=timedelta(hours=1))
    service = open_service(settings, store_uri=store.uri, fleet=fleet.fleet, plants=[plant], replica="r1")
    with TestClient(build_app(service)) as http:
        return sent(http, plant, images, token=token, environments=list(fleet.plant(plant).environments))


def scratched(name: str, num: int, *, seed: int = 1) -> tuple[list[bytes], list[float]]:
    """New frames of a plant of the embedded fleet, each with a scratch, and how severe each is.

    At `essen` too, whose glaze cannot be scratched.
    """
    number = next(n for n, factory in enumerate(FACTORIES) if factory.name == name)
    factory = replace(FACTORIES[number], kinds={"scratch": Kind("scratch", "scratch")}, absent={})
    rng = np.random.default_rng((seed, number, 99))
    stations, products = list(factory.stations), list(factory.products)
    shape = tuple(max(one.shape[axis] for one in factory.stations.values()) for axis in (0, 1))
    grain = draw.continued(rng.standard_normal((GRAIN_PX, GRAIN_PX), dtype=np.float32), shape=shape)
    images, severities = [], []
    for index in range(num):
        part = Part(
            index=index,
            label="scratch",
            lot="",
            product=products[index % len(products)],
            station=stations[index % len(stations)],
            captured_at=datetime(2024, 3, 4),
            severity=float(rng.uniform(0, 1)),
            annotator="",
            incumbent="",
            shown_in=(True,),
        )
        blank = draw.PRODUCTS[factory.material](rng, size=factory.period_px, strength=factory.products[part.product])
        pixels, _ = draw_frame(factory, part, rng=rng, blank=blank, grain=grain, shown=True)
        images.append(encode(pixels, suffix=factory.suffix))
        severities.append(float(part.severity or 0.0))
    return images, severities


def frames_of(plant: Any, rows: Any, *, name: str, roles: Sequence[str] = ("decide", "select")) -> list[bytes]:
    """Frames of a class in these roles, whose labels are no secret and from which no weight was learned."""
    chosen = rows[(rows["class"] == name) & rows["role"].isin(roles)]
    return [(Path(plant.images) / frame).read_bytes() for frame in chosen["frame"]]
