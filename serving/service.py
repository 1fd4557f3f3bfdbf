"""What an endpoint does, without HTTP and without Ray: one `Service` per replica, holding handles and calling rules.

A request is checked for its caller and limits, waits in the batcher, is judged, counted, logged and answered. Nothing
here blocks the event loop: tokens and promotions go to an executor, inference to the batcher's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.access import Action, Grant
from cluster.registry import Journal, Route
from plants.errors import InputError
from plants.images import MAX_BYTES
from plants.plant import Costs
from serving.auth import Gate, authorise, authorise_fleet, who
from serving.batcher import Batcher, Busy
from serving.intake import PartRequest, parse, read_body
from serving.predictions import PredictionLog
from serving.predictor import Judgement, Predictor, Work, judge
from serving.router import Live, Router, Target
from serving.schemas import Answer, Change, ModelRef, PlantStatus, Refusal, RouteAnswer, unknown_plant
from serving.scoring import held
from serving.sessions import Counts, Session
from serving.standing import standing
from serving.telemetry import Snapshot, Telemetry, merge, plant_report, prometheus_text

INLINE_BYTES = 1 << 18
"""Bodies up to this size are parsed on the event loop; it takes well under a millisecond."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """One request to judge a part, as far as HTTP is concerned."""

    chunks: AsyncIterator[bytes]
    length: str | None
    content_type: str | None
    query: Mapping[str, str]
    authorization: str | None


@dataclass
class Service:
    """All a replica holds."""

    gate: Gate
    router: Router
    journal: Journal
    log: PredictionLog
    load: Callable[[str, Target], Predictor]
    branches: Callable[[], Counts]
    """What branches take, and how often one had to be loaded."""
    telemetry: Telemetry = field(default_factory=Telemetry)
    others: Callable[[], Sequence[Snapshot]] = tuple
    """Snapshots of the other replicas."""
    max_body_bytes: int = MAX_BYTES
    max_batch: int = 16
    max_waiting: int = 64

    def __post_init__(self) -> None:
        self.batcher: Batcher[Work, Judgement] = Batcher(judge, max_batch=self.max_batch, max_waiting=self.max_waiting)

    def close(self) -> None:
        """The threads have ended and the log is in the store."""
        self.batcher.close()
        self.router.close()
        self.gate.close()
        self.log.close()

    def check(self) -> None:
        """Raises RuntimeError when a thread that requests depend on has ended."""
        if not self.batcher.is_alive:
            raise RuntimeError("the inference thread has ended")

    async def predict(self, plant: str, upload: Upload) -> Answer:
        """The verdict on a part. Raises Refusal, counted."""
        begun = time.perf_counter()
        environment = ""
        try:
            authorise(await self.gate.grant(upload.authorization), plant=plant, action="predict")
            live = self._live(plant)
            body = await read_body(upload.chunks, length=upload.length, limit=self.max_body_bytes, plant=plant)
            part = await _parsed(plant, body=body, upload=upload)
            environment = _environment(live.predictor, part)
            return await self._judged(live, part, environment=environment, begun=begun)
        except Refusal as refusal:
            known = plant in self.router.table.live and refusal.status not in (401, 404)
            self.telemetry.refused(plant if known else "", environment, status=refusal.status)
            raise

    async def _judged(self, live: Live, part: PartRequest, *, environment: str, begun: float) -> Answer:
        remaining = None if part.deadline_ms is None else part.deadline_ms / 1000 - (time.perf_counter() - begun)
        try:
            async with asyncio.timeout(remaining):
                _open = await _loaded(live.predictor)  # here, so that no batch waits for it; held until the answer
                judgement: Judgement | None = await self.batcher.submit((live.predictor, part))
        except TimeoutError:
            judgement = None
        except Busy:
            raise Refusal(
                "too many requests wait", status=503, plant=part.plant, remedy="Try again", retry_after_s=1
            ) from None
        except InputError as error:
            raise _unjudged(error, plant=part.plant) from None
        request_id, sequence = self.log.next_id()
        latency_ms = round((time.perf_counter() - begun) * 1000, 3)
        model = ModelRef(bundle=live.target.bundle, policy=live.target.policy)
        if judgement is None:
            costs = live.predictor.policy.costs
            answer = timed_out(
                part, environment=environment, costs=costs, request_id=request_id, model=model, latency_ms=latency_ms
            )
        else:
            answer = answered(part, judgement, request_id=request_id, model=model, latency_ms=latency_ms)
        self.log.append(log_row(answer, product=part.product), sequence=sequence)
        self.telemetry.answered(
            part.plant,
            environment,
            verdict=answer.verdict,
            defect=answer.defect,
            confidence=answer.confidence,
            latency_ms=latency_ms,
            frames=len(part.frames),
        )
        return answer

    async def status(self, plant: str, *, authorization: str | None) -> PlantStatus:
        """What the plant's endpoint serves. Raises Refusal."""
        await self._may(plant, authorization, "read")
        live = self._live(plant)
        return standing(live, table=self.router.table, problem=self.log.problem)

    async def report(self, plant: str, *, authorization: str | None) -> dict[str, Any]:
        """The plant's counters by environment, over all replicas. Raises Refusal."""
        await self._may(plant, authorization, "read")
        self._live(plant)
        return plant_report(plant, await _in_thread(self._merged))

    async def prometheus(self, *, authorization: str | None) -> bytes:
        """Every plant's counters as Prometheus text. Raises Refusal."""
        authorise_fleet(await self.gate.grant(authorization))
        snapshot = await _in_thread(self._merged)
        return prometheus_text(snapshot, num_waiting=self.batcher.num_waiting, problems=self.router.table.problems)

    async def promote(self, plant: str, change: Change, *, authorization: str | None) -> RouteAnswer:
        """The route is in the journal, after the bundle was loaded here to see that it can be. Raises Refusal."""
        grant = await self._may(plant, authorization, "promote")
        target = Target(change.bundle, change.policy, -1)

        def work() -> Route:
            try:
                self.load(plant, target)
            except InputError as error:
                raise Refusal(str(error), plant=plant, field="bundle", remedy="Publish it again") from None
            return self.journal.promote(
                plant, bundle=change.bundle, policy=change.policy, who=who(grant), expected=change.expected
            )

        return await self._changed(plant, work)

    async def rollback(self, plant: str, *, authorization: str | None) -> RouteAnswer:
        """The route before the present one is in the journal again. Raises Refusal."""
        grant = await self._may(plant, authorization, "promote")
        self._live(plant)
        return await self._changed(plant, lambda: self.journal.rollback(plant, who=who(grant)))

    def health(self) -> dict[str, Any]:
        """Whether this replica serves; names no plant."""
        table = self.router.table
        problems = [problem for problem in (table.journal_problem, self.gate.problem, self.log.problem) if problem]
        return {
            "status": "degraded" if problems or table.failures else "loading" if table.loading else "ok",
            "plants": len(table.live),
            "plants_loading": len(table.loading),
            "plants_with_problems": len(table.failures),
            "problems": problems,
        }

    async def _may(self, plant: str, authorization: str | None, action: Action) -> Grant:
        grant = await self.gate.grant(authorization)
        authorise(grant, plant=plant, action=action)
        return grant

    async def _changed(self, plant: str, work: Callable[[], Route]) -> RouteAnswer:
        try:
            route = await _in_thread(work)
        except InputError as error:
            raise Refusal(
                str(error), status=409, plant=plant, field="route", remedy="Look at the route, then decide again"
            ) from None
        await _in_thread(lambda: self.router.refresh(plant=plant))
        return RouteAnswer(
            plant=plant,
            sequence=route.sequence,
            bundle=route.bundle,
            policy=route.policy,
            action=route.action,
            who=route.who,
        )

    def _live(self, plant: str) -> Live:
        table = self.router.table
        if plant in table.live:
            return table.live[plant]
        if plant in table.loading:
            raise Refusal(
                "the plant's model is being loaded", status=503, plant=plant, remedy="Try again", retry_after_s=1
            )
        if plant in table.failures:
            raise Refusal(
                "the plant's route cannot be loaded, and there is no earlier one",
                status=503,
                plant=plant,
                field="bundle",
                remedy="Promote another bundle",
                retry_after_s=10,
            )
        raise unknown_plant(plant)

    def _merged(self) -> Snapshot:
        return merge([self.telemetry.snapshot(), *self.others()])


