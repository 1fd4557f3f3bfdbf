"""The app as a cluster's Serve imports it: the `import_path` of `k8s/base/serving`. Use `serving.app.run` on a desk.

How many replicas, what each may use and where HTTP listens is said by the cluster's configuration, not here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cluster.settings import Settings
from plants.config import Config
from plants.errors import InputError
from plants.plant import load_fleet
from serving.app import Replica, ServeConfig
from serving.sessions import BRANCH_MB
from serving.verbs import chosen_plants
from serving.wiring import Tiers


class DeployArgs(Config):
    """What the configuration may say under `args`."""

    fleet: Path
    """The fleet's file, as the pod sees it."""
    plants: tuple[str, ...] = ()
    """The plants served by this deployment; all that have a route when empty."""
    group: str | None = None
    """Only the plants whose `group` in the fleet's file this is: they share no process with others."""
    branch_mb: float = Field(default=BRANCH_MB, ge=0)
    """Memory of a replica for branches and whole models."""
    pinned: tuple[str, ...] = ()
    """Plants whose branches always stay loaded."""
    merge_adapters: bool = False
    """Adapters are served as branches of their own, see `serving.wiring.Tiers`."""


def build(args: dict[str, Any]) -> Any:
    """The app of one fleet, bound and ready to deploy.

    Raises InputError for arguments, settings or a fleet file that are wrong, and for a plant that the fleet lacks.
    """
    from ray import serve

    try:
        given = DeployArgs.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(("args", *map(str, first["loc"])))
        raise InputError(str(first["msg"]), field=field, remedy="See args in k8s/base/serving/serving.yaml") from None
    fleet = load_fleet(given.fleet)
    plants = tuple(fleet.plant(name).name for name in given.plants)
    if given.group is not None:
        plants = tuple(chosen_plants(fleet, plants=plants, group=given.group))
    declared = tuple(plant.name for plant in fleet.plants)
    pinned = tuple(fleet.plant(name).name for name in given.pinned)
    tiers = Tiers(branch_mb=given.branch_mb, pinned=pinned, merge_adapters=given.merge_adapters)
    config = ServeConfig(Settings.load(os.environ), fleet.store, fleet.fleet, plants, declared, tiers=tiers)
    return serve.deployment(serve.ingress()(Replica), name="plants").bind(config)
