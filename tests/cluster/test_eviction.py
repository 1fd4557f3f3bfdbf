"""The cache stays within its bound: the oldest that nobody uses goes, and what is in use never."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.eviction import DEAD_S, entries, hold, make_room
from cluster.retention import record
from cluster.storage import LocalStore
from plants.errors import NoSpace, Notice

KB = 1e-6
"""In GB."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Four entries of 10 kB, used one after another: c, a, d, b."""
    for age, stem in enumerate(("activations/p/b", "packs/p/d", "activations/p/a", "packs/p/c")):
        record(LocalStore(tmp_path), stem, since={"p": datetime.now(UTC)})
        name = f"{stem}/cut0.view0.npy" if stem.startswith("act") else f"{stem}.arrow"
        LocalStore(tmp_path).write(name, bytes(10_000))
        (tmp_path / f"{stem}.lock").touch()
        os.utime(tmp_path / f"{stem}.lock", (0, time.time() - 86400 * (age + 1)))
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports/trunk.onnx").write_bytes(bytes(10_000))
    return tmp_path


def left(cache: Path) -> set[str]:
    return {entry.stem for entry in entries(cache)}


@pytest.mark.parametrize(
    ("num_bytes", "bound", "gone"),
    [
        (0, 50 * KB, []),
        (9_000, 50 * KB, []),
        (11_000, 50 * KB, ["packs/p/c"]),
        (11_000, 40 * KB, ["packs/p/c", "activations/p/a"]),
        (0, 1 * KB, ["packs/p/c", "activations/p/a", "packs/p/d", "activations/p/b"]),
    ],
)
def test_what_was_not_used_for_longest_goes_first_and_no_more_than_is_needed(cache, num_bytes, bound, gone):
    before = left(cache)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make_room(cache, num_bytes=num_bytes, bound_gb=bound)
    assert before - left(cache) == set(gone)
    assert [str(w.message).partition(" (")[0] for w in said] == [f"evicted from the cache: {stem}" for stem in gone]
    assert all(isinstance(w.message, Notice) for w in said)
    files = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    assert not any(name.startswith(tuple(gone)) for name in files) or not gone
    assert "exports/trunk.onnx" in files


def test_what_a_living_process_uses_stays_and_is_the_most_recent_afterwards(cache):
    ready, end = multiprocessing.Event(), multiprocessing.Event()

    def user() -> None:
        hold(cache, "packs/p/c")
        ready.set()
        end.wait(60)

    process: Any = multiprocessing.get_context("fork").Process(target=user)
    process.start()
    assert ready.wait(60)
    refused = r"may hold 1e-06 GB \(CROSSPLANT_CACHE_GB\) and 0\.00 GB are in use or needed"
    with pytest.raises(NoSpace, match=refused), pytest.warns(Notice):
        make_room(cache, num_bytes=0, bound_gb=1 * KB)
    assert left(cache) == {"packs/p/c"}
    end.set()
    process.join(60)
    with pytest.warns(Notice, match="packs/p/c"):
        make_room(cache, num_bytes=0, bound_gb=1 * KB)
    assert left(cache) == set()


def test_an_entry_that_was_deleted_under_its_user_is_held_anew(cache):
    hold(cache, "packs/p/c")
    (cache / "packs/p/c.lock").unlink()
    hold(cache, "packs/p/c")
    with pytest.raises(NoSpace), pytest.warns(Notice):
        make_room(cache, num_bytes=0, bound_gb=1 * KB)
    assert left(cache) == {"packs/p/c"}


def test_files_whose_writers_died_long_ago_go_and_younger_ones_count(cache):
    for name, age in (("dead", DEAD_S + 60), ("alive", 10)):
        path = cache / f"activations/p/a/.{name}.part"
        path.write_bytes(bytes(5_000))
        os.utime(path, (0, time.time() - age))
    sizes = {entry.stem: entry.num_bytes for entry in entries(cache)}
    assert sizes["activations/p/a"] - sizes["activations/p/b"] == 5_000
    assert [path.name for path in (cache / "activations/p/a").glob(".*")] == [".alive.part"]
