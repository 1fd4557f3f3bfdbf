"""`crossplant serve` as a person runs it: a process of its own, asked over HTTP and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.client import Client
from tests.fleets import drawn_fleet
from tests.processes import kill_driver
from tests.serving.toys import RED, Works, png

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_standard_output_holds_one_document_and_an_interrupt_ends_all(tmp_path, number):
    """Started as a shell starts what goes on in the background: with SIGINT ignored."""
    works = Works(tmp_path)
    works.promote(bundle=works.bundle("own"), policy=works.policy())
    words = ("serve", "--fleet", str(drawn_fleet(tmp_path, "mill", num_lots=1)), "--port", "0", "--json", "-")
    env = {**os.environ, "CROSSPLANT_HOME": str(works.settings.home), "CROSSPLANT_SLOTS": "1"}
    out, err = tmp_path / "out.json", tmp_path / "err.txt"
    with out.open("wb") as document_file, err.open("wb") as said_file:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "crossplant", *words],
            cwd=ROOT,
            env=env,
            stdout=document_file,
            stderr=said_file,
        )
    try:
        begun = time.monotonic()
        while not out.read_text().endswith("}\n"):
            assert process.poll() is None, err.read_text()
            assert time.monotonic() - begun < 150, err.read_text()
            time.sleep(0.1)
        document = json.loads(out.read_text())
        token = (works.settings.home / "tokens/mill.token").read_text().strip()
        with Client(document["address"], token=token) as client:
            answer = client.predict("mill", [("red.png", png(RED))], environment="cam-1")
        process.send_signal(number)
        assert ended(process) == 0, err.read_text()
    finally:
        kill_driver(process)
    assert answer["verdict"] == "reject"
    assert json.loads(out.read_text()) == document
    assert "Traceback" not in err.read_text()


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; one that hangs is made to say where, on its standard error."""
    try:
        return process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return process.wait()
