"""What is said of a part: the answer with a judgement, and the one at a deadline."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from plants.errors import InputError
from plants.heatmaps import Heat
from plants.plant import Costs
from serving.intake import PartRequest
from serving.predictor import Judgement
from serving.schemas import Answer, MapPicture, ModelRef


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the map that a picture is made of where one was asked for."""

    answer: Answer
    heat: Heat | None
    problem: str | None
    """Why there is no map."""

    def pictured(self, part: PartRequest) -> Answer:
        """The answer with the picture where the part wants one. Decodes a frame again."""
        if not part.wants_map:
            return self.answer
        heat, problem = self.heat, self.problem or "no verdict was reached"
        if heat is None or heat.frame >= len(part.frames):
            return self.unpictured(problem)
        try:
            png = base64.b64encode(heat.picture(part.frames[heat.frame].data)).decode()
        except InputError as error:
            return self.unpictured(error.detail)
        return self.answer.model_copy(update={"map": MapPicture(frame=heat.frame, png=png, problem=None)})

    def unpictured(self, problem: str) -> Answer:
        """The answer with why there is no picture."""
        frame = None if self.heat is None else self.heat.frame
        return self.answer.model_copy(update={"map": MapPicture(frame=frame, png=None, problem=problem)})


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
        severity=judgement.severity,
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
