from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import LocalStore
from plants.errors import InputError
from serving.compaction import compact
from serving.log_verbs import checked_day, told
from serving.predictions import SCHEMA
from serving.segments import Record, parquet_key, record_key
from serving.tracing import find
from tests.serving.judgements import NOON, log_one, make, row
from tests.serving.toys import Works

NOW = datetime.now(UTC)


def written(store: LocalStore, tmp_path: Path, *, days: int = 3, **kwargs: Any) -> None:
    """Ten parts a day, the first judged twice, and the same ids at another plant."""
    for day in range(days):
        at = NOON + timedelta(days=day)
        log = make(store, tmp_path, replica=f"r{day}", now=lambda at=at: at)
        for number in [*range(10), 0]:
            log_one(log, "mill", part_id=f"{day}-{number}", **kwargs)
            log_one(log, "foundry", part_id=f"{day}-{number}")
            log.flush()
        log.close()


@pytest.mark.parametrize("is_compacted", [False, True, None])
def test_every_judgement_of_a_part_is_found_wherever_it_lies(tmp_path: Path, is_compacted: bool | None):
    store = LocalStore(tmp_path / "store")
    written(store, tmp_path)
    if is_compacted is not False:
        compact(store, today="2026-06-01", until="2026-05-05" if is_compacted is None else "9999")
    found = find(store, plant="mill", part_id="1-0").rows
    assert [one["request_id"] for one in found] == ["r1-1", "r1-21"]
    assert found[0]["probabilities"] == {"ok": 0.25, "Kratzer groß": 0.75}
    assert found[0]["frames"] == ["ab" * 32]
    assert {one["plant"] for one in found} == {"mill"}
    assert [one["part_id"] for one in find(store, plant="mill", part_id="r2-5").rows] == ["2-2"]


