"""A cache of activations that can neither lie nor be asked twice: an image is computed once, whatever comes later."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.packs import view_digests
from cluster.retention import sweep
from cluster.storage import LocalStore
from jobs.activations import PlantData, training_rows
from jobs.caching import prepare
from jobs.recipe import Augment
from plants.errors import NoSpace, Notice
from plants.plant import Plant
from tests.jobs.test_activations import PLANT, TilePack, label_rows

TRAIN = ("t0", "t1", "t2", "t3", "t4")
DAY = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class MeanTrunk:
    """Activations are the mean colour; remembers the images it saw."""

    weights_digest: str = "w"
    device = torch.device("cpu")
    images: list[np.ndarray] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return len(self.images)

    def activations(self, images: Tensor) -> dict[int, Tensor]:
        self.images += list(images.numpy())
        return {0: images.float().mean((1, 2)), 1: images.permute(0, 3, 1, 2).float()}


def prepared(
    folder: Path, *, trunk: MeanTrunk | None = None, plant: Plant = PLANT, train: Sequence[str] = TRAIN, **more: Any
) -> PlantData:
    table = label_rows(*[(t, t, "good", None, "train") for t in train], ("s", "s", "crack", None, "select"))
    pack = more.pop("pack", None) or TilePack(sorted(table["frame"]), 1)
    rows = training_rows(plant, labels=table, pack=pack, seed=0)
    given: dict[str, Any] = {"cuts": (0, 1), "policy": Augment(), "views": 3, "seed": 0, "since": DAY, **more}
    return prepare(plant, rows=rows, pack=pack, trunk=trunk or MeanTrunk(), cache=folder, **given)


def all_of(data: PlantData, cut: int = 1) -> dict[str, np.ndarray]:
    """Frame and view -> activation."""
    frames = list(data.rows["frame"])
    ids = {view: np.arange(data.num_train if view else len(frames)) for view in range(data.views)}
    found = {view: data.fetch(cut, ids=ids[view], views=np.full(len(ids[view]), view)) for view in ids}
    return {f"{frames[i]}.{view}": found[view][i] for view in ids for i in ids[view]}


def assert_equal(a: PlantData, b: PlantData) -> None:
    assert a.cuts == b.cuts
    for cut in a.cuts:
        one, other = all_of(a, cut), all_of(b, cut)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_activations_are_computed_once_and_only_training_rows_have_augmented_views(tmp_path):
    trunk = MeanTrunk()
    ticks: list[tuple[int, int]] = []
    data = prepared(tmp_path, trunk=trunk, progress=lambda *at: ticks.append(at))
    assert trunk.seen == 6 + 5 + 5
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    again = prepared(tmp_path, trunk=trunk)
    assert trunk.seen == 16
    assert again.folder == data.folder
    assert np.load(data.folder / "cut1.view2.npy").shape == (5, 3, 8, 8)


@pytest.mark.parametrize("seed", range(5))
def test_of_more_rows_only_the_new_are_computed_and_all_are_as_if_computed_at_once(tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = [f"f{i:02d}" for i in rng.permutation(60)]
    first, trunk, fresh = names[: rng.integers(1, 55)], MeanTrunk(), MeanTrunk()
    prepared(tmp_path / "a", train=first)
    grown = prepared(tmp_path / "a", train=names, trunk=trunk)
    assert trunk.seen == 3 * (60 - len(first))
    assert_equal(grown, prepared(tmp_path / "b", train=names, trunk=fresh))
    assert fresh.seen == 1 + 3 * 60
    fewer = prepared(tmp_path / "a", train=names[10:30], trunk=trunk)
    assert trunk.seen == 3 * (60 - len(first))
    assert_equal(fewer, prepared(tmp_path / "c", train=names[10:30]))


def test_rows_are_gathered_from_every_entry_that_has_some(tmp_path):
    prepared(tmp_path, train=("a", "b"))
    prepared(tmp_path, train=("c", "d", "e"))
    trunk = MeanTrunk()
    data = prepared(tmp_path, train=tuple("abcdef"), trunk=trunk)
    assert trunk.seen == 3
    assert_equal(data, prepared(tmp_path / "fresh", train=tuple("abcdef")))


def test_more_views_and_cuts_are_added_to_the_ones_that_are_there(tmp_path):
    trunk = MeanTrunk()
    prepared(tmp_path, trunk=trunk, views=1, cuts=(0,))
    assert trunk.seen == 6
    prepared(tmp_path, trunk=trunk, views=2, cuts=(0,))
    assert trunk.seen == 6 + 5
    prepared(tmp_path, trunk=trunk, views=2, cuts=(0, 1))
    assert trunk.seen == 2 * (6 + 5)


def forbidding(*what: str) -> Plant:
    station = PLANT.environments["default"].model_copy(update={"forbid": what})
    return PLANT.model_copy(update={"environments": {"default": station}})


def named(name: str) -> Plant:
    return PLANT.model_copy(update={"name": name})


def started(work: Callable[[], Any]) -> Any:
    """The work begun in a process of its own, whose locks go when it ends."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def ended(process: Any) -> int:
    process.join(60)
    return int(process.exitcode)


