"""`crossplant serve` as a person runs it: a process of its own, asked over HTTP and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.client import Client
from tests.fleets import drawn_fleet
from tests.serving.toys import RED, Works, png

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_standard_output_holds_one_document_and_an_interrupt_ends_all(tmp_path):
    works = Works(tmp_path)
    works.promote(bundle=works.bundle("own"), policy=works.policy())
    words = ("serve", "--fleet", str(drawn_fleet(tmp_path, "mill", num_lots=1)), "--port", "0", "--json", "-")
    env = {**os.environ, "CROSSPLANT_HOME": str(works.settings.home), "CROSSPLANT_SLOTS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "crossplant", *words], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "}\n"))
        document = json.loads("".join([*lines, "}"]))
        token = (works.settings.home / "tokens/mill.token").read_text().strip()
        with Client(document["address"], token=token) as client:
            answer = client.predict("mill", [("red.png", png(RED))], environment="cam-1")
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert answer["verdict"] == "reject"
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in said
