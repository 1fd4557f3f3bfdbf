"""What the machine decides and the fleet does not: where this process keeps its files, how many slots it may use.

Read once at the edge with `Settings.load()` and handed down from there; nothing below reads the environment again.
Object store credentials are not settings: s3fs reads the usual AWS_* variables itself, and nothing here repeats them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cluster.resources import usable_cpus
from plants.config import Config
from plants.errors import InputError, ManyInputErrors

PREFIX = "CROSSPLANT_"
CACHE_GB = 50.0


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


class Settings(Config):
    """This process's own settings, each overridden by `CROSSPLANT_<NAME>`."""

    home: Annotated[Path, AfterValidator(_absolute)] = Field(default=Path(".crossplant"), validate_default=True)
    """Local folder for caches, SQLite files, tokens and spools. Deleting its `cache` loses nothing."""
    slots: int = Field(default_factory=usable_cpus, ge=1, le=4096)
    """How many single-worker runs go on side by side on this machine."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of one slot."""
    tracking_uri: str = ""
    """MLflow's address; a SQLite file under `home` when empty."""
    journal_url: str = ""
    """SQLAlchemy address of routes and tokens; a SQLite file under `home` when empty."""
    ray_address: str = "local"
    """`local` starts Ray in this process; anything else joins that cluster."""
    start_timeout_s: float = Field(default=60.0, gt=0)
    """How long to wait for Ray and for the resources a verb needs before saying that they are not there."""
    object_store_mb: int = Field(default=512, ge=80)
    """Shared memory of an embedded Ray. Packs and activations are memory-mapped files and do not count."""
    cache_gb: float = Field(default=CACHE_GB, gt=0)
    """What packs and activations in the cache may take on disk: what was not used for longest is evicted first, and
    cuts whose activations would not fit are streamed."""
    spool_mb: float = Field(default=1024.0, gt=0)
    """What a replica's log segments may take on this disk, in 10^6 bytes, while the store is away. Later verdicts are
    not logged then, which /healthz and Prometheus say."""
    budget: int = Field(default=5, ge=1)
    """How often a generation of the sealed test may be opened."""
    token: str = Field(default="", repr=False)
    """Bearer token for `predict`; the one kept under `home` for the plant when empty."""
    token_ttl_days: float = Field(default=90.0, gt=0)

    @model_validator(mode="after")
    def _fill(self) -> Self:
        defaults = {
            "tracking_uri": f"sqlite:///{self.home}/mlflow.db",
            "journal_url": f"sqlite:///{self.home}/routes.db",
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        return self

    @property
    def cache(self) -> Path:
        """Folder of what can be made again."""
        return self.home / "cache"

    @property
    def is_embedded(self) -> bool:
        """Whether Ray runs inside this process."""
        return self.ray_address == "local"

    def __repr__(self) -> str:
        """Names home and slots only: addresses may carry passwords."""
        return f"Settings(home={str(self.home)!r}, slots={self.slots}, ray_address={self.ray_address!r})"

    __str__ = __repr__

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings from `CROSSPLANT_*`. Raises InputError with every fault at once, also for a misspelt name."""
        given = os.environ if env is None else env
        fields = {PREFIX + name.upper(): name for name in cls.model_fields}
        faults = []
        for name in sorted(given):
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.9)
            if name.startswith(PREFIX) and name not in fields and near:
                faults.append(str(InputError("is not a setting", field=name, remedy=f"Did you mean {near[0]}?")))
        try:
            settings = cls.model_validate({field: given[name] for name, field in fields.items() if given.get(name)})
        except ValidationError as error:
            for fault in error.errors():
                field = PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else None
                faults.append(str(InputError(fault["msg"], field=field, remedy="Correct the environment variable")))
            raise ManyInputErrors(faults) from None
        if faults:
            raise ManyInputErrors(faults)
        return settings
