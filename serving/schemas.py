"""What goes over the wire: the answer, the status of a plant, and the one shape of every refusal.

Field names are DESIGN.md section 6's. Nothing in here computes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the frame as a person sees it (EXIF orientation applied)."""


class Wire(BaseModel):
    """A message. Frozen, and unknown keys are a mistake of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelRef(Wire):
    """Who judged: bundle and policy by digest, and the arm of the route."""

    bundle: str
    policy: str
    arm: str = "champion"


class Tile(Wire):
    """One view of a frame and how suspicious it is."""

    box: Box
    score: float


class FrameAnswer(Wire):
    """What one frame of the part contributed."""

    image: str
    sha256: str
    tensor_digest: str
    """Digest of the uint8 model input; equal in training's evaluation, a bundle on disk and over HTTP."""
    num_views: int
    probabilities: dict[str, float]
    """As the part's `probabilities`, of this frame alone."""
    score: float
    """Uncalibrated, to rank frames: 1 - probability of good; where no class is good, that of the likeliest class."""
    tiles: list[Tile]
    """The most suspicious views first, five at most."""


class Location(Wire):
    """Where to look in the most suspicious frame."""

    frame: int
    box: Box
    found_by: Literal["map", "tile"]
    """`map`: what speaks most for the defect, or against good where no defect is named. `tile`: the most suspicious
    tile, of a model without a map."""


class MapPicture(Wire):
    """The most suspicious frame with the map of what the verdict was drawn from over it."""

    frame: int | None
    png: str | None
    """PNG in base64, 640 pixels on its longer side at most; what speaks most is yellow, the location has a frame."""
    problem: str | None
    """Why there is no picture."""


class Answer(Wire):
    """The verdict on one part."""

    request_id: str
    plant: str
    environment: str
    part_id: str
    model: ModelRef
    verdict: Literal["ok", "reject", "review"]
    defect: str | None
    confidence: float
    """Calibrated probability of what is said: the sum of the good classes in `probabilities` for ok, that of `defect`
    otherwise. 0 where no defect is named or no verdict was reached in time. Where the model is of kind `normality` it
    says how near the part is to good ones, and is no probability."""
    why: str
    probabilities: dict[str, float]
    """Of the plant's classes, calibrated by the policy's temperature as `confidence` is; with `impossible` they sum
    to 1. Empty where no verdict was reached in time."""
    impossible: float
    """Probability mass on classes that cannot occur at this plant: evidence of something new."""
    novelty: float | None
    """Distance of the part's farthest view to the good parts of its environment: one in twenty good views is farther
    than 1. Null where good parts are not known."""
    disagreement: float | None
    """How far the members of an ensemble disagree: 0, all say the same, to 1, each is sure of something else. Null of a
    single model."""
    location: Location | None
    """Null of parts that pass, and where the model has no map and the frame is in one piece."""
    severity: float | None
    """How grave the defect is, 0 to 1 as the plant's people label it. Null of parts that pass, and at a plant where no
    severity was labelled or the model's is not shown to be nearer to the labels than its class's median."""
    frames: list[FrameAnswer]
    latency_ms: float
    map: MapPicture | None = None
    """Only where `map=true` was asked, of parts that pass too."""


class RouteStatus(Wire):
    """Which decision the plant is judged by, as the journal has it; null where the route is known from disk only."""

    sequence: int
    action: str | None
    who: str | None
    at: str | None


class ModelCost(Wire):
    """What the plant's model takes beside the trunk that all share, as this replica measured it."""

    memory_mb: float
    """Its heads, and the files of its branches or whole models, shared with every plant on the same bundle."""
    is_loaded: bool
    """False where a branch was let go, for want of `branch_mb`: the next request waits until it is loaded."""
    own_ms: float | None
    """Milliseconds a view beyond the trunk; null before the first request."""
    trunk_ms: float | None
    """Milliseconds a view in the trunk, over all plants."""


class PlantStatus(Wire):
    """What a plant's endpoint serves now."""

    plant: str
    sequence: int
    model: ModelRef
    name: str
    kind: str
    classes: list[str]
    ok: list[str]
    environments: list[str]
    tier: Literal["head", "adapter", "branch", "whole"]
    """What the model has of its own: of an ensemble, the dearest of its members'."""
    route: RouteStatus
    cost: ModelCost
    is_loading: bool
    """Whether a newer route is being loaded."""
    problem: str | None
    """Why a newer route is not live, or None."""


class Change(Wire):
    """Body of promote: the bundle and policy that become the route, and the sequence the caller saw last."""

    bundle: str
    policy: str
    expected: int | None = None


class RouteAnswer(Wire):
    """The route that a promote or a rollback wrote."""

    plant: str
    sequence: int
    bundle: str
    policy: str
    action: str
    who: str
    problem: str | None
    """Why this replica cannot serve the route and keeps the one before, or None."""


class RefusalBody(Wire):
    """The JSON of every answer that is no success: what is wrong, where, and what to do."""

    error: str
    plant: str | None
    field: str | None
    """The field, header or part of the address that is wrong."""
    remedy: str | None


class Refusal(Exception):
    """A request that gets no verdict: a status and one line that names plant, field and remedy."""

    def __init__(
        self,
        error: str,
        *,
        status: int = 422,
        plant: str | None = None,
        field: str | None = None,
        remedy: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = " ".join(error.split())
        self.plant = plant
        self.field = field
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of every error of the API."""
        return {"error": self.error, "plant": self.plant, "field": self.field, "remedy": self.remedy}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After where trying again makes sense, WWW-Authenticate where a token is missing.

        408 closes the connection: what would come of the body later belongs to no request.
        """
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 408:
            found["Connection"] = "close"
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found


def another_plant() -> Refusal:
    """The one answer to a plant's token at any plant but its own, whether or not there is such a plant."""
    return Refusal(
        "the token opens another plant than this",
        status=403,
        field="Authorization",
        remedy="Use the plant's name and its own token",
    )


def unknown_plant(plant: str) -> Refusal:
    """The answer for a plant without a route here, to those who may know."""
    return Refusal(
        "no such plant is served at this address",
        status=404,
        plant=plant[:64],
        field="plant",
        remedy="Look at the name; a plant of another group has that group's address, and a new one needs a route first",
    )
