"""What is said of a part: the answer with a judgement, the one at a deadline, and the log's row of either."""

from __future__ import annotations

from typing import Any

from plants.plant import Costs
from serving.intake import PartRequest
from serving.predictor import Judgement
from serving.schemas import Answer, ModelRef


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
        disagreement=judgement.disagreement,
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
        disagreement=None,
        location=None,
        severity=None,
        frames=[],
        latency_ms=latency_ms,
    )


def log_row(answer: Answer, *, product: str | None, key: str | None = None) -> dict[str, Any]:
    """The answer as a row of the prediction log."""
    return {
        "request_id": answer.request_id,
        "plant": answer.plant,
        "environment": answer.environment,
        "part_id": answer.part_id,
        "product": product,
        "request_key": key,
        "bundle": answer.model.bundle,
        "policy": answer.model.policy,
        "arm": answer.model.arm,
        "verdict": answer.verdict,
        "defect": answer.defect,
        "confidence": answer.confidence,
        "why": answer.why,
        "probabilities": list(answer.probabilities.items()),
        "impossible": answer.impossible,
        "novelty": answer.novelty,
        "disagreement": answer.disagreement,
        "frames": [frame.sha256 for frame in answer.frames],
        "tensor_digests": [frame.tensor_digest for frame in answer.frames],
        "latency_ms": answer.latency_ms,
    }