def test_only_the_days_asked_for_are_looked_through(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    written(store, tmp_path)
    compact(store, today="2026-06-01", until="2026-05-04")
    assert len(find(store, plant="mill", part_id="0-3", since="2026-05-04", until="2026-05-04").rows) == 1
    assert find(store, plant="mill", part_id="0-3", since="2026-05-05").rows == []
    assert find(store, plant="mill", part_id="2-3", until="2026-05-05").index.days == ["2026-05-04", "2026-05-05"]


def test_one_part_of_three_million_verdicts_is_found_in_two_seconds(tmp_path: Path):
    store, num_days, num_rows = LocalStore(tmp_path / "store"), 30, 100_000
    base = {name: [None] * num_rows for name in SCHEMA.names}
    ids = [f"{n:08d}" for n in range(num_rows)]
    base |= {"part_id": ids, "request_id": ids, "sequence": range(num_rows), "plant": ["mill"] * num_rows}
    table = pa.table({f.name: pa.array(base[f.name], type=f.type) for f in SCHEMA}, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=10_000)
    for number in range(num_days):
        day = f"2026-05-{number + 1:02d}"
        store.write(parquet_key(day, "mill", "b"), bytes(sink.getvalue()))
        store.write_json(record_key(day), Record(day, {"b": {"mill": num_rows}}).to_json())
    begun = time.process_time()
    assert len(find(store, plant="mill", part_id="00054711").rows) == num_days
    assert time.process_time() - begun < 2


@pytest.fixture
def served(works: Works, tmp_path: Path) -> Works:
    """A works whose log has part 4711, judged by a route of the journal, and one verdict lost."""
    bundle, policy = works.bundle("own"), works.policy()
    works.promote(bundle=bundle, policy=policy)
    log = make(works.store, tmp_path, now=lambda: datetime.now(UTC))
    log_one(log, part_id="4711", bundle=bundle, policy=policy)
    log.next_id()
    log_one(log, part_id="4712", bundle="e" * 64, policy=policy)
    log.close()
    (tmp_path / "fleet.yaml").write_text(FLEET.format(store=works.store.root, images=tmp_path), encoding="utf-8")
    return works


FLEET = """
fleet: toys
store: {store}
trunks: [{{backbone: resnet18, weights: embedded, size_px: 32, cuts: [0]}}]
plants:
  - {{name: mill, images: {images}, ok: [ok], classes: {{ok: ok, dent: dent}}, environments: {{cam-1: {{}}}}}}
"""


def command(works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, Any]:
    """Runs a verb as a person does. Returns the exit code, what was said and the JSON document."""
    import crossplant

    out = tmp_path / "out.json"
    out.unlink(missing_ok=True)
    said: list[str] = []
    monkeypatch.setenv("CROSSPLANT_HOME", str(works.settings.home))
    monkeypatch.setattr(crossplant.console, "print", lambda text, **_: said.append(str(text)))
    words = (*words, "--fleet", str(tmp_path / "fleet.yaml"), "--json", str(out))
    monkeypatch.setattr("sys.argv", ["crossplant", *words])
    with pytest.raises(SystemExit) as ended:
        crossplant.main()
    return int(ended.value.code or 0), "\n".join(said), json.loads(out.read_text()) if out.exists() else None


def test_one_command_says_which_model_policy_and_frames_judged_a_part_and_who_made_them_the_route(
    served: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code, said, document = command(served, tmp_path, monkeypatch, "trace", "--plant", "mill", "4711")
    assert code == 0
    (one,) = document["judgements"]
    route = served.journal.route("mill")
    assert route is not None
    assert one["model"] == {
        "bundle": route.bundle,
        "policy": route.policy,
        "arm": "champion",
        "name": "own",
        "kind": "own",
    }
    assert (one["route"]["who"], one["route"]["sequence"], one["route"]["at"]) == ("test", 1, route.at)
    assert one["frames"] == ["ab" * 32]
    for words in (
        "reject Kratzer groß, confidence 0.750",
        "own (own)",
        route.bundle,
        route.policy,
        "by test",
        "ab" * 32,
    ):
        assert words in said
    assert "gap: 1 verdicts" in said
    assert document["gaps"][0]["first"] == document["gaps"][0]["last"] == 2


def test_a_bundle_that_nobody_knows_any_more_is_said_and_the_judgement_is_told_all_the_same(
    served: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code, said, document = command(served, tmp_path, monkeypatch, "trace", "--plant", "mill", "4712")
    assert code == 0
    assert document["judgements"][0]["route"] is None
    assert "its manifest is not in the store" in said
    assert "the journal has no such route" in said


def test_a_part_that_is_not_there_is_one_line_with_the_days_and_the_gaps_and_exit_code_1(
    served: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code, said, document = command(served, tmp_path, monkeypatch, "trace", "--plant", "mill", "9999")
    assert (code, document["judgements"]) == (1, [])
    day = document["days"][0]
    assert f"part 9999 is not in the log of mill from {day} to {day}; 1 verdicts are missing there" in said


def test_the_log_says_what_it_holds_and_what_is_missing_and_compacts(
    served: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, said, document = command(served, tmp_path, monkeypatch, "log")
    assert [(row["verdicts"], row["segments"]) for row in document["days"]] == [(2, 2)]
    assert (document["missing"], document["lost"]) == (1, 1)
    assert "r1-2 to r1-2" in said
    _, _, document = command(served, tmp_path, monkeypatch, "log", "--compact")
    assert document["compacted"][0]["rows"] == 2
    assert document["days"][0]["segments"] == 0
    code, _, document = command(served, tmp_path, monkeypatch, "trace", "--plant", "mill", "4711")
    assert (code, len(document["judgements"])) == (0, 1)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "4.5.2026"])
def test_what_is_no_day_is_refused_in_one_line(text: str):
    with pytest.raises(InputError, match="is not a day"):
        checked_day(text, "--since")


def test_a_gap_is_told_by_the_request_ids_that_are_missing():
    from serving.gaps import LOST, Gap

    assert told(Gap("r1@0", 3, 5, "2026-05-04", "2026-05-04", LOST)).startswith(
        "gap: 3 verdicts of 2026-05-04 (r1-3 to r1-5): lost"
    )


def test_a_row_has_every_field_that_the_answer_of_a_part_needs():
    assert set(row("mill", "r-1")) <= set(SCHEMA.names)
