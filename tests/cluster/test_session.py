from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_packs import SIZE, make_plant, make_rows

from cluster import session
from cluster.packs import build
from cluster.settings import Settings
from cluster.storage import PlantFiles, open_store
from plants.errors import InputError
from plants.images import decode

pytestmark = pytest.mark.slow


def test_tasks_yield_results_in_order(ray_local):
    assert list(session.map_tasks(math.sqrt, [n * n for n in range(20)])) == list(range(20))
    assert list(session.map_tasks(math.sqrt, [])) == []


def test_tasks_hold_few_items_at_once(ray_local):
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    results = session.map_tasks(math.sqrt, items(), in_flight=2)
    next(results)
    assert len(taken) == 3
    assert len(list(results)) == 9


def test_the_users_error_in_a_task_comes_back_as_one_line(ray_local):
    results = session.map_tasks(decode, [b""])
    with pytest.raises(InputError) as caught:
        list(results)
    assert type(caught.value) is InputError
    assert str(caught.value) == "the file is empty (0 bytes). Export it again"


def test_any_other_error_in_a_task_keeps_its_traceback(ray_local):
    results = session.map_tasks(math.sqrt, [1, -1])
    assert next(results) == 1
    with pytest.raises(ValueError, match="math domain error"):
        next(results)


def test_a_pack_is_built_by_tasks_as_without_ray(ray_local, tmp_path):
    plant = make_plant(tmp_path / "images")
    rows = make_rows(plant)
    common = {"plant": plant, "trunk_size_px": SIZE, "read": partial(PlantFiles().read, plant.images)}
    here, there = (
        build(rows, **common, store=open_store(tmp_path / name), cache_dir=tmp_path, map_tasks=map_tasks)
        for name, map_tasks in (("a", map), ("b", session.map_tasks))
    )
    assert here.path != there.path
    np.testing.assert_array_equal(here.pixels, there.pixels)


def test_starting_twice_keeps_the_ray_that_runs(ray_local):
    import ray

    before = ray.get_runtime_context().get_job_id()
    session.start(ray_local)
    assert ray.get_runtime_context().get_job_id() == before


def test_what_no_node_has_is_told_at_once(ray_local):
    began = time.monotonic()
    with pytest.raises(InputError, match="no node has 1 GPU: the largest has 0 GPU"):
        session.require({"GPU": 1})
    with pytest.raises(InputError, match="3 times 1 CPU are needed at once"):
        session.require({"CPU": 1}, copies=3)
    with pytest.raises(InputError, match="no node has 64 CPU"):
        next(session.map_tasks(math.sqrt, [1], num_cpus=64))
    session.require({"CPU": 1}, copies=2)
    assert time.monotonic() - began < 10


def test_nodes_to_come_are_waited_for_until_the_deadline(ray_local):
    began = time.monotonic()
    with pytest.raises(InputError):
        session.require({"GPU": 1}, timeout_s=1.0)
    assert 1.0 <= time.monotonic() - began < 10


ABSENT = """
from cluster import session
from cluster.settings import Settings
session.start(Settings(ray_address="127.0.0.1:9"))
"""


def test_a_cluster_that_is_not_there_is_one_line_within_the_deadline(tmp_path):
    began = time.monotonic()
    done = python(ABSENT, home=tmp_path)
    last = done.stderr.strip().split("\n")[-1]
    assert "InputError: file 127.0.0.1:9: field CROSSPLANT_RAY_ADDRESS: no Ray cluster answers" in last
    assert time.monotonic() - began < 60


EMBEDDED = """
import os, pathlib, ray
from cluster import session
from cluster.settings import Settings
with session.running(Settings(home=os.environ["CROSSPLANT_HOME"], object_store_mb=160), num_slots=1):
    token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert oct(token.stat().st_mode)[-3:] == "600", token.stat()
    print("mode", os.environ["RAY_AUTH_MODE"])
    print("there", ray.get(ray.remote(lambda: os.environ.get("RAY_AUTH_TOKEN_PATH")).remote()) == str(token))
    folder = token.parent
print("left", [name for name in os.environ if name.startswith("RAY_AUTH")])
print("folder", folder)
"""


def test_an_embedded_ray_asks_for_its_own_token_and_needs_no_usable_home(tmp_path):
    done = python(EMBEDDED, home=Path("/nonexistent"), CROSSPLANT_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.strip().split("\n"))
    assert lines["mode"] == "token"
    assert lines["there"] == "True"
    assert lines["left"] == "[]"
    assert not Path(lines["folder"]).exists()


def test_what_a_killed_process_left_behind_is_swept_and_others_are_not(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"crossplant-{gone.pid}-x", f"crossplant-{os.getpid()}-x", "crossplant-notes", "other"):
        (tmp_path / name).mkdir()
    session._sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f"crossplant-{os.getpid()}-x", "crossplant-notes", "other"}


def test_a_refused_token_says_which_variables_to_set():
    fault = session._refused(Settings(ray_address="head:6379"), RuntimeError("Authentication token is invalid\nmore"))
    assert "RAY_AUTH_TOKEN_PATH" in str(fault)


def python(code: str, *, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that has no RAY_ variables."""
    root = Path(__file__).parents[2]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**kept, "PYTHONPATH": str(root), "HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
