from __future__ import annotations

from pathlib import Path

import pytest

from plants.errors import InputError
from serving.app import ServeConfig
from serving.deploy import build

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "k8s" / "base" / "settings" / "fleet.yaml"


def bound(app: object) -> ServeConfig:
    (config,) = app._bound_deployment.init_args  # type: ignore[attr-defined]
    assert isinstance(config, ServeConfig)
    return config


def test_the_app_of_a_fleet_file_reads_that_fleets_store_and_the_settings_of_its_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CROSSPLANT_HOME", str(tmp_path))
    config = bound(build({"fleet": str(FLEET), "plants": ["south"]}))
    assert (config.fleet, config.store_uri, config.plants) == ("mills", "s3://crossplant/mills", ("south",))
    assert config.settings.home == tmp_path


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "field args.fleet"),
        ({"fleet": str(FLEET), "replicas": 2}, "field args.replicas"),
        ({"fleet": str(FLEET), "plants": ["nowhere"]}, "plant nowhere"),
        ({"fleet": "gone.yaml"}, "gone.yaml"),
    ],
)
def test_wrong_arguments_of_the_app_are_named(args: dict[str, object], said: str):
    with pytest.raises(InputError, match=said):
        build(args)
