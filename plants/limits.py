"""How much of a replica one plant may take, so that no line can stop another's.

Part of a plant's prices in `fleet.yaml` (`costs.limits`) and so of its policy: `crossplant policy --promote` changes
them on every replica within two seconds, and the journal says who did it.
"""

from __future__ import annotations

from pydantic import Field

from plants.config import Config


class Limits(Config):
    """Bounds of one plant at one replica. The defaults are far above what one line makes."""

    requests_per_s: float = Field(default=500.0, gt=0)
    """Sustained; beyond it the answer is 429 with the seconds to wait."""
    burst: float = Field(default=1000.0, ge=1)
    """Requests that may come at once after a pause."""
    mb_per_s: float = Field(default=100.0, gt=0)
    """Bodies, in 2**20 bytes a second, sustained; two seconds' worth may come at once."""
    in_flight: int = Field(default=32, ge=1)
    """Requests being read, waiting or judged at the same time; beyond it the answer is 503."""
