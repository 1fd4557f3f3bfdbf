"""What an endpoint does, without HTTP and without Ray: one `Service` per replica, holding handles and calling rules.

A request is checked for its caller and limits, waits in the batcher, is judged, counted, logged and answered. Nothing
here blocks the event loop: tokens and promotions go to an executor, inference to the batcher's thread.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from cluster.access import Action, Grant
from cluster.registry import Journal, Route
from plants.errors import InputError
from plants.images import MAX_BYTES
from serving.answers import Said, answered, timed_out
from serving.auth import Gate, authorise, authorise_fleet, authorise_path, who
from serving.batcher import Batcher, Busy
from serving.board import OwnView, View
from serving.exposition import Condition
from serving.intake import (
    BODY_S,
    PartRequest,
    checked_key,
    declared_length,
    fields_of_query,
    parse,
    part_digest,
    read_body,
)
from serving.limits import Ingress, Ticket
from serving.pictures import Pictures
from serving.predictions import PredictionLog, log_row
from serving.predictor import Judgement, Predictor, Work, judge
from serving.repeats import Repeats
from serving.router import Live, Router, Target
from serving.schemas import Answer, Change, ModelRef, PlantStatus, Refusal, RouteAnswer, unknown_plant
from serving.scoring import held
from serving.sessions import Counts, Session
from serving.standing import standing
from serving.telemetry import Telemetry

MAX_BATCH = 1
"""Parts that go through the trunk together. On a CPU a batch takes as long as its images one after another, and all in
it wait for the last; see README, Decisions. Elsewhere more pay."""
MAX_CHANGE_BYTES = 1 << 16
LATE_S = 0.02
"""A part's own deadline has this long to answer before a retry that waits for it answers in its stead."""
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
    key: str | None = None
    """The Idempotency-Key."""


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
    replica: str = ""
    max_body_bytes: int = MAX_BYTES
    max_batch: int = MAX_BATCH
    max_waiting: int = 64
    body_s: float = BODY_S

    def __post_init__(self) -> None:
        self.ingress = Ingress(capacity=self.max_waiting)
        self.repeats: Repeats[Said] = Repeats()
        self.pictures = Pictures()
        self._changes = ThreadPoolExecutor(max_workers=2, thread_name_prefix="route")
        self.batcher: Batcher[Work, Judgement] = Batcher(judge, max_batch=self.max_batch, max_waiting=self.max_waiting)
        self.own_view = OwnView(self.telemetry, replica=self.replica, condition=self.condition, takt_s=self.takt_s)
        self.view: View = self.own_view
        """What all replicas counted, where there is a board."""
        self.telemetry.start()

    def close(self) -> None:
        """The threads have ended and the log is in the store."""
        self.batcher.close()
        self.pictures.close()
        self._changes.shutdown(wait=False)
        self.router.close()
        self.gate.close()
        self.telemetry.close()
        self.log.close()

    def check(self) -> None:
        """Raises RuntimeError when a thread that requests depend on has ended."""
        if not self.batcher.is_alive:
            raise RuntimeError("the inference thread has ended")

    async def predict(self, plant: str, upload: Upload) -> Answer:
        """The verdict on a part. Raises Refusal, counted."""
        begun = time.perf_counter()
        environment = counted = ""
        try:
            authorise(await self.gate.grant(upload.authorization), plant=plant, action="predict")
            live = self._live(plant)
            counted = plant
            length = declared_length(upload.length, limit=self.max_body_bytes, plant=plant)
            key = checked_key(plant, upload.key)
            with self.ingress.enter(plant, length=length, limits=live.predictor.policy.costs.limits) as ticket:
                part, body = await self._received(plant, upload, ticket=ticket, begun=begun)
                environment = _environment(live.predictor, part, is_needed=body is not None)

                def work() -> Coroutine[Any, Any, Said]:
                    return self._judged(live, part, environment=environment, begun=begun, key=key)

                if key is None or body is None:
                    said = await work()
                else:
                    digest = await _digest(part, body=body)
                    remaining = _remaining(part.deadline_ms, begun=begun)
                    try:
                        async with asyncio.timeout(None if remaining is None else max(0.0, remaining) + LATE_S):
                            said = await self.repeats.once(plant, key, digest=digest, work=work)
                    except TimeoutError:  # it joined a try that has no deadline, or a later one
                        late = replace(part, frames=())
                        said = await self._judged(live, late, environment=environment, begun=begun, key=key)
                return await self.pictures.shown(said, part, within_s=_remaining(part.deadline_ms, begun=begun))
        except Refusal as refusal:
            self.telemetry.refused(counted, environment, status=refusal.status)
            raise

    async def _received(
        self, plant: str, upload: Upload, *, ticket: Ticket, begun: float
    ) -> tuple[PartRequest, bytes | None]:
        """The part and its body, None where a deadline that the address names passed before it was there."""
        asked: dict[str, Any] = fields_of_query(plant, upload.query)
        try:
            async with asyncio.timeout(_remaining(asked.get("deadline_ms"), begun=begun)):
                body = await read_body(
                    upload.chunks,
                    length=upload.length,
                    limit=self.max_body_bytes,
                    plant=plant,
                    timeout_s=self.body_s,
                    hold=ticket.hold,
                )
                if upload.length is None:
                    self.ingress.charge(plant, len(body))
                return await _parsed(plant, body=body, upload=upload), body
        except TimeoutError:
            return PartRequest(plant, (), **asked), None

    async def _judged(self, live: Live, part: PartRequest, *, environment: str, begun: float, key: str | None) -> Said:
        weight = sum(frame.weight for frame in part.frames) * (2 if part.wants_map else 1)
        remaining = _remaining(part.deadline_ms, begun=begun)
        judgement: Judgement | None = None
        try:
            if part.frames and (remaining is None or remaining > 0):
                async with asyncio.timeout(remaining):
                    _open = await _loaded(live.predictor)  # here, so that no batch waits for it; held until the answer
                    judgement = await self.batcher.submit((live.predictor, part), lane=part.plant, weight=weight)
        except TimeoutError:
            pass
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
        self.log.append(functools.partial(log_row, answer, product=part.product, key=key), sequence=sequence)
        self.telemetry.answered(
            part.plant,
            environment,
            verdict=answer.verdict,
            defect=answer.defect,
            confidence=answer.confidence,
            latency_ms=latency_ms,
            frames=len(part.frames),
            novelty=answer.novelty,
            arm=model.arm,
            is_late=judgement is None,
        )
        if judgement is None:
            return Said(answer, None, None)
        return Said(answer, judgement.heat if part.wants_map else None, judgement.map_problem)

    async def status(self, plant: str, *, authorization: str | None) -> PlantStatus:
        """What the plant's endpoint serves. Raises Refusal."""
        await self._may(plant, authorization, "read")
        live = self._live(plant)
        return standing(live, table=self.router.table, problem=self.log.problem)

    async def report(self, plant: str, *, authorization: str | None) -> dict[str, Any]:
        """The plant's counters by environment, over all replicas. Raises Refusal."""
        await self._may(plant, authorization, "read")
        self._live(plant)
        return await _in_thread(lambda: self.view.report(plant))

    async def prometheus(self, *, authorization: str | None) -> bytes:
        """Every plant's counters as Prometheus text. Raises Refusal."""
        authorise_fleet(await self.gate.grant(authorization))
        return await _in_thread(self.view.text)

    async def promote(self, plant: str, body: AsyncIterator[bytes], *, authorization: str | None) -> RouteAnswer:
        """The route is in the journal, after the bundle was loaded here to see that it can be. Raises Refusal."""
        grant = await self._may(plant, authorization, "promote")
        text = await read_body(body, length=None, limit=MAX_CHANGE_BYTES, plant=plant, timeout_s=self.body_s)
        change = _change(plant, text)
        target = Target(change.bundle, change.policy, -1)

        def work() -> Route:
            try:
                self.load(plant, target)
            except InputError as error:
                remedy = error.remedy or "Publish it again"
                raise Refusal(str(error), plant=plant, field="bundle", remedy=remedy) from None
            return self.journal.promote(
                plant, bundle=change.bundle, policy=change.policy, who=who(grant), expected=change.expected
            )

        return await self._changed(plant, work)

    async def rollback(self, plant: str, *, authorization: str | None) -> RouteAnswer:
        """The route before the present one is in the journal again. Raises Refusal."""
        grant = await self._may(plant, authorization, "promote")
        self._live(plant)
        return await self._changed(plant, lambda: self.journal.rollback(plant, who=who(grant)))

    async def nowhere(self, path: str, *, authorization: str | None) -> None:
        """Raises Refusal 401 or 403 for an address below a plant that is not the caller's, as its endpoints would."""
        authorise_path(await self.gate.grant(authorization), path=path)

    def health(self) -> dict[str, Any]:
        """Whether this replica serves; names no plant."""
        table, problems = self.router.table, self.problems()
        return {
            "status": "degraded" if problems or table.failures else "loading" if table.loading else "ok",
            "plants": len(table.live),
            "plants_loading": len(table.loading),
            "plants_with_problems": len(table.failures),
            "problems": problems,
        }

    def problems(self) -> list[str]:
        """What this replica needs and has not; empty where it is well."""
        found = (self.router.table.journal_problem, self.gate.problem, self.log.problem)
        return [problem for problem in found if problem]

    def condition(self) -> Condition:
        """How this replica is, for Prometheus."""
        table, spool = self.router.table, self.log.spool
        return Condition(
            num_waiting=self.batcher.num_waiting,
            problems=tuple(self.problems()),
            route_problems=tuple(sorted(table.failures)),
            spool_segments=spool.num_segments,
            spool_bytes=spool.num_bytes,
            dropped_rows=spool.dropped_rows,
        )

    def takt_s(self) -> dict[str, float]:
        """Plant -> seconds that its line has for a part, where its policy says so."""
        costs = {plant: live.predictor.policy.costs for plant, live in self.router.table.live.items()}
        return {plant: 3600 / one.parts_per_hour for plant, one in costs.items() if one.parts_per_hour}

    async def _may(self, plant: str, authorization: str | None, action: Action) -> Grant:
        grant = await self.gate.grant(authorization)
        authorise(grant, plant=plant, action=action)
        return grant

    async def _changed(self, plant: str, work: Callable[[], Route]) -> RouteAnswer:
        try:
            route = await _in_thread(work, pool=self._changes)
        except InputError as error:
            raise Refusal(
                str(error), status=409, plant=plant, field="route", remedy="Look at the route, then decide again"
            ) from None
        await _in_thread(lambda: self.router.refresh(plant=plant), pool=self._changes)
        return RouteAnswer(
            plant=plant,
            sequence=route.sequence,
            bundle=route.bundle,
            policy=route.policy,
            action=route.action,
            who=route.who,
            problem=self.router.table.problems.get(plant),
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


async def _loaded(predictor: Predictor) -> tuple[Session, ...] | None:
    found = held(predictor.scorer)
    if found is not None:
        return found
    try:
        return await _in_thread(lambda: held(predictor.scorer, load=True))
    except InputError as error:
        what = f"the plant's branch cannot be loaded again: {error.detail}"
        raise Refusal(what, status=503, plant=predictor.plant, field="bundle", retry_after_s=5) from None


async def _in_thread(work: Callable[[], T], *, pool: ThreadPoolExecutor | None = None) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


async def _parsed(plant: str, *, body: bytes, upload: Upload) -> PartRequest:
    def work() -> PartRequest:
        return parse(plant, body=body, content_type=upload.content_type, query=upload.query)

    return work() if len(body) <= INLINE_BYTES else await _in_thread(work)


def _remaining(deadline_ms: float | None, *, begun: float) -> float | None:
    return None if deadline_ms is None else deadline_ms / 1000 - (time.perf_counter() - begun)


async def _digest(part: PartRequest, *, body: bytes) -> str:
    return part_digest(part) if len(body) <= INLINE_BYTES else await _in_thread(lambda: part_digest(part))


def _change(plant: str, text: bytes) -> Change:
    try:
        return Change.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"]) or "body"
        raise Refusal(str(first["msg"]), plant=plant, field=field, remedy="Send bundle and policy by digest") from None


def _environment(predictor: Predictor, part: PartRequest, *, is_needed: bool = True) -> str:
    """The part's environment; "" where it was to be in a body that did not come in time."""
    try:
        return predictor.environment(part.environment)
    except InputError as error:
        if not is_needed and part.environment is None:
            return ""
        raise _unjudged(error, plant=part.plant) from None


def _unjudged(error: InputError, *, plant: str) -> Refusal:
    what = f"file {error.file}: {error.detail}" if error.file else error.detail
    return Refusal(what, plant=plant, field=error.field, remedy=error.remedy)
