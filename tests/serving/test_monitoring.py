"""A real Prometheus scrapes the real app, and every query of every dashboard and alert is asked of it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from object_store import free_port
from prometheus import Prometheus, PrometheusUnavailable, binary

from plants.normality import ALL, Normalities, Normality
from plants.plant import Costs
from tests.serving.plain_app import PlainApp
from tests.serving.toys import BLUE, GREEN, RED, Works, plant_view, png

pytestmark = pytest.mark.slow

MONITORING = Path(__file__).parents[2] / "k8s" / "monitoring"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text("utf-8"))["spec"]["groups"]
    for rule in group["rules"]
]
_THRESHOLD = re.compile(r"\s*[<>]=?\s*[\d.]+\s*$")
DOUBTFUL = (120, 140, 20)


def conditions(expression: str) -> list[str]:
    """The conditions of an alert without their thresholds: one a line, joined by `and`."""
    parts = re.split(r"\n\s*and ", expression.strip())
    assert all(_THRESHOLD.search(part) for part in parts), expression
    return [_THRESHOLD.sub("", part) for part in parts]


def panels(name: str) -> list[tuple[str, str]]:
    """Title and query of everything that a dashboard draws, its variables set."""
    found = json.loads((MONITORING / f"{name}.json").read_text("utf-8"))
    values = {"$__rate_interval": "20s", "$plant": "mill", "$environment": ".*"}
    queries = [(panel["title"], target["expr"]) for panel in found["panels"] for target in panel["targets"]]
    for old, new in values.items():
        queries = [(title, query.replace(old, new)) for title, query in queries]
    return queries


class Watched:
    """An app under traffic and the Prometheus that scrapes it."""

    def __init__(self, works: Works, app: PlainApp, prometheus: Prometheus) -> None:
        self.works, self.app, self.prometheus = works, app, prometheus
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._ask)
        self.sent: dict[str, int] = {}

    def _ask(self) -> None:
        kinds = (
            ("mill", "cam-1", png(GREEN), {}),
            ("mill", "cam-1", png(RED), {}),
            ("mill", "tiled", png(BLUE, size=(64, 64)), {}),
            ("mill", "cam-1", png(DOUBTFUL), {}),
            ("foundry", "cam-1", png(GREEN), {}),
            ("mill", "cam-1", b"no image", {}),
            ("mill", "cam-1", png(GREEN), {"deadline_ms": "0.01"}),
        )
        with httpx.Client(base_url=self.app.address, timeout=10) as http:
            at = 0
            while not self.ended.wait(0.02):
                plant, environment, image, more = kinds[at % len(kinds)]
                at += 1
                with contextlib.suppress(httpx.HTTPError):
                    url = f"/plants/{plant}/predict"
                    query = {"environment": environment, **more}
                    http.post(url, params=query, content=image, headers=self.works.token(plant=plant))
                    self.sent[plant] = self.sent.get(plant, 0) + 1

    def rows(self, query: str, *, within_s: float = 20) -> list[tuple[dict[str, str], float]]:
        """The rows of a query, waited for."""
        deadline = time.monotonic() + within_s
        while not (found := self.prometheus.query(query)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The alert rules as Prometheus reads them, without the time they wait."""
    file = tmp_path_factory.mktemp("rules") / "rules.yml"
    quick = [{name: value for name, value in rule.items() if name != "for"} for rule in RULES]
    file.write_text(yaml.safe_dump({"groups": [{"name": "crossplant", "rules": quick}]}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, rules: Path) -> Iterator[Watched]:
    works = Works(tmp_path_factory.mktemp("works"))
    view, classes = plant_view(), ("ok", "dent", "scratch")
    good = np.random.default_rng(0).normal(np.array(GREEN) / 255, 0.02, (40, 3))
    bundle = works.bundle(
        "own",
        serves={"mill": view, "foundry": view},
        sharpness=3.0,
        normality=Normalities(dict.fromkeys((("mill", ALL), ("foundry", ALL)), Normality.fit(good))),
    )
    for plant in ("mill", "foundry"):
        policy = works.policy(plant, classes=classes, costs=Costs(parts_per_hour=1800), impossible_above=1.0)
        works.promote(plant, bundle=bundle, policy=policy)
        works.token(plant=plant)
    token = works.root / "auditor.token"
    token.write_text(works.token("auditor", plant=None)["Authorization"].removeprefix("Bearer "))
    app = PlainApp(works, port=free_port(), replica="r1")
    try:
        prometheus = Prometheus(works.root / "prometheus", target=app.address, token_file=token, rules=rules)
    except PrometheusUnavailable as reason:
        app.stop()
        pytest.skip(str(reason))
    found = Watched(works, app, prometheus)
    found.thread.start()
    works.promote("foundry", bundle="0" * 64, policy=policy)  # a route that cannot be loaded
    yield found
    found.ended.set()
    found.thread.join()
    prometheus.stop()
    app.stop()


def test_prometheus_scrapes_with_the_token_of_a_file(watched: Watched):
    assert watched.rows('up{job="crossplant"} == 1')
    (target,) = watched.prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.parametrize(("name", "title", "query"), [(n, *one) for n in ("fleet", "plant") for one in panels(n)])
def test_every_query_of_every_panel_returns_rows(watched: Watched, name: str, title: str, query: str):
    assert watched.rows(query), f"{name}: {title}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_condition_of_every_alert_returns_rows_without_its_threshold(watched: Watched, rule: dict[str, Any]):
    for condition in conditions(rule["expr"]):
        assert watched.rows(condition), condition


def test_alerts_fire_for_what_is_wrong_and_for_nothing_else_and_say_what_to_do(watched: Watched):
    wrong = {"CrossplantRouteProblem", "CrossplantDeadlineMissed", "CrossplantErrorRate"}
    deadline = time.monotonic() + 20
    firing: dict[str, dict[str, Any]] = {}
    while not wrong <= set(firing) and time.monotonic() < deadline:
        time.sleep(0.3)
        now = [alert for alert in watched.prometheus.alerts() if alert["state"] == "firing"]
        firing = {alert["labels"]["alertname"]: alert for alert in now}
    assert set(firing) == wrong
    assert firing["CrossplantRouteProblem"]["labels"]["plant"] == "foundry"
    action = firing["CrossplantRouteProblem"]["annotations"]["action"]
    assert "roll the route back: crossplant rollback --plant foundry" in action
    assert firing["CrossplantErrorRate"]["labels"]["plant"] == "mill"


def test_the_numbers_are_those_of_the_app_once_nobody_asks_any_more(watched: Watched):
    watched.ended.set()
    watched.thread.join()
    headers = watched.works.token("auditor", plant=None)
    for plant in ("mill", "foundry"):
        report = httpx.get(f"{watched.app.address}/plants/{plant}/metrics", headers=headers).json()
        assert report["requests"] + report["errors"] == watched.sent[plant]
        expected = {
            (environment, verdict): count
            for environment, one in report["environments"].items()
            for verdict, count in one["verdicts"].items()
        }
        deadline, found = time.monotonic() + 10, {}
        while found != expected and time.monotonic() < deadline:
            time.sleep(0.5)
            rows = watched.prometheus.query(f'crossplant_verdicts_total{{plant="{plant}"}} > 0')
            found = {(labels["environment"], labels["verdict"]): int(value) for labels, value in rows}
        assert found == expected
    one = report["environments"]["cam-1"]["windows"]["24h"]
    assert one["novelty"]["n"] == one["requests"]
    assert one["latency_ms"]["p99"] < 2000


def test_the_rules_are_what_promtool_takes(rules: Path):
    try:
        tool = binary("promtool")
    except PrometheusUnavailable as reason:
        pytest.skip(str(reason))
    done = subprocess.run([tool, "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]):
    assert rule["labels"]["severity"] in ("page", "warning")
    assert len(rule["annotations"]["action"]) > 60
    assert rule["annotations"]["summary"]
