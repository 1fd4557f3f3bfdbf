"""INT8 serves where it is faster here and answers as it did where it was judged; float serves everywhere else."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from plants.certificate import Host
from plants.errors import InputError
from plants.variants import Pair, PlantGate, Shift
from serving.loading import Loader
from serving.local import local_predictor
from serving.variants import Variants, files_of, variant_of
from tests.serving.int8 import GATE, add_int8, slow_float
from tests.serving.toys import Works

HOST = Host(cpu="a core", flags=("avx2",), runtime="onnxruntime 1")
SLOW = 40


def loader(works: Works, *, host: Host = HOST) -> Loader:
    home = works.root / "home"
    return Loader(
        folder_of=lambda digest: works.bundles.fetch(digest, home / "bundles"),
        trunk_of=lambda sha256: works.bundles.fetch_trunk(sha256, home / "trunks"),
        choose=Variants(host=host, folder=home / "variants"),
    )


def served(works: Works, digest: str, *, host: Host = HOST) -> str:
    return variant_of(loader(works, host=host).scorer(digest))


def timed(works: Works) -> list[Path]:
    return sorted((works.root / "home" / "variants").glob("*.json"))


def test_int8_serves_where_it_is_faster(works: Works):
    slow_float(works)
    assert served(works, add_int8(works, works.bundle("own"))) == "int8"


LOST = GATE.model_copy(update={"macro_f1": Pair(float32=0.9, int8=0.8)})


@pytest.mark.parametrize("gate", [{}, {"foundry": GATE}, {"mill": LOST}], ids=["nowhere", "elsewhere", "it lost"])
def test_int8_that_was_not_shown_to_hold_at_a_plant_does_not_serve_it_however_fast_it_is(
    works: Works, caplog: pytest.LogCaptureFixture, gate: dict[str, PlantGate]
):
    slow_float(works)
    with caplog.at_level(logging.WARNING):
        assert served(works, add_int8(works, works.bundle("own"), gate=gate)) == "float"
    assert "INT8 was not shown to hold at mill" in caplog.text
    assert not timed(works)


def test_float_serves_where_int8_is_slower(works: Works):
    assert served(works, add_int8(works, works.bundle("own"), layers=SLOW)) == "float"


def test_a_bundle_from_before_int8_serves_in_float_and_nothing_is_timed(works: Works):
    assert served(works, works.bundle("own")) == "float"
    assert not timed(works)


def test_a_pair_of_trunks_is_timed_once_a_kind_of_host_whatever_is_on_it(works: Works):
    slow_float(works)
    first, second = (add_int8(works, works.bundle(name, sharpness=s)) for name, s in (("a", 20.0), ("b", 19.0)))
    served(works, first)
    (path,) = timed(works)
    found = json.loads(path.read_text())
    assert found["host"]["cpu"] == "a core"
    path.write_text(json.dumps({**found, "ratio": 0.5}))
    assert served(works, second) == "float", "what was timed stands, also in another process"
    assert served(works, second, host=HOST.model_copy(update={"flags": ("avx512_vnni",)})) == "int8"
    assert len(timed(works)) == 2


def test_a_damaged_record_is_measured_again(works: Works):
    slow_float(works)
    digest = add_int8(works, works.bundle("own"))
    served(works, digest)
    (path,) = timed(works)
    path.write_text("{")
    assert served(works, digest) == "int8"
    assert json.loads(path.read_text())["ratio"] > 1


def test_int8_that_answers_otherwise_here_is_left_for_float_and_said(works: Works, caplog: pytest.LogCaptureFixture):
    slow_float(works)
    digest = add_int8(works, works.bundle("own"), scale=1 / 100, judged=Shift(n=6, flips=0, largest=0.01))
    with caplog.at_level(logging.WARNING, logger="crossplant.serving"):
        assert served(works, digest) == "float"
    assert "is served in float" in caplog.text
    assert "answers otherwise here than where INT8 was judged" in caplog.text


def test_int8_as_far_from_float_as_it_was_where_it_was_judged_serves(works: Works):
    slow_float(works)
    assert served(works, add_int8(works, works.bundle("own"), scale=1 / 245)) == "int8"


def test_an_int8_trunk_that_is_not_there_leaves_float(works: Works, caplog: pytest.LogCaptureFixture):
    slow_float(works)
    digest = add_int8(works, works.bundle("own"))
    manifest = works.bundles.fetch(digest, works.root / "look")
    int8 = json.loads((manifest / "manifest.json").read_text())["int8"]["trunk"]
    Path(works.store.uri, "trunks", f"{int8}.onnx").unlink()
    with caplog.at_level(logging.WARNING, logger="crossplant.serving"):
        with pytest.raises(FileNotFoundError):
            works.store.read(f"trunks/{int8}.onnx")
        assert served(works, digest) == "float"


def test_the_members_of_an_ensemble_are_served_in_one_variant(works: Works):
    slow_float(works)
    both = tuple(add_int8(works, works.bundle(name, sharpness=s)) for name, s in (("a", 20.0), ("b", 10.0)))
    found = loader(works).scorer(add_int8(works, works.ensemble(both, (0.5, 0.5))))
    assert variant_of(found) == "int8"
    plain = loader(works).scorer(works.ensemble(both, (0.5, 0.5)))
    assert variant_of(plain) == "float"
    assert {member.trunk.sha256 for member in plain.members} == {works.trunk_sha256}  # type: ignore[attr-defined]


def test_a_bundle_on_disk_is_judged_in_float_the_reference(works: Works):
    slow_float(works)
    folder = works.bundles.fetch(add_int8(works, works.bundle("own")), works.root / "disk")
    assert variant_of(local_predictor(folder, trunk=works.trunk).scorer) == "float"


def test_a_bundle_without_int8_cannot_be_asked_for_it(works: Works):
    digest = works.bundle("own")
    with pytest.raises(InputError, match=r"field int8: the bundle has no INT8. Run `crossplant compress`"):
        loader(works).scorer(digest, "int8")
    manifest = loader(works).manifest(digest)
    assert files_of(manifest, "float").branch == "branch.onnx"
