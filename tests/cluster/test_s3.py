from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback

import pytest
from flaky_proxy import FlakyProxy

from cluster.s3 import Retry, S3Store
from cluster.storage import MissingFile, open_store
from plants.errors import InputError

SECRETS = ("operator-secret", "topsecret", "fleet:operator", "AKIAWRONG")


@pytest.mark.parametrize(
    ("retry", "pauses"),
    [
        (Retry(attempts=1), []),
        (Retry(attempts=4, first_s=1, longest_s=9), [1, 2, 4]),
        (Retry(attempts=5, first_s=1, longest_s=3), [1, 2, 3, 3]),
    ],
)
def test_pauses_double_up_to_the_longest(retry, pauses):
    assert list(retry.pauses()) == pauses


def test_the_default_bears_a_store_that_is_away_for_15_seconds():
    assert 15 <= sum(Retry().pauses()) <= 30


@pytest.fixture
def through_proxy(object_store, bucket, monkeypatch):
    """A store that is reached through a proxy that can spoil connections."""
    with FlakyProxy(object_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy, S3Store(bucket.removeprefix("s3://") + "/p", retry=Retry(first_s=0.01, longest_s=0.05))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuse", "busy", "cut"])
def test_reads_and_writes_survive_a_flaky_line(through_proxy, fault, tmp_path):
    proxy, store = through_proxy
    payload = os.urandom(200_000)
    proxy.spoil(fault, times=3)
    store.write("a", payload)
    proxy.spoil(fault, times=3)
    assert store.read("a") == payload
    proxy.spoil(fault, times=2)
    assert store.download("a", tmp_path / "a").read_bytes() == payload
    assert proxy.spoiled >= 5


@pytest.mark.slow
def test_a_store_that_stays_away_is_one_line_after_the_attempts(through_proxy):
    proxy, store = through_proxy
    proxy.spoil("refuse", times=1000)
    with pytest.raises(InputError, match="did not answer in 8 attempts") as caught:
        store.read("a")
    assert "AWS_ENDPOINT_URL" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.slow
def test_a_store_that_restarts_is_waited_for(object_store, bucket):
    store = open_store(bucket)
    store.write("a", b"1")
    object_store.stop("proxy")
    restart = threading.Timer(1.0, object_store.start, args=("proxy",))
    restart.start()
    try:
        assert store.read("a") == b"1"
        store.write("b", b"2")
    finally:
        restart.join()
    assert [e.key for e in store.list()] == ["a", "b"]


WRONG_KEYS = [
    {"AWS_SECRET_ACCESS_KEY": "topsecret"},
    {"AWS_ACCESS_KEY_ID": "AKIAWRONG:x"},
    {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
]
ACTIONS = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("a", b"1"),
    "list": lambda store: store.list(),
    "exists": lambda store: store.exists("a"),
    "download": lambda store: store.download("a", "unused"),
}


@pytest.mark.slow
@pytest.mark.parametrize("keys", WRONG_KEYS, ids=["wrong secret", "unknown account", "none"])
def test_wrong_keys_are_one_line_at_once_that_holds_no_secret(bucket, monkeypatch, tmp_path, keys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in keys.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    for action in ACTIONS.values():
        began = time.monotonic()
        with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID") as caught:
            action(open_store(bucket))
        assert time.monotonic() - began < 10
        shown = "".join(traceback.format_exception(caught.value))
        assert not any(secret in shown for secret in SECRETS)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_missing_bucket_is_named(object_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for action in ACTIONS.values():
        with pytest.raises(InputError, match=r"s3://no-such-bucket: there is no such bucket") as caught:
            action(open_store("s3://no-such-bucket/prefix"))
        assert not isinstance(caught.value, MissingFile)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_impossible_bucket_name_is_one_line(object_store):
    with pytest.raises(InputError, match="not one of a bucket"):
        open_store("s3://No_Bucket..x/y").write("a", b"1")


@pytest.mark.slow
def test_large_files_go_in_parts_and_come_back_whole(bucket, tmp_path):
    source = tmp_path / "large"
    source.write_bytes(os.urandom(1 << 20) * 110)
    store = open_store(bucket)
    digest = store.upload(source, "large")
    store.download("large", tmp_path / "back", sha256=digest)
    assert [e[:2] for e in store.list()] == [("large", 110 << 20)]


def _read_in_child(store, queue):
    queue.put(store.read("a"))


@pytest.mark.slow
def test_a_forked_process_opens_its_own_connection(bucket):
    store = open_store(bucket)
    store.write("a", b"1")
    queue = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=30) == b"1"
    child.join()


@pytest.mark.slow
def test_repr_and_pickle_hold_the_address_and_no_keys(bucket):
    import pickle

    store = open_store(f"{bucket}/p")
    store.list()
    assert repr(store) == f"S3Store('{bucket}/p')"
    assert not any(secret.encode() in pickle.dumps(store) for secret in SECRETS)