async def _loaded(predictor: Predictor) -> tuple[Session, ...] | None:
    found = held(predictor.scorer)
    if found is not None:
        return found
    try:
        return await _in_thread(lambda: held(predictor.scorer, load=True))
    except InputError as error:
        what = f"the plant's branch cannot be loaded again: {error.detail}"
        raise Refusal(what, status=503, plant=predictor.plant, field="bundle", retry_after_s=5) from None


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def _parsed(plant: str, *, body: bytes, upload: Upload) -> PartRequest:
    def work() -> PartRequest:
        return parse(plant, body=body, content_type=upload.content_type, query=upload.query)

    return work() if len(body) <= INLINE_BYTES else await _in_thread(work)


def _environment(predictor: Predictor, part: PartRequest) -> str:
    try:
        return predictor.environment(part.environment)
    except InputError as error:
        raise _unjudged(error, plant=part.plant) from None


def _unjudged(error: InputError, *, plant: str) -> Refusal:
    what = f"file {error.file}: {error.detail}" if error.file else error.detail
    return Refusal(what, plant=plant, field=error.field, remedy=error.remedy)


def answered(part: PartRequest, judgement: Judgement, *, request_id: str, model: ModelRef, latency_ms: float) -> Answer:
    """The answer that carries this judgement."""
    decision = judgement.decision
    return Answer(
        request_id=request_id,
        plant=part.plant,
        environment=judgement.environment,
        part_id=part.part_id or request_id,
        model=model,
        verdict=decision.verdict,
        defect=decision.defect,
        confidence=round(float(decision.confidence), 6),
        why=decision.why,
        probabilities=judgement.probabilities,
        impossible=judgement.impossible,
        novelty=judgement.novelty,
        location=judgement.location,
        severity=None,
        frames=list(judgement.frames),
        latency_ms=latency_ms,
    )


