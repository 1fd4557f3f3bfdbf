from __future__ import annotations

from typing import Any

import pytest

from plants.certificate import Certificate, Host, float_stage, int8_stage, key, live_stage, takt_ms
from plants.variants import Shift

HOST = Host(cpu="x86_64 some core", flags=("avx2", "avx512_vnni"), runtime="onnxruntime 1")
NONE = Shift(n=32, flips=0, largest=0.0)


def certificate(**changes: Any) -> Certificate:
    given: dict[str, Any] = {
        "plant": "mill",
        "bundle": "b" * 64,
        "policy": "p" * 64,
        "variant": "int8",
        "host": HOST,
        "stages": (float_stage(NONE), int8_stage(NONE, judged=NONE), live_stage(NONE)),
        "made_at": "2026-03-01T00:00:00+00:00",
    }
    return Certificate(**(given | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": "c" * 64},
        {"policy": "q" * 64},
        {"variant": "float"},
        {"host": HOST.model_copy(update={"flags": ("avx2",)})},
        {"host": HOST.model_copy(update={"cpu": "another"})},
        {"host": HOST.model_copy(update={"runtime": "onnxruntime 2"})},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_bundle_policy_variant_cpu_or_runtime_needs_a_certificate_of_its_own(changes: dict[str, Any]):
    of = {"bundle": "b" * 64, "policy": "p" * 64, "host": HOST, "variant": "int8"}
    assert key(**of) == key(**of) == certificate().key  # type: ignore[arg-type]
    assert key(**(of | changes)) != key(**of)  # type: ignore[arg-type]


def test_hosts_of_one_kind_have_one_name_whatever_else_they_are():
    assert HOST.kind == Host.model_validate(HOST.model_dump()).kind
    assert HOST.kind != HOST.model_copy(update={"flags": ("avx2",)}).kind


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        (
            {"stages": (float_stage(Shift(n=32, flips=1, largest=0.0)),)},
            "the float files: 1 of 32 probe inputs flip, 0",
        ),
        (
            {"stages": (float_stage(Shift(n=32, flips=0, largest=0.02)),)},
            "the float files: answers differ by 0.02 on the",
        ),
        ({"stages": (int8_stage(Shift(n=32, flips=3, largest=0.1), judged=Shift(n=32, flips=1, largest=0.08)),)}, None),
        (
            {"stages": (int8_stage(Shift(n=32, flips=4, largest=0.1), judged=Shift(n=32, flips=1, largest=0.08)),)},
            "INT8: 4 of 32 probe inputs flip, 3 are allowed",
        ),
        (
            {"stages": (int8_stage(Shift(n=32, flips=0, largest=0.4), judged=Shift(n=32, flips=1, largest=0.08)),)},
            "INT8: answers differ by 0.4 on the probe, 0.13 is allowed",
        ),
        ({"stages": (live_stage(Shift(n=8, flips=1, largest=0.0)),)}, "the live route: 1 of 8 probe inputs flip, 0"),
        ({"p99_ms": 12.0}, None),
        ({"p99_ms": 12.0, "takt_ms": 12.0}, None),
        ({"p99_ms": 12.5, "takt_ms": 12.0}, "p99 of a part is 12.5 ms, the line's takt is 12 ms"),
    ],
)
def test_what_a_certificate_refuses(changes: dict[str, Any], words: str | None):
    found = certificate(**changes).faults
    assert len(found) == (words is not None)
    assert words is None or found[0].startswith(words)


def test_it_is_read_back_as_it_was_written():
    found = certificate(p99_ms=3.5, num_timed=100, takt_ms=9000.0)
    assert Certificate.model_validate_json(found.to_json()) == found


def test_the_takt_is_what_an_hour_leaves_a_part():
    assert takt_ms(400) == 9000
    assert takt_ms(None) is None
