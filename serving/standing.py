"""What a plant's endpoint serves now, by which decision and at what cost: `GET /plants/{plant}` and the health."""

from __future__ import annotations

from serving.router import Live, Table, Target
from serving.schemas import ModelCost, ModelRef, PlantStatus, RouteStatus
from serving.scoring import Scorer
from serving.sessions import KeptSession


def standing(live: Live, *, table: Table, problem: str | None) -> PlantStatus:
    """The status of the plant whose route is live; `problem` is the replica's own, told where the plant has none."""
    predictor, target = live.predictor, live.target
    plant, view, words = predictor.plant, predictor.view, predictor.scorer.manifest
    return PlantStatus(
        plant=plant,
        sequence=target.sequence,
        model=ModelRef(bundle=target.bundle, policy=target.policy),
        name=words.name,
        kind=words.kind,
        classes=list(view.classes),
        ok=list(view.ok),
        environments=sorted(view.environments),
        tier=predictor.scorer.tier,
        route=route(target),
        cost=cost(predictor.scorer),
        is_loading=plant in table.loading,
        problem=table.problems.get(plant) or table.journal_problem or problem,
    )


def route(target: Target) -> RouteStatus:
    """Who decided it and when, as far as the journal was read."""
    return RouteStatus(
        sequence=target.sequence, action=target.action or None, who=target.who or None, at=target.at or None
    )


def cost(scorer: Scorer) -> ModelCost:
    """What the scorer takes beside its trunk."""
    own_ms, trunk_ms = scorer.meter.ms, scorer.trunk.meter.ms
    return ModelCost(
        memory_mb=round(sum(part.size_mb for part in scorer.parts), 6),
        is_loaded=all(part.is_open for part in scorer.parts if isinstance(part, KeptSession)),
        own_ms=None if own_ms is None else round(own_ms, 4),
        trunk_ms=None if trunk_ms is None else round(trunk_ms, 4),
    )