def timed_out(
    part: PartRequest, *, environment: str, costs: Costs, request_id: str, model: ModelRef, latency_ms: float
) -> Answer:
    """The answer at the deadline: the plant's `on_timeout`, never a pass."""
    return Answer(
        request_id=request_id,
        plant=part.plant,
        environment=environment,
        part_id=part.part_id or request_id,
        model=model,
        verdict="reject" if costs.on_timeout == "reject" else "review",
        defect=None,
        confidence=0.0,
        why=f"no verdict within {part.deadline_ms:g} ms",
        probabilities={},
        impossible=0.0,
        novelty=None,
        location=None,
        severity=None,
        frames=[],
        latency_ms=latency_ms,
    )


def log_row(answer: Answer, *, product: str | None) -> dict[str, Any]:
    """The answer as a row of the prediction log."""
    kept = answer.model_dump(
        include={"request_id", "plant", "environment", "part_id", "verdict", "defect", "confidence", "why"}
        | {"impossible", "novelty", "latency_ms"}
    )
    return kept | {
        "product": product,
        "bundle": answer.model.bundle,
        "policy": answer.model.policy,
        "arm": answer.model.arm,
        "probabilities": list(answer.probabilities.items()),
        "frames": [frame.sha256 for frame in answer.frames],
        "tensor_digests": [frame.tensor_digest for frame in answer.frames],
    }
