"""The app as a cluster's Serve imports it: the `import_path` of `k8s/base/serving`. Use `serving.app.run` on a desk.

How many replicas, what each may use and where HTTP listens is said by the cluster's configuration, not here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.settings import Settings
from plants.config import Config
from plants.errors import InputError
from plants.plant import load_fleet
from serving.app import Replica, ServeConfig


class DeployArgs(Config):
    """What the configuration may say under `args`."""

    fleet: Path
    """The fleet's file, as the pod sees it."""
    plants: tuple[str, ...] = ()
    """The plants served by this group; all that have a route when empty."""


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
    config = ServeConfig(Settings.load(os.environ), fleet.store, fleet.fleet, plants)
    return serve.deployment(serve.ingress()(Replica), name="plants").bind(config)
