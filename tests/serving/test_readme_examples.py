"""The examples of README's "An endpoint, by hand" are run as they are printed; only the port is another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.access import keep_token
from tests.serving.toys import GREEN, RED, Works, plant_view, png
from tests.serving.uvicorn_server import Server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text("utf-8").partition("### An endpoint, by hand")[2].partition("\n## ")[0]


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the plant, environment, frames and tokens that README speaks of, in the folder it speaks from."""
    works = Works(tmp_path_factory.mktemp("works"))
    environments = {"cam1": plant_view().environments["cam-1"]}
    bundle = works.bundle("own", serves={"tilery": plant_view(environments=environments)})
    for pass_below in (0.1, 0.2):
        works.promote("tilery", bundle=bundle, policy=works.policy("tilery", pass_below=pass_below))
    home = works.root / ".crossplant"
    tokens = {"tilery": works.token(plant="tilery")}
    tokens |= {f"_{role}": works.token(role, plant=None) for role in ("lead", "auditor")}
    for name, header in tokens.items():
        keep_token(home, name, header["Authorization"].removeprefix("Bearer "))
    (works.root / "front.png").write_bytes(png(GREEN))
    (works.root / "back.png").write_bytes(png(RED))
    with Server(works.root) as server:
        yield server


def run(endpoint: Server, *words: str, text: str) -> str:
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{endpoint.port}")
    done = subprocess.run(
        [*words, text],
        cwd=endpoint.log.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_curl_of_the_readme_is_answered_as_the_comment_above_it_says(endpoint: Server):
    if shutil.which("curl") is None:
        pytest.skip("curl is missing: apt-get install curl")
    commands = re.split(r"\n(?=curl |# )", block("sh").strip())
    printed = [run(endpoint, "bash", "-ec", text=one) for one in commands if one.startswith("curl")]
    part, frame, status, counters, route, _, health = printed
    assert (json.loads(part)["verdict"], json.loads(part)["part_id"], len(json.loads(part)["frames"])) == (
        "reject",
        "A-17",
        2,
    )
    assert (json.loads(frame)["verdict"], json.loads(frame)["part_id"]) == ("ok", "A-18")
    assert json.loads(status)["environments"] == ["cam1"]
    assert json.loads(counters)["requests"] == 2
    assert json.loads(route)["action"] == "rollback"
    where = 'arm="champion",environment="cam1",plant="tilery"'
    assert f'crossplant_verdicts_total{{{where},verdict="ok"}} 1.0' in printed[5]
    assert json.loads(health)["status"] == "ok"


def test_the_program_of_the_readme_prints_a_verdict_for_each_part(endpoint: Server):
    printed = run(endpoint, sys.executable, "-c", text=block("python"))
    assert printed.splitlines() == ["('front.png', 'ok')", "('back.png', 'reject')"]