def in_a_process(work: Callable[[], Any]) -> int:
    return ended(started(work))


def darker() -> TilePack:
    """The same frames under another light."""
    pack = TilePack(sorted([*TRAIN, "s"]), 1)
    pack.pixels = pack.pixels // 2
    pack.digests = view_digests(pack.pixels)
    return pack


PLAIN, VIEWS = 6, 10


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({}, 0),
        ({"pack": darker()}, PLAIN + VIEWS),
        ({"trunk": "v"}, PLAIN + VIEWS),
        ({"policy": Augment(strength=1.0)}, VIEWS),
        ({"seed": 1}, VIEWS),
        ({"plant": forbidding("flip")}, VIEWS),
        ({"views": 4}, VIEWS // 2),
        ({"views": 2}, 0),
        ({"cuts": (0,)}, 0),
        ({"since": DAY + timedelta(days=1)}, 0),
    ],
    ids=["nothing", "pixels", "weights", "policy", "seed", "forbidden", "more views", "fewer", "fewer cuts", "age"],
)
def test_what_changes_an_activation_is_computed_again_and_nothing_else(tmp_path, change, computed):
    prepared(tmp_path)
    weights = change.get("trunk", "w")
    given, trunk = {key: value for key, value in change.items() if key != "trunk"}, MeanTrunk(weights)
    data = prepared(tmp_path, trunk=trunk, **given)
    assert trunk.seen == computed
    assert_equal(data, prepared(tmp_path / "fresh", trunk=MeanTrunk(weights), **given))


def test_images_of_another_plant_are_its_own(tmp_path):
    prepared(tmp_path)
    trunk = MeanTrunk()
    prepared(tmp_path, plant=named("south"), trunk=trunk)
    assert trunk.seen == PLAIN + VIEWS


def test_a_station_that_forbids_everything_has_views_equal_to_the_plain_image(tmp_path):
    data = prepared(tmp_path, plant=forbidding("flip", "rotate", "brightness", "contrast", "noise"))
    ids = np.arange(5)
    plain, view = (data.fetch(0, ids=ids, views=np.full(5, v)) for v in (0, 1))
    assert np.array_equal(plain, view)
    free = prepared(tmp_path)
    assert not np.array_equal(*(free.fetch(0, ids=ids, views=np.full(5, v)) for v in (0, 1)))


def test_activations_go_when_a_frame_they_were_made_from_is_too_old_and_copies_of_them_too(tmp_path):
    north = PLANT.model_copy(update={"retention_days": 30})
    prepared(tmp_path, plant=north, train=("a",), since=DAY)
    copied = prepared(tmp_path, plant=north, train=("a", "b"), since=DAY + timedelta(days=20))
    given: dict[str, Any] = {"plants": [north]}
    assert sweep(LocalStore(tmp_path), "activations", now=DAY + timedelta(days=30), **given) == []
    assert len(sweep(LocalStore(tmp_path), "activations", now=DAY + timedelta(days=31), **given)) == 2
    assert not list(copied.folder.iterdir())
    trunk = MeanTrunk()
    prepared(tmp_path, plant=north, train=("a", "b"), since=DAY + timedelta(days=31), trunk=trunk)
    assert trunk.seen == 1 + 3 * 2
    assert len(sweep(LocalStore(tmp_path), "activations", now=DAY + timedelta(days=62), **given)) == 1


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "words"])
def test_a_damaged_file_is_made_again_and_that_is_said(tmp_path, damage):
    data = prepared(tmp_path)
    expected = all_of(data)
    path = data.path(1, 1)
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-50],
            "one bit": content[:400] + bytes([content[400] ^ 1]) + content[401:],
            "empty": b"",
            "words": b"no block",
        }[damage]
    )
    trunk = MeanTrunk()
    with pytest.warns(Notice, match=r"cut1\.view1\.npy: is damaged; its rows are copied or computed again"):
        again = prepared(tmp_path, trunk=trunk)
    assert trunk.seen == 5
    assert all(np.array_equal(value, all_of(again)[key]) for key, value in expected.items())


