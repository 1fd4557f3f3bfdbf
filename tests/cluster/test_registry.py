from __future__ import annotations

import json
import multiprocessing
import pickle

import pytest

from cluster.registry import Bundles, Journal, Route, RouteTaken, before
from cluster.storage import DigestMismatch, open_store
from plants.errors import InputError
from plants.hashing import sha256


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(f"sqlite:///{tmp_path}/home/routes.db")


def bundle(letter: str) -> str:
    return letter * 64


def promote(journal: Journal, letter: str, **options) -> Route:
    return journal.promote("steel", bundle=bundle(letter), policy="p" * 64, who="ann", **options)


def test_a_promotion_is_the_plants_route_and_no_other_plants(journal):
    route = promote(journal, "a")
    assert (route.sequence, route.bundle, route.who, route.action) == (1, bundle("a"), "ann", "promote")
    assert journal.route("steel") == route
    assert journal.route("tiles") is None
    assert journal.current() == {"steel": route}


def test_the_routes_of_all_plants_come_in_one_reading(journal):
    for plant in ("a", "b", "c"):
        for letter in "xyz":
            journal.promote(plant, bundle=bundle(letter), policy="p", who="ann")
    journal.rollback("b", who="bob")
    assert {plant: route.bundle[0] for plant, route in journal.current().items()} == {"a": "z", "b": "y", "c": "z"}


def test_repeated_rollbacks_walk_back_and_stop_at_the_first_route(journal):
    for letter in "abcd":
        promote(journal, letter)
    back = [journal.rollback("steel", who="bob").bundle[0] for _ in range(3)]
    assert back == ["c", "b", "a"]
    with pytest.raises(InputError, match="plant steel: there is no earlier route"):
        journal.rollback("steel", who="bob")
    assert [(r.sequence, r.basis, r.action) for r in journal.history("steel")][4:] == [
        (5, 3, "rollback"),
        (6, 2, "rollback"),
        (7, 1, "rollback"),
    ]


def test_a_rollback_after_a_rollback_and_a_promotion_undoes_the_promotion(journal):
    for letter in "abc":
        promote(journal, letter)
    journal.rollback("steel", who="bob")
    promote(journal, "d")
    assert journal.rollback("steel", who="bob").bundle == bundle("b")
    assert journal.rollback("steel", who="bob").bundle == bundle("a")


def test_a_rollback_never_brings_a_challenger_back(journal):
    promote(journal, "a")
    canary = journal.challenge("steel", challenger=bundle("b"), shares={"challenger": 0.1}, who="ann")
    assert (canary.bundle, canary.challenger, dict(canary.shares)) == (bundle("a"), bundle("b"), {"challenger": 0.1})
    promote(journal, "b")
    back = journal.rollback("steel", who="bob")
    assert (back.bundle, back.challenger, dict(back.shares)) == (bundle("a"), None, {})
    with pytest.raises(InputError, match="no earlier route"):
        journal.rollback("steel", who="bob")


def test_a_rollback_during_a_canary_ends_the_canary(journal):
    promote(journal, "a")
    promote(journal, "b")
    journal.challenge("steel", challenger=bundle("c"), shares={"challenger": 0.1}, who="ann")
    back = journal.rollback("steel", who="bob")
    assert (back.bundle, back.challenger) == (bundle("b"), None)
    assert journal.rollback("steel", who="bob").bundle == bundle("a")


def test_promoting_the_same_bundle_twice_does_not_hold_a_rollback_up(journal):
    promote(journal, "a")
    promote(journal, "b")
    promote(journal, "b")
    assert journal.rollback("steel", who="bob").bundle == bundle("a")


def test_there_is_nothing_before_a_first_route(journal):
    promote(journal, "a")
    assert before(journal.history("steel")) is None


def test_who_decides_on_an_old_route_is_told_who_was_first(journal):
    seen = promote(journal, "a").sequence
    promote(journal, "b", expected=seen)
    with pytest.raises(RouteTaken, match="plant steel: ann was first: promote of bundle bbbbbbbbbbbb as route 2"):
        journal.promote("steel", bundle=bundle("c"), policy="p", who="bob", expected=seen)
    with pytest.raises(RouteTaken):
        journal.rollback("steel", who="bob", expected=seen)
    with pytest.raises(RouteTaken):
        promote(journal, "d", expected=0)
    assert journal.current()["steel"].bundle == bundle("b")


def test_a_plant_without_a_route_is_named(journal):
    with pytest.raises(InputError, match="plant tiles: has no route yet"):
        journal.rollback("tiles", who="bob")
    with pytest.raises(InputError, match="plant tiles: has no route yet"):
        journal.challenge("tiles", challenger=None, shares={}, who="bob")


def _race(journal, who, barrier, outcomes):
    won, told = 0, []
    for round_ in range(15):
        barrier.wait()
        expected = round_
        try:
            journal.promote("steel", bundle=bundle(who[0]), policy="p", who=who, expected=expected)
            won += 1
        except RouteTaken as fault:
            told.append(str(fault))
        barrier.wait()
    outcomes.put((who, won, told))


