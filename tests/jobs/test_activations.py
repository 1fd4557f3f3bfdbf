"""What a tile is taught, which rows are learned from, and a cache that can neither lie nor be asked twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.retention import sweep
from cluster.storage import LocalStore
from jobs.activations import TILES_PER_GOOD_FRAME, PlantData, RunData, ok_mask, prepare, training_rows
from jobs.recipe import Augment
from plants.plant import Plant
from tests.jobs.toys import toy_data, toy_fleet

PLANT = toy_fleet("north").plant("north")
NO_OK = Plant.model_validate({"name": "north", "images": "i", "classes": {"crack": "crack", "dent": "dent"}})


@dataclass
class TilePack:
    """Frames in tiles of 100 pixels, in a row."""

    frames: list[str]
    tiles_per_frame: int = 3
    frame_index: np.ndarray = field(init=False)
    tile_boxes: np.ndarray = field(init=False)
    pixels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n, tiles = len(self.frames), self.tiles_per_frame
        self.frame_index = np.repeat(np.arange(n), tiles)
        x = np.tile(np.arange(tiles) * 100, n)
        self.tile_boxes = np.stack([x, 0 * x, x + 100, 0 * x + 100], axis=1).astype(np.int32)
        self.pixels = np.random.default_rng(0).integers(0, 256, size=(n * tiles, 8, 8, 3), dtype=np.uint8)


def label_rows(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """(frame, part, class, box, role) each."""
    table = pd.DataFrame(rows, columns=["frame", "part_id", "class", "box", "role"])
    return table.assign(lot=table["part_id"], environment="default", width_px=300, height_px=100)


def tile_labels(*rows: tuple[Any, ...], plant: Plant = PLANT, tiles: int = 3) -> list[str]:
    """Labels of the tiles that are kept, as frame:x0=label."""
    table = label_rows(*rows)
    pack = TilePack(list(table["frame"]), tiles)
    found = training_rows(plant, labels=table, pack=pack, seed=0)
    x0 = pack.tile_boxes[found["input"], 0]
    return [f"{frame}:{x}={label}" for frame, x, label in zip(found["frame"], x0, found["label"], strict=True)]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # the whole box in the first tile
        ([10, 10, 30, 30], ["a:0=crack", "a:100=good", "a:200=good"]),
        # two halves: both tiles hold enough
        ([90, 10, 110, 30], ["a:0=crack", "a:100=crack", "a:200=good"]),
        # a quarter in the first: neither good nor crack, so it is left out
        ([95, 10, 115, 30], ["a:100=crack", "a:200=good"]),
        # a box over all tiles: no tile holds half of it, none is good
        ([0, 0, 300, 50], []),
        # without a box every tile carries the frame's label
        (None, ["a:0=crack", "a:100=crack", "a:200=crack"]),
        (float("nan"), ["a:0=crack", "a:100=crack", "a:200=crack"]),
    ],
)
def test_a_tile_carries_a_defect_when_it_holds_enough_of_its_box(box, expected):
    assert tile_labels(("a", "p", "crack", box, "train")) == expected


def test_a_tile_whose_defect_is_not_judged_is_taught_as_nothing():
    frame = ("a", "p", "crack", [10, 10, 30, 30], "train")
    environment = {"geometry": {"ignore": [[[5, 5], [40, 5], [40, 40], [5, 40]]]}}
    masked = PLANT.model_validate(PLANT.model_dump() | {"environments": {"default": environment}})
    assert tile_labels(frame, plant=masked) == ["a:100=good", "a:200=good"]


def test_a_good_frame_gives_good_tiles_whatever_its_box_says():
    assert tile_labels(("a", "p", "good", [0, 0, 50, 50], "train")) == ["a:0=good", "a:100=good", "a:200=good"]


def test_in_a_part_of_several_frames_boxes_say_which_frames_show_the_defect():
    rows = (("a", "p", "crack", [10, 10, 30, 30], "train"), ("b", "p", "crack", None, "train"))
    assert tile_labels(*rows, tiles=1) == ["a:0=crack", "b:0=good"]
    unboxed = (("a", "p", "crack", None, "train"), ("b", "p", "crack", None, "train"))
    assert tile_labels(*unboxed, tiles=1) == ["a:0=crack", "b:0=crack"]


def test_where_no_class_is_good_no_tile_is_called_good():
    assert tile_labels(("a", "p", "dent", [10, 10, 30, 30], "train"), plant=NO_OK) == [
        "a:0=dent",
        "a:100=dent",
        "a:200=dent",
    ]


def test_a_row_without_a_class_is_marked_and_refused_by_the_run_that_would_learn_from_it():
    assert tile_labels(("a", "p", None, None, "train"), tiles=1) == ["a:0=?"]


def test_rows_of_decide_and_test_are_never_learned_from_and_train_comes_first():
    rows = [(role, role, "good", None, role) for role in ("test", "select", "decide", "train")]
    assert tile_labels(*rows, tiles=1) == ["train:0=good", "select:0=good"]


def test_good_tiles_are_thinned_by_seed_and_in_select_only_marked():
    table = label_rows(
        ("a", "p", "good", None, "train"), ("b", "q", "crack", None, "train"), ("c", "r", "good", None, "select")
    )
    pack = TilePack(["a", "b", "c"], 40)
    found = [training_rows(PLANT, labels=table, pack=pack, seed=seed) for seed in (0, 0, 1)]
    assert found[0]["frame"].value_counts().to_dict() == {"a": TILES_PER_GOOD_FRAME, "b": 40, "c": 40}
    learned = found[0][found[0]["is_learned"]]
    assert learned["frame"].value_counts().to_dict() == {"a": TILES_PER_GOOD_FRAME, "b": 40, "c": TILES_PER_GOOD_FRAME}
    assert found[0].equals(found[1])
    assert not found[0].equals(found[2])


@dataclass
class MeanTrunk:
    """Activations are the mean colour; counts the images it saw."""

    weights_digest: str = "w"
    seen: int = 0

    def activations(self, images: np.ndarray) -> dict[int, np.ndarray]:
        self.seen += len(images)
        return {0: images.mean((1, 2)).astype(np.float32), 1: images.transpose(0, 3, 1, 2).astype(np.float32)}


def prepared(folder: Path, *, trunk: MeanTrunk, plant: Plant = PLANT, **more: Any) -> PlantData:
    table = label_rows(
        *[(f"t{i}", f"t{i}", "good", None, "train") for i in range(5)], ("s", "s", "crack", None, "select")
    )
    pack = TilePack(list(table["frame"]), 1)
    rows = training_rows(plant, labels=table, pack=pack, seed=0)
    given: dict[str, Any] = {"pack_digest": "p", "cuts": (0, 1), "policy": Augment(), "views": 3, "seed": 0}
    given |= {"since": datetime(2026, 3, 1, tzinfo=UTC), **more}
    return prepare(plant, rows=rows, pack=pack, trunk=trunk, cache=folder, **given)


def test_activations_go_when_a_frame_they_were_made_from_is_too_old(tmp_path):
    north = PLANT.model_copy(update={"retention_days": 30})
    made = prepared(tmp_path, trunk=MeanTrunk(), plant=north, since=datetime(2026, 3, 1, tzinfo=UTC))
    given = {"plants": [north]}
    assert sweep(LocalStore(tmp_path), "activations", now=datetime(2026, 3, 31, tzinfo=UTC), **given) == []
    sweep(LocalStore(tmp_path), "activations", now=datetime(2026, 4, 1, tzinfo=UTC), **given)
    assert not list(made.folder.iterdir())


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


def test_the_same_rows_in_another_pack_are_seen_in_the_same_views(tmp_path):
    one, other = (prepared(tmp_path, trunk=MeanTrunk(), pack_digest=digest) for digest in ("p", "q"))
    assert one.folder != other.folder
    ids, views = np.arange(5), np.full(5, 2)
    assert np.array_equal(one.fetch(1, ids=ids, views=views), other.fetch(1, ids=ids, views=views))


def test_more_views_are_added_to_the_ones_that_are_there(tmp_path):
    trunk = MeanTrunk()
    prepared(tmp_path, trunk=trunk, views=1)
    prepared(tmp_path, trunk=trunk, views=2)
    assert trunk.seen == 6 + 5


@pytest.mark.parametrize(
    "change",
    [
        {"pack_digest": "q"},
        {"policy": Augment(strength=1.0)},
        {"seed": 1},
        {"cuts": (0,)},
        {"trunk": MeanTrunk(weights_digest="v")},
        {"plant": PLANT.model_copy(update={"environments": {"default": PLANT.environments["default"].model_copy(
            update={"forbid": ("flip",)})}})},
    ],
    ids=["pack", "augmentation", "seed", "cuts", "weights", "forbidden"],
)  # fmt: skip
def test_nothing_that_changes_an_activation_hits_an_old_entry(tmp_path, change):
    assert prepared(tmp_path, **{"trunk": MeanTrunk(), **change}).folder != prepared(tmp_path, trunk=MeanTrunk()).folder


def test_a_station_that_forbids_everything_has_views_equal_to_the_plain_image(tmp_path):
    everything = ("flip", "rotate", "brightness", "contrast", "noise")
    station = PLANT.environments["default"].model_copy(update={"forbid": everything})
    data = prepared(tmp_path, trunk=MeanTrunk(), plant=PLANT.model_copy(update={"environments": {"default": station}}))
    ids = np.arange(5)
    plain, view = (data.fetch(0, ids=ids, views=np.full(5, v)) for v in (0, 1))
    assert np.array_equal(plain, view)
    free = prepared(tmp_path, trunk=MeanTrunk())
    assert not np.array_equal(*(free.fetch(0, ids=ids, views=np.full(5, v)) for v in (0, 1)))


def test_a_fetch_keeps_the_order_of_what_was_asked_over_plants_and_views(tmp_path):
    fleet = toy_fleet("north", "south")
    data = RunData(tuple(toy_data(tmp_path / n, fleet=fleet, name=n, seed=i) for i, n in enumerate(("north", "south"))))
    assert list(data.offsets) == [0, 96, 192]
    assert list(data.select_ids(1)) == list(range(160, 192))
    ids, views = np.array([100, 3, 97, 0]), np.array([1, 0, 0, 1])
    found = data.fetch(0, ids=ids, views=views).numpy()
    for row, (at, view) in zip(found, zip(ids, views, strict=True), strict=True):
        owner = data.plants[at // 96]
        expected = np.load(owner.folder / f"cut0.view{view}.npy")[at % 96]
        assert np.array_equal(row, expected.astype(np.float32))
    assert set(data.column("plant")[data.train_ids]) == {"north", "south"}
    with pytest.raises(ValueError, match="no rows"):
        data.fetch(0, ids=np.array([], dtype=int))


def test_leaves_of_good_parts_are_known_by_name():
    assert ok_mask(["ok", "ok/matt", "okay", "crack"]).tolist() == [True, True, False, False]
