"""Work in forks: where it is done, with which environment, and what comes of errors and kills there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from cluster.settings import Settings
from jobs.forked import mapping, warm_up
from plants.errors import CheckFailed, InputError
from plants.plant import load_fleet

CTRL_C = """
import signal, sys, threading, time
from cluster.settings import Settings
from jobs.forked import mapping
with mapping(Settings(slots=2)) as map_tasks:
    answers = map_tasks(time.sleep, [0.0, 60.0, 60.0])
    next(answers)
    print("begun", flush=True)
    next(answers)
"""


@pytest.mark.slow
def test_forks_answer_in_order_with_the_environment_of_now(home: Settings, monkeypatch: pytest.MonkeyPatch):
    warm_up()
    names = [f"CROSSPLANT_TEST_{i}" for i in range(5)]
    for name in names:
        monkeypatch.setenv(name, name.lower())
    with mapping(home) as map_tasks:
        assert list(map_tasks(os.getenv, names)) == [name.lower() for name in names]
    with mapping(home) as map_tasks, pytest.raises(InputError, match=r"^file none\.yaml: no such file"):
        list(map_tasks(load_fleet, ["none.yaml"]))


@pytest.mark.slow
def test_a_killed_fork_is_one_line_that_says_what_to_do(home: Settings):
    with pytest.raises(CheckFailed, match=r"was ended from outside.* CROSSPLANT_SLOTS$"), mapping(home) as map_tasks:
        list(map_tasks(os._exit, [9]))


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_command_and_forks_at_once_and_forks_say_nothing():
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", CTRL_C], **both) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        os.killpg(command.pid, signal.SIGINT)
        _, said = command.communicate(timeout=20)
    assert command.returncode != 0
    assert said.count("Traceback") == 1
