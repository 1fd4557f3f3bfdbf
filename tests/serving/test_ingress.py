"""Which proxy an embedded Ray gets."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from cluster import session
from cluster.settings import Settings
from serving import ingress


@pytest.mark.skipif(not ingress.is_haproxy_there(), reason="Ray's HAProxy is for Linux")
def test_replicas_of_two_servers_seldom_get_the_same_port_and_never_one_that_ray_gives_others(tmp_path: Path) -> None:
    """Ray's own choice is 30000 and up, for every app of the machine alike."""
    found = [ingress.variables(tmp_path) for _ in range(50)]
    firsts = [int(one["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"]) for one in found]
    lasts = [int(one["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"]) for one in found]
    assert len(set(firsts)) > 40
    assert all(last - first == ingress.NUM_REPLICA_PORTS for first, last in zip(firsts, lasts, strict=True))
    assert min(firsts) >= 20_000
    assert max(lasts) <= 30_000


@pytest.mark.skipif(not ingress.is_haproxy_there(), reason="Ray's HAProxy is for Linux")
def test_two_servers_on_one_machine_share_neither_files_nor_ports(tmp_path: Path) -> None:
    one, other = ingress.variables(tmp_path / "a"), ingress.variables(tmp_path / "b")
    assert one["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    for name in one:
        if name.endswith(("_PORT", "_PATH", "_LOC", "_FILE", "_BASE")) and not name.endswith("_IMPORT_PATH"):
            assert one[name] != other[name], name


@pytest.mark.skipif(not ingress.is_haproxy_there(), reason="Ray's HAProxy is for Linux")
def test_what_ray_is_told_to_load_before_itself_is_there(tmp_path: Path) -> None:
    module, _, name = ingress.variables(tmp_path)["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_where_haproxy_is_not_installed_the_python_proxy_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "is_haproxy_there", lambda: False)
    assert not [name for name in ingress.variables(Path("/anywhere")) if "PROXY" in name]


def test_what_the_user_has_set_wins_and_the_rest_is_gone_when_ray_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.setattr("ray.init", lambda *_, **__: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("CROSSPLANT_TRIED", raising=False)
    given = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "CROSSPLANT_TRIED": "1"}
    session.start(Settings(home=tmp_path), variables=lambda folder: given)
    assert (os.environ["RAY_SERVE_ENABLE_HA_PROXY"], os.environ["CROSSPLANT_TRIED"]) == ("0", "1")
    session.stop()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "CROSSPLANT_TRIED" not in os.environ