def test_a_damaged_file_is_not_copied_from(tmp_path):
    path = prepared(tmp_path, train=("a", "b")).path(1, 2)
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)
    trunk = MeanTrunk()
    with pytest.warns(Notice, match="is damaged"):
        data = prepared(tmp_path, train=("a", "b", "c"), trunk=trunk)
    assert trunk.seen == 3 + 2
    assert_equal(data, prepared(tmp_path / "fresh", train=("a", "b", "c")))


def test_the_least_recently_used_entry_goes_when_the_bound_is_reached(tmp_path):
    for name in ("old", "young"):
        in_a_process(lambda name=name: prepared(tmp_path, plant=named(name)))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) / 2e9
    said = r"evicted from the cache: activations/old/\w+ \(0\.00 GB, not used for 0\.0 days\)"
    with pytest.warns(Notice, match=said):
        data = prepared(tmp_path, cache_gb=2.5 * size)
    assert {path.parts[-3] for path in tmp_path.glob("activations/*/*/cut1.view0.npy")} == {"young", "north"}
    assert len(all_of(data)) == 16


def test_what_is_in_use_is_not_evicted_and_what_does_not_fit_is_refused_with_the_remedy(tmp_path):
    data = prepared(tmp_path)
    with pytest.raises(NoSpace, match=r"the cache may hold 1e-06 GB \(CROSSPLANT_CACHE_GB\).*the same command goes on"):
        prepared(tmp_path, plant=named("south"), cache_gb=1e-6)
    assert len(all_of(data)) == 16
    assert not list(tmp_path.glob("activations/south/*/*"))


def test_a_full_disk_is_one_clear_line_leaves_nothing_half_written_and_the_same_call_goes_on(tmp_path):
    """By the limit on a file's size, which the system tells as it tells a full disk: before the rest is computed."""

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            with pytest.raises(NoSpace, match=r"cut1\.view0\.npy: the disk is full\. Make space there"):
                prepared(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)  # coverage writes a file when the process ends

    assert in_a_process(full) == 0
    assert not list(tmp_path.glob("activations/*/*/*"))
    trunk = MeanTrunk()
    assert_equal(prepared(tmp_path, trunk=trunk), prepared(tmp_path / "fresh"))
    assert trunk.seen == PLAIN + VIEWS


MANY = [f"n{i:04d}" for i in range(300)]


class Killed(MeanTrunk):
    """Ends its process at the second block of images."""

    def activations(self, images: Tensor) -> dict[int, Tensor]:
        if self.seen:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().activations(images)


def test_a_writer_that_is_killed_in_the_middle_leaves_nothing_that_is_read(tmp_path):
    assert in_a_process(lambda: prepared(tmp_path, train=MANY, trunk=Killed())) == -signal.SIGKILL
    assert list(tmp_path.glob("activations/*/*/.*.part"))
    assert_equal(prepared(tmp_path, train=MANY), prepared(tmp_path / "fresh", train=MANY))


def test_two_processes_that_prepare_the_same_plant_leave_what_one_would(tmp_path):
    both = [started(lambda: prepared(tmp_path, train=MANY)) for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    trunk = MeanTrunk()
    assert_equal(prepared(tmp_path, train=MANY, trunk=trunk), prepared(tmp_path / "fresh", train=MANY))
    assert trunk.seen == 0


def test_deleting_the_cache_loses_nothing(tmp_path):
    data = prepared(tmp_path)
    expected = all_of(data)
    shutil.rmtree(tmp_path / "activations")
    assert all(np.array_equal(value, expected[key]) for key, value in all_of(prepared(tmp_path)).items())