def test_of_two_promoters_in_two_processes_one_wins_and_the_other_is_told_who(journal):
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(2), context.Queue()
    people = ("ann", "bob")
    children = [context.Process(target=_race, args=(journal, who, barrier, outcomes)) for who in people]
    for child in children:
        child.start()
    results = {who: (won, told) for who, won, told in (outcomes.get(timeout=60) for _ in people)}
    for child in children:
        child.join()
    history = journal.history("steel")
    assert [route.sequence for route in history] == list(range(1, 16))
    for who, other in (people, people[::-1]):
        won, told = results[who]
        assert won == sum(route.who == who for route in history)
        assert len(told) == 15 - won
        assert all(f"{other} was first" in line for line in told)


def test_a_row_taken_between_look_and_insert_is_told_not_overwritten(journal):
    first = promote(journal, "a")
    late = first.model_copy(update={"bundle": bundle("b"), "who": "bob"})
    with pytest.raises(RouteTaken, match="ann was first"):
        journal._append(late)
    assert journal.history("steel") == [first]


def test_a_journal_can_be_sent_to_another_process(journal):
    promote(journal, "a")
    assert pickle.loads(pickle.dumps(journal)).current() == journal.current()


def make_bundle(folder, *, name: str = "model") -> str:
    """A folder as `plants.bundle` writes it: a manifest with the digest of every other file."""
    folder.mkdir(parents=True)
    files = {"branch.onnx": b"branch" + name.encode(), "card.md": b"# card"}
    for file, data in files.items():
        (folder / file).write_bytes(data)
    manifest = json.dumps({"name": name, "files": {file: sha256(data) for file, data in files.items()}})
    (folder / "manifest.json").write_text(manifest)
    return sha256(manifest.encode())


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def bundles(request, tmp_path) -> Bundles:
    place = tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket") + "/fleet"
    return Bundles(open_store(place))


def test_a_published_bundle_comes_back_byte_by_byte(bundles, tmp_path):
    digest = make_bundle(tmp_path / "made")
    assert not bundles.exists(digest)
    assert bundles.publish(tmp_path / "made") == digest == bundles.publish(tmp_path / "made")
    assert bundles.exists(digest)
    folder = bundles.fetch(digest, tmp_path / "cache")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "made").iterdir()
    }
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [digest]


def test_a_damaged_cache_is_fetched_again(bundles, tmp_path):
    digest = make_bundle(tmp_path / "made")
    bundles.publish(tmp_path / "made")
    folder = bundles.fetch(digest, tmp_path / "cache")
    (folder / "branch.onnx").write_bytes(b"x")
    assert (bundles.fetch(digest, tmp_path / "cache") / "branch.onnx").read_bytes() == b"branchmodel"


def test_one_changed_byte_in_the_store_is_refused_and_leaves_nothing(bundles, tmp_path):
    digest = make_bundle(tmp_path / "made")
    bundles.publish(tmp_path / "made")
    bundles.store.write(f"bundles/{digest}/branch.onnx", b"branchmodem")
    with pytest.raises(DigestMismatch, match=r"branch\.onnx"):
        bundles.fetch(digest, tmp_path / "cache")
    bundles.store.write(f"bundles/{digest}/manifest.json", b"{}")
    with pytest.raises(DigestMismatch, match=r"manifest\.json"):
        bundles.fetch(digest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_bundle_that_is_not_what_its_manifest_says_is_not_published(tmp_path):
    store = open_store(tmp_path / "store")
    digest = make_bundle(tmp_path / "made")
    (tmp_path / "made/card.md").write_bytes(b"# other")
    with pytest.raises(InputError, match=r"card\.md: is not what the manifest says"):
        Bundles(store).publish(tmp_path / "made")
    assert not Bundles(store).exists(digest)


@pytest.mark.parametrize("manifest", ["{}", "[]", "x", '{"files": {"../x": "0"}}', '{"files": {"a/b": "0"}}'])
def test_a_manifest_that_names_no_files_or_foreign_ones_is_refused(tmp_path, manifest):
    (tmp_path / "made").mkdir()
    (tmp_path / "made/manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="the manifest names"):
        Bundles(open_store(tmp_path / "store")).publish(tmp_path / "made")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(InputError, match="is not a bundle"):
        Bundles(open_store(tmp_path / "store")).publish(tmp_path)


def test_an_unknown_bundle_is_named(bundles, tmp_path):
    with pytest.raises(FileNotFoundError, match="bundles/0000"):
        bundles.fetch("0" * 64, tmp_path / "cache")


def test_a_trunk_is_kept_once_under_its_digest(bundles, tmp_path):
    (tmp_path / "t.onnx").write_bytes(b"trunk")
    digest = bundles.publish_trunk(tmp_path / "t.onnx")
    assert digest == sha256(b"trunk") == bundles.publish_trunk(tmp_path / "t.onnx")
    path = bundles.fetch_trunk(digest, tmp_path / "cache")
    path.write_bytes(b"broken")
    assert bundles.fetch_trunk(digest, tmp_path / "cache").read_bytes() == b"trunk"
