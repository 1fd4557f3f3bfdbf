from __future__ import annotations

import pytest

from cluster.settings import Settings
from plants.errors import InputError


def test_settings_come_from_the_environment_and_the_rest_has_defaults(tmp_path):
    settings = Settings.load({"CROSSPLANT_HOME": str(tmp_path), "CROSSPLANT_SLOTS": "3", "HOME": "/x"})
    assert settings.slots == 3
    assert settings.journal_url == f"sqlite:///{tmp_path}/routes.db"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.is_embedded
    assert settings.cache == tmp_path / "cache"


def test_a_relative_home_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}).home == tmp_path / ".crossplant"


def test_settings_that_are_given_are_not_replaced_by_defaults():
    settings = Settings.load({"CROSSPLANT_JOURNAL_URL": "postgresql+psycopg://u:secret@db/x"})
    assert settings.journal_url == "postgresql+psycopg://u:secret@db/x"


def test_every_fault_is_reported_at_once_also_a_misspelt_name():
    env = {"CROSSPLANT_SLTS": "3", "CROSSPLANT_THREADS": "many", "CROSSPLANT_BUDGET": "0"}
    with pytest.raises(InputError) as caught:
        Settings.load(env)
    assert len(caught.value.faults) == 3
    assert "Did you mean CROSSPLANT_SLOTS?" in caught.value.faults[0]
    assert "CROSSPLANT_THREADS" in str(caught.value)
    assert "CROSSPLANT_BUDGET" in str(caught.value)


def test_a_misspelt_name_alone_is_refused():
    with pytest.raises(InputError, match="CROSSPLANT_THREADS"):
        Settings.load({"CROSSPLANT_THREAD": "3"})


def test_variables_of_tests_and_other_rooms_are_let_be():
    others = {"CROSSPLANT_REAL_DATA": "/data", "CROSSPLANT_WEIGHTS": "/w", "CROSSPLANT_KUBERAY_CRDS": "/k"}
    assert Settings.load(others) == Settings.load({})


def test_a_password_in_an_address_is_not_printed():
    settings = Settings(journal_url="postgresql://u:secret@db/x", tracking_uri="http://u:secret@mlflow")
    assert "secret" not in f"{settings} {settings!r}"
