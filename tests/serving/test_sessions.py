from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from plants.errors import InputError
from plants.hashing import sha256
from serving.sessions import FileRef, KeptSession, Recency, Turns, give_back, open_branch
from tests.serving.toys import make_branch, spoil


class Thing:
    """What is in a file."""

    def __init__(self, path: Path) -> None:
        self.name = path.name


def files(folder: Path, names: str) -> dict[str, FileRef]:
    found = {}
    for name in names:
        (folder / name).write_text(name)
        found[name] = FileRef(folder / name, sha256(name.encode()))
    return found


def held(recency: Recency[Thing], known: dict[str, FileRef]) -> str:
    gc.collect()
    return "".join(name for name, file in known.items() if recency.find(file.sha256))


def test_what_was_not_used_for_longest_is_let_go_when_the_bound_is_reached(tmp_path: Path):
    known, recency = files(tmp_path, "abc"), Recency(Thing, bound_mb=2)
    for name in "aba":
        recency.get(known[name], size_mb=1)
    recency.get(known["c"], size_mb=1)
    assert held(recency, known) == "ac"
    assert (recency.counts.num_open, recency.counts.evictions, recency.counts.loads) == (2, 1, 3)


def test_a_pinned_plants_branch_stays_whatever_comes_and_goes_when_the_pin_does(tmp_path: Path):
    known, recency = files(tmp_path, "abcd"), Recency(Thing, bound_mb=2)
    recency.get(known["a"], size_mb=1)
    recency.pin("mill", digests=frozenset([known["a"].sha256]))
    for name in "bcd":
        recency.get(known[name], size_mb=1)
    assert held(recency, known) == "ad"
    recency.pin("mill", digests=frozenset())
    for name in "bc":
        recency.get(known[name], size_mb=1)
    assert held(recency, known) == "bc"


def test_what_somebody_uses_is_not_loaded_twice_though_it_was_let_go(tmp_path: Path):
    known, recency = files(tmp_path, "ab"), Recency(Thing, bound_mb=1)
    used = recency.get(known["a"], size_mb=1)
    recency.get(known["b"], size_mb=1)
    assert recency.counts.num_open == 1
    assert recency.get(known["a"], size_mb=1) is used
    assert recency.counts.loads == 2
    del used
    recency.get(known["b"], size_mb=1)
    gc.collect()
    recency.get(known["a"], size_mb=1)
    assert recency.counts.reloads >= 1


def test_a_file_larger_than_the_bound_is_served_all_the_same(tmp_path: Path):
    known, recency = files(tmp_path, "ab"), Recency(Thing, bound_mb=1)
    for name in "ab":
        assert recency.get(known[name], size_mb=50).name == name
    assert recency.counts.open_mb == 50


def test_a_file_that_loads_slowly_holds_no_other_one_up_and_is_loaded_once(tmp_path: Path):
    known, go, loads = files(tmp_path, "ab"), threading.Event(), []

    def slow(path: Path) -> Thing:
        loads.append(path.name)
        if path.name == "a":
            go.wait(timeout=30)
        return Thing(path)

    recency: Recency[Thing] = Recency(slow, bound_mb=9)
    waiting = [threading.Thread(target=recency.get, args=(known["a"],), kwargs={"size_mb": 1}) for _ in range(3)]
    for thread in waiting:
        thread.start()
    begun = time.monotonic()
    assert recency.get(known["b"], size_mb=1).name == "b"
    assert time.monotonic() - begun < 10
    go.set()
    for thread in waiting:
        thread.join()
    assert sorted(loads) == ["a", "b"]


def test_many_threads_over_a_small_bound_always_get_what_they_asked_for(tmp_path: Path):
    known, recency, wrong = files(tmp_path, "abcdefgh"), Recency(Thing, bound_mb=3), []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for at in rng.integers(len(known), size=300):
            name = "abcdefgh"[at]
            if recency.get(known[name], size_mb=1).name != name:
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert recency.counts.num_open <= 3
    assert recency.counts.open_mb == recency.counts.num_open


def test_turns_leave_nothing_behind():
    turns = Turns()
    with turns.of("a"), turns.of("b"):
        pass
    assert (turns._locks, turns._users) == ({}, {})


def test_a_branch_let_go_is_opened_again_and_fetched_again_where_its_file_was_damaged(tmp_path: Path):
    path, other = make_branch(tmp_path / "a.onnx", cut=1), make_branch(tmp_path / "b.onnx", cut=1, sharpness=2.0)
    data, recency = path.read_bytes(), Recency(open_branch, bound_mb=0)
    fetched: list[bool] = []

    def again() -> None:
        fetched.append(True)
        path.write_bytes(data)

    kept = KeptSession(FileRef(path, sha256(data)), recency, again=again)
    inputs = {"activation": np.zeros((2, 3, 32, 32), np.float32)}
    before = kept.run(["logits"], inputs)[0]
    recency.get(FileRef(other, sha256(other.read_bytes())), size_mb=1)
    gc.collect()
    assert kept.find() is None
    spoil(path)
    np.testing.assert_array_equal(kept.run(["logits"], inputs)[0], before)
    assert fetched == [True]


def test_a_small_file_counts_as_much_as_its_session_takes(tmp_path: Path):
    recency = Recency(open_branch, bound_mb=1.0)
    for name in "abcd":
        path = make_branch(tmp_path / f"{name}.onnx", cut=1, sharpness=float(ord(name)))
        assert path.stat().st_size < 1e5
        KeptSession(FileRef(path, sha256(path.read_bytes())), recency, again=lambda: None, least_mb=0.4).session()
    assert recency.counts.num_open == 2
    assert recency.counts.open_mb == pytest.approx(0.8)


def test_a_branch_whose_file_is_gone_for_good_says_so(tmp_path: Path):
    path = make_branch(tmp_path / "branch.onnx", cut=1)
    kept = KeptSession(FileRef(path, sha256(path.read_bytes())), Recency(open_branch, bound_mb=1), again=lambda: None)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        kept.session()


HOARD = """
import psutil
from serving.sessions import _malloc_trim, give_back
blocks = [bytearray(50_000) for _ in range(4_000)]
for block in blocks: block[:] = bytes([1]) * len(block)
del blocks[:-1]
held = psutil.Process().memory_info().rss
give_back()
print(held - psutil.Process().memory_info().rss if _malloc_trim() else "no malloc_trim")
"""
"""Frees 200 MB below a block that stays, so that the C library keeps them; what is printed came back, in bytes."""


def test_free_memory_is_given_back_to_the_system():
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
    found = subprocess.run([sys.executable, "-c", HOARD], env=env, capture_output=True, text=True, check=True)
    if found.stdout.strip() == "no malloc_trim":
        pytest.skip("this C library has no malloc_trim")
    assert int(found.stdout) > 100_000_000


def test_without_a_library_that_can_nothing_is_given_back(monkeypatch):
    monkeypatch.setattr("serving.sessions._malloc_trim", lambda: None)
    assert give_back() is None
