"""What everything a user writes or a file keeps is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Typed, frozen, and unforgiving about unknown keys and endless numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
