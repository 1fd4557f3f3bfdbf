from __future__ import annotations

import os
import pickle
import threading

import pytest

from cluster.storage import DigestMismatch, LocalStore, MissingFile, PlantFiles, Store, open_store
from plants.errors import InputError
from plants.hashing import sha256


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def store(request, tmp_path) -> Store:
    """The same claims hold for a folder and for a bucket."""
    if request.param == "local":
        return open_store(tmp_path / "store")
    return open_store(request.getfixturevalue("bucket") + "/some/prefix")


def test_what_was_written_is_read_back_and_named_by_its_digest(store):
    digest = store.write("a/b.bin", b"hello")
    assert digest == sha256(b"hello")
    assert store.read("a/b.bin") == b"hello"
    assert store.read_checked("a/b.bin", digest) == b"hello"
    store.write("a/b.bin", b"")
    assert store.read("a/b.bin") == b""


def test_names_may_hold_spaces_umlauts_and_signs(store):
    for key in ("Kratzer groß/ok 1.png", "a+b/c=d&e.png", "100%/[x]*?.png"):
        store.write(key, b"1")
        assert store.read(key) == b"1"
        assert store.exists(key)
    assert len(store.list()) == 3


def test_a_listing_is_sorted_deep_and_keeps_to_its_folder(store):
    for key in ("b/2", "b/1/x", "bb/3", "a"):
        store.write(key, key.encode())
    assert [e[:2] for e in store.list()] == [("a", 1), ("b/1/x", 5), ("b/2", 3), ("bb/3", 4)]
    assert [e.key for e in store.list("b")] == [e.key for e in store.list("b/")] == ["b/1/x", "b/2"]
    assert store.list("none") == []


def test_only_whole_objects_exist(store):
    store.write("a/b", b"1")
    assert store.exists("a/b")
    assert not store.exists("a")
    assert not store.exists("a/c")


def test_deleting_twice_is_no_error(store):
    store.write("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_a_missing_object_is_named_and_is_a_file_not_found(store):
    with pytest.raises(MissingFile, match="no/such"):
        store.read("no/such")
    with pytest.raises(FileNotFoundError):
        store.download("no/such", "unused")


def test_changed_bytes_are_refused_and_leave_nothing_behind(store, tmp_path):
    digest = store.write("a", b"right")
    store.write("a", b"wrong")
    with pytest.raises(DigestMismatch, match="has changed since it was recorded"):
        store.read_checked("a", digest)
    with pytest.raises(DigestMismatch):
        store.download("a", tmp_path / "out/a", sha256=digest)
    assert list((tmp_path / "out").iterdir()) == []


def test_folders_go_up_and_come_down_whole(store, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "one").write_bytes(b"1")
    (source / "deep/two").write_bytes(os.urandom(300_000))
    digests = store.upload_folder(source, "up/here")
    assert digests == {name: sha256((source / name).read_bytes()) for name in ("one", "deep/two")}
    store.download_folder("up/here", tmp_path / "back")
    assert (tmp_path / "back/deep/two").read_bytes() == (source / "deep/two").read_bytes()
    with pytest.raises(MissingFile):
        store.download_folder("up/there", tmp_path / "back")


def test_json_of_equal_values_has_equal_bytes(store):
    assert store.write_json("a.json", {"x": 1, "y": ["ß", None]}) == store.write_json(
        "b.json", {"y": ["ß", None], "x": 1}
    )
    assert store.read_json("a.json") == {"x": 1, "y": ["ß", None]}
    store.write("c.json", b"{")
    with pytest.raises(InputError, match=r"c\.json: is not JSON"):
        store.read_json("c.json")


def test_a_store_can_be_sent_to_another_process(store):
    store.write("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("a") == b"1"
    assert copy.uri == store.uri


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "", "a\\..\\x"])
def test_a_key_cannot_leave_the_store(tmp_path, key):
    with pytest.raises(InputError, match="relative path"):
        open_store(tmp_path).read(key)


def test_readers_never_see_a_half_written_file(tmp_path):
    store, seen, done = open_store(tmp_path), set(), threading.Event()
    store.write("a", b"0" * 1_000_000)

    def read():
        while not done.is_set():
            seen.add(store.read("a"))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 20):
        store.write("a", str(i % 10).encode() * 1_000_000)
    done.set()
    reader.join()
    assert all(len(data) == 1_000_000 and len(set(data)) == 1 for data in seen)


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    store = LocalStore(tmp_path)
    store.write("a", b"old")
    with pytest.raises(TypeError):
        store.write("a", "not bytes")  # type: ignore[arg-type]
    assert store.read("a") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_in_the_way_is_one_line(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="Check the path"):
        open_store(tmp_path).write("a", b"1")


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_bytes(b"1")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/link").symlink_to(tmp_path / "data")
    (tmp_path / "data/loop").symlink_to(tmp_path / "store")
    assert [e.key for e in open_store(tmp_path / "store").list()] == ["link/x"]


def test_an_address_that_is_neither_path_nor_bucket_is_refused():
    with pytest.raises(InputError, match="neither a path nor s3"):
        open_store("ftp://host/x")
    with pytest.raises(InputError, match="names no bucket"):
        open_store("s3:///x")
    assert open_store("file:///tmp/x").uri == "/tmp/x"


def test_keys_in_an_address_are_refused_and_not_repeated():
    with pytest.raises(InputError, match="credentials do not belong") as caught:
        open_store("s3://AKIAKEY:topsecret@bucket/x")
    assert "topsecret" not in str(caught.value)


def test_a_plants_files_are_listed_and_read_wherever_they_lie(store):
    store.write("crazing/a b.jpg", b"123")
    files = pickle.loads(pickle.dumps(PlantFiles()))
    assert [one[:2] for one in files.list(store.uri)] == [("crazing/a b.jpg", 3)]
    assert files.read(store.uri, "crazing/a b.jpg") == b"123"
    assert pickle.loads(pickle.dumps(files)).read(store.uri, "crazing/a b.jpg") == b"123"


def test_a_plants_missing_folder_is_an_error_not_an_empty_plant(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        PlantFiles().list(str(tmp_path / "none"))
