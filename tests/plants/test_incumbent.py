"""The inspection that stands there already: its words, its table, and what it is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from plants import incumbent
from plants.costs import expected_cost
from plants.errors import InputError
from plants.incumbent import Word, judged, read_word, verdict_of_part, with_verdicts
from plants.metrics import report
from plants.plant import Plant
from plants.policy import OK, REJECT, REVIEW
from plants.scores import PartScores

PLANT = Plant.model_validate(
    {
        "name": "north",
        "images": "/north",
        "classes": {
            **{"gut": "ok", "fein": "ok", "Riss": "crack", "Delle": "dent"},
            "Fleck": {"fleet": "spot", "state": "absent"},
        },
        "ok": ["gut", "fein"],
        "costs": {"miss": 10_000, "false_alarm": 1_000, "review": 100, "defect_rate": [0.1, 0.1, 0.2]},
    }
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (" OK ", Word(OK)),
        ("Reject", Word(REJECT)),
        ("review", Word(REVIEW)),
        ("Riss", Word(REJECT, "Riss")),
        ("gut", Word(OK, "gut")),
        ("Fleck", Word(REJECT, "Fleck")),
        ("riss?", None),
        ("1", None),
    ],
)
def test_a_verdict_is_one_of_three_words_or_a_class_of_the_plant(text, word):
    assert read_word(text, plant=PLANT) == word


def test_one_frame_that_is_stopped_stops_the_part_and_then_one_that_is_asked_about():
    ok, ask, stop = Word(OK), Word(REVIEW), Word(REJECT)
    assert verdict_of_part([ok, ask, ok]) == ask
    assert verdict_of_part([ask, stop, ok]) == stop
    named = [Word(REJECT, name) for name in ("Riss", "Delle", "Riss")]
    assert verdict_of_part([ok, stop, *named]) == Word(REJECT, "Riss")
    assert verdict_of_part(named[:2]) == Word(REJECT, "Delle"), "of equals the first by name"


class Files:
    """One table in place of a plant's folder."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def list(self, uri: str) -> list[Any]:
        return []

    def read(self, uri: str, relpath: str) -> bytes:
        if self.text is None:
            raise FileNotFoundError(relpath)
        return self.text.encode()


def rows(*said: str | None) -> pd.DataFrame:
    names = [f"{i}.png" for i in range(len(said))]
    parts = [f"p{i // 2}" for i in range(len(said))]
    return pd.DataFrame({"frame": names, "part_id": parts, "incumbent": np.array(said, dtype=object)})


def told(text: str | None, *said: str | None) -> tuple[list[str | None], list[str]]:
    notes: list[str] = []
    plant = PLANT.model_copy(update={"incumbent": "/tables/line.csv"})
    found = with_verdicts(rows(*said), plant=plant, files=Files(text), notes=notes)
    return [None if pd.isna(one) else one for one in found["incumbent"]], notes


