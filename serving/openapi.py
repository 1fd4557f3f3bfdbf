"""What the API says of itself at `/openapi.json`, beside what FastAPI reads off the types: bodies, refusals, tokens.

Bodies are read by `serving.intake` after the caller was checked, so FastAPI never sees them; they are described here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from plants.names import NAME_PATTERN
from serving.intake import MAX_FIELD_CHARS, MAX_FRAMES
from serving.schemas import Change, RefusalBody

_WHY = {
    400: "The address carries a token, or is broken off",
    401: "No token, or one that is unknown, expired or revoked",
    403: "The token's role may not, or it opens another plant; the same whether or not there is such a plant",
    404: "The plant has no route here; told to tokens that may know",
    408: "The body did not come in time",
    409: "The route was changed by somebody else, or there is none to go back to",
    413: "The body is too large",
    415: "The body is text",
    422: "A field, or a frame that cannot be judged",
    429: "More than the plant's requests or bytes a second; see Retry-After",
    500: "A fault of ours",
    503: "Too much waits or the plant's model cannot be loaded; see Retry-After",
}
_REFUSAL = {"application/json": {"schema": {"$ref": "#/components/schemas/RefusalBody"}}}
_SECONDS = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}}
_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}}

DEADLINE_DESCRIPTION = "Milliseconds from here to the answer, which then is the plant's `on_timeout`, never a pass"
_TEXT = {"type": "string", "maxLength": MAX_FIELD_CHARS}
_FIELDS: dict[str, dict[str, Any]] = {
    "part_id": {"schema": _TEXT, "description": "Names the part in answer and log", "example": "A-17"},
    "product": {"schema": _TEXT, "description": "What is made, for the log", "example": "plate"},
    "environment": {"schema": _TEXT, "description": "Where the frames were taken; needed where there are several"},
    "deadline_ms": {
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 600_000},
        "description": DEADLINE_DESCRIPTION,
        "example": 250,
    },
    "map": {
        "schema": {"type": "string", "enum": ["true", "false"]},
        "description": "Whether the answer is to hold a picture of where the verdict comes from, `map`",
    },
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_FIELD_CHARS, "pattern": "^[ -~]+$"},
    "description": "Random, one a part: sent again within a minute the part is judged, counted and logged once",
}
_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MAX_FRAMES},
        **{name: {**about["schema"], "description": about["description"]} for name, about in _FIELDS.items()},
    },
}
PREDICT_BODY = {
    "parameters": [*({"name": name, "in": "query", **about} for name, about in _FIELDS.items()), _KEY],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{
                kind: {"schema": _FILE} for kind in ("image/jpeg", "image/png", "image/tiff", "image/bmp", "image/webp")
            },
            "application/octet-stream": {"schema": _FILE},
        },
    },
}
"""Of `predict`: one raw image with the fields in the address, or a form of several frames."""
PROMOTE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Change"}}},
    }
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that may refuse so; every one with a token may with 400, 401, 403, 500 and 503."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({400, 401, 403, 500, 503, *statuses}):
        about: dict[str, Any] = {"description": _WHY[status], "content": _REFUSAL}
        if status in (429, 503):
            about["headers"] = _SECONDS
        if status == 401:
            about["headers"] = _CHALLENGE
        found[status] = about
    return found


def describe(api: FastAPI) -> None:
    """`/openapi.json` is complete: every body, status, refusal, and the bearer token."""

    def written() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _complete(get_openapi(title=api.title, version=api.version, routes=api.routes))
        return api.openapi_schema

    api.openapi = written  # type: ignore[method-assign]


def _complete(found: dict[str, Any]) -> dict[str, Any]:
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (RefusalBody, Change):
        schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"bearer": []}]
    for path, methods in found["paths"].items():
        for about in methods.values():
            if "ValidationError" in str(
                about["responses"].get("422")
            ):  # FastAPI's own words; it validates nothing here
                del about["responses"]["422"]
            if path == "/healthz":
                about["security"] = []
                about["responses"]["400"] = {"description": _WHY[400], "content": _REFUSAL}
            for parameter in about.get("parameters", ()):
                if parameter["name"] == "plant":
                    parameter["schema"] = {"type": "string", "pattern": NAME_PATTERN, "example": "tilery"}
    return found
