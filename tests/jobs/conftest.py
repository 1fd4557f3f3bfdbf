"""A trained fleet of two plants, made once for all tests that look at finished runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.settings import Settings
from plants.plant import load_fleet
from tests.fleets import Works, small_fleet, trained


@pytest.fixture(scope="session")
def finished_works(tmp_path_factory: pytest.TempPathFactory) -> Works:
    """`arden` and `essen`, every run of the plan done. Not to be changed: `works` is a copy."""
    folder = tmp_path_factory.mktemp("works")
    return trained(small_fleet(folder / "fleet", "arden", "essen", scale=0.1), home=folder / "home")


@pytest.fixture
def works(finished_works: Works, tmp_path: Path) -> Works:
    """The trained fleet with a store and a home of its own; the cache is shared."""
    shutil.copytree(Path(finished_works.fleet.store).parent, tmp_path / "fleet")
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(finished_works.settings.cache)
    fleet = load_fleet(tmp_path / "fleet" / "fleet.yaml")
    return Works(fleet=fleet, settings=Settings(home=home, slots=2), plan=finished_works.plan)
