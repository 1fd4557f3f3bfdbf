"""What a tile is taught, which rows are learned from, and in what order they are fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.packs import view_digests
from jobs.activations import TILES_PER_GOOD_FRAME, RunData, ok_mask, training_rows
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
    digests: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n, tiles = len(self.frames), self.tiles_per_frame
        self.frame_index = np.repeat(np.arange(n), tiles)
        x = np.tile(np.arange(tiles) * 100, n)
        self.tile_boxes = np.stack([x, 0 * x, x + 100, 0 * x + 100], axis=1).astype(np.int32)
        kinds = [np.random.default_rng(list(name.encode())) for name in self.frames]
        self.pixels = np.concatenate([rng.integers(0, 256, size=(tiles, 8, 8, 3), dtype=np.uint8) for rng in kinds])
        self.digests = view_digests(self.pixels)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


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


def test_which_good_tiles_are_kept_does_not_depend_on_other_frames():
    few = label_rows(("m", "p", "good", None, "train"), ("n", "q", "crack", None, "train"))
    more = label_rows(*[(f, f, "good", None, "train") for f in "abz"], *few.iloc[:, :5].itertuples(index=False))
    tables = [training_rows(PLANT, labels=t, pack=TilePack(sorted(t["frame"]), 40), seed=0) for t in (few, more)]
    kept = [sorted(t.loc[t["frame"] == "m", "input"] % 40) for t in tables]
    assert kept[0] == kept[1]
    assert len(kept[0]) == TILES_PER_GOOD_FRAME


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