def test_a_table_of_its_own_names_frames_or_parts_and_goes_before_the_column():
    assert told("part_id,incumbent\np0,reject\n", None, None, "ok", None) == (["reject", "reject", "ok", None], [])
    assert told("frame;incumbent\n./1.png;ok\n3.png;Riss\n", None, "review", None, None)[0] == [
        None,
        "ok",
        None,
        "Riss",
    ]
    found, notes = told("part_id,incumbent\np7,ok\np8,ok\np1,\np0,ok\n", None, None, "ok", None)
    assert found == ["ok", "ok", "ok", None]
    assert notes == ["2 of 3 verdicts in /tables/line.csv are of no known part_id, first 'p7'"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file. Correct `incumbent` in the fleet file"),
        ("part,incumbent\np0,ok\n", "needs a column frame or part_id, and a column incumbent; it has part, inc"),
        ("part_id,verdict\np0,ok\n", "needs a column frame or part_id, and a column incumbent; it has part_id, v"),
        ("part_id,incumbent\np0,ok\np0,ok\np0,reject\n", "1 of them have two verdicts, the first is part_id 'p0'"),
    ],
)
def test_a_table_that_cannot_be_taken_is_refused_in_one_line(text, words):
    with pytest.raises(InputError) as caught:
        told(text, None, None)
    assert str(caught.value).startswith("plant north: file /tables/line.csv: field incumbent: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_verdict_is_said_in_one_line_at_import_and_by_the_audit():
    said = ("ok", "maybe", "maybe", "??", None, "Riss", "a", "b")
    words = "5 of 7 verdicts of the incumbent inspection are none: 'maybe' (2), '??' (1), 'a' (1) and 1 other words"
    notes: list[str] = []
    kept = with_verdicts(rows(*said), plant=PLANT, files=Files(None), notes=notes)
    assert [note.partition(";")[0] for note in notes] == [words]
    assert kept["incumbent"].dropna().tolist() == [word for word in said if word], "what was written is kept"
    ((level, kind, detail, _),) = incumbent.findings(PLANT, kept)
    assert (level, kind, detail) == ("warning", "incumbent_verdicts", notes[0])
    assert not list(incumbent.findings(PLANT, kept.iloc[[0, 4, 5]]))


CLASSES = ("gut", "fein", "Riss", "Delle")


def parts(*truth: str) -> PartScores:
    n = len(truth)
    return PartScores(
        part_ids=np.arange(n),
        lots=np.array([f"L{i % 12}" for i in range(n)]),
        environments=np.full(n, "line"),
        truth=np.array(truth, dtype=object),
        probs=np.full((n, 4), 0.25),
        classes=CLASSES,
        ok=("gut", "fein"),
    )


def stands(truth: list[str], said: list[str | None], *, part_of: list[int] | None = None) -> Any:
    at = np.array(part_of if part_of is not None else range(len(said)))
    return judged(parts(*truth), said=np.array(said, dtype=object), part_of=at, plant=PLANT)


def test_its_cost_is_what_its_verdicts_cost_at_the_plants_prices():
    truth = ["gut"] * 10 + ["Riss"] * 5
    said = ["ok"] * 7 + ["reject"] + ["review"] * 2 + ["ok", "reject", "review", "Riss", "Delle"]
    found = stands(truth, said)
    assert expected_cost(found.scores, found.policy) == pytest.approx(
        0.8 * (1_000 + 2 * 100) / 10 + 0.2 * (10_000 + 100) / 5
    )
    verdicts = report(found.scores, policy=found.policy)["verdicts"]
    rates = {key: verdicts[key]["value"] for key in ("escapes", "false_alarms", "reviews_of_good", "reviews_of_bad")}
    assert rates == {"escapes": 0.2, "false_alarms": 0.1, "reviews_of_good": 0.2, "reviews_of_bad": 0.2}


def test_only_parts_that_it_has_judged_count_and_its_words_that_are_none_do_not():
    found = stands(["gut", "gut", "Riss", "Riss"], ["ok", None, "who knows", "reject"])
    assert found.rows.tolist() == [True, False, False, True]
    assert found.scores.truth.tolist() == ["gut", "Riss"]
    assert stands(["gut", "Riss"], [None, "who knows"]) is None


def test_a_part_of_several_frames_has_one_verdict():
    found = stands(["gut", "Riss"], ["ok", "ok", "ok", "reject"], part_of=[0, 0, 1, 1])
    assert found.scores.p_defect.tolist() == [0.0, 1.0]


def test_classes_are_counted_where_it_names_them_and_a_part_stopped_without_a_name_is_named_wrongly():
    assert stands(["gut", "Riss"], ["ok", "reject"]).named is None
    found = stands(["gut", "fein", "Riss", "Riss", "Delle", "Delle"], ["ok", "ok", "Riss", "reject", "Delle", "Riss"])
    figures = report(found.named)
    recalls = {name: row["recall"]["value"] for name, row in figures["per_class"].items() if name}
    assert recalls == {"gut": 1.0, "fein": 1.0, "Riss": 0.5, "Delle": 0.5}
    assert figures["per_class"]["Riss"]["precision"] == 0.5
    assert figures["macro_f1"]["value"] == pytest.approx((1 + 1 + 0.5 + 2 / 3) / 4, abs=1e-6)
    absent = stands(["gut", "Riss"], ["ok", "Fleck"]).named
    assert report(absent)["per_class"]["Riss"]["recall"]["value"] == 0.0
