"""Wrong input ends in lines that a person can act on, exit code 2 and an untouched store; what can go on goes on."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import crossplant

GOOD = tuple(f"dent/g{i:02}.png" for i in range(12))
MILL = {"name": "mill", "images": "frames", "classes": {"dent": "dent", "Kratzer groß": "scratch"}}


@dataclass(frozen=True)
class Answer:
    """What a person at the terminal gets."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def rejected(self) -> dict[str, str]:
        """Frame -> why; the first ten must also have been shown."""
        found = [(row["frame"], row["reason"]) for row in self.document["rejected"]]
        for frame, reason in found[:10]:
            assert f"file {frame}: {reason}" in self.err
        return dict(found)


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command as `crossplant.main` runs it, in a folder and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSPLANT_HOME", str(tmp_path / "home"))

    def call(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["crossplant", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            crossplant.main()
        said = capsys.readouterr()
        answer = Answer(int(ended.value.code or 0), said.out, said.err)
        assert "Traceback" not in answer.err
        assert bool(answer.errors) == (answer.code == 2)
        return answer

    return call


def pixels(*, seed: int = 0, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image | np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def write_fleet(folder: Path, *plants: dict[str, Any], name: str = "fleet.yaml", **settings: Any) -> Path:
    path = folder / name
    words = {"fleet": "steel", "store": "store", **settings, "plants": list(plants)}
    path.write_text(yaml.safe_dump(words, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def mill(tmp_path: Path) -> Path:
    """A folder with one sound plant: twelve dents."""
    for i, frame in enumerate(GOOD):
        save(tmp_path / "frames" / frame, pixels(seed=i))
    write_fleet(tmp_path, MILL)
    return tmp_path


def bytes_in(folder: Path) -> dict[str, str]:
    """Every file below, with its digest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def recorded_in(folder: Path) -> dict[str, str]:
    """The same without what imports remember for the next one."""
    return {name: digest for name, digest in bytes_in(folder).items() if not name.startswith("imports/")}


def labels(folder: Path, plant: str = "mill") -> pd.DataFrame:
    return pd.read_parquet(folder / f"store/labels/{plant}.parquet").set_index("frame")


# --- the fleet file --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_faults_of_a_fleet_file_are_reported_at_once_by_the_installed_command(mill):
    """In a process of its own: nothing that the tests set up stands between the person and the command."""
    faulty = [
        {**MILL, "colour": "red"},
        {**MILL, "name": "press", "environments": {"cam": {"geometry": {"fit": "tiles"}}}},
        {**MILL, "name": "oven", "ok": ["gut"]},
    ]
    write_fleet(mill, *faulty)
    script = Path(sys.executable).with_name("crossplant")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "crossplant"]
    environment = {"PATH": "/usr/bin:/bin", "CROSSPLANT_HOME": str(mill / "home"), "HOME": str(mill)}
    if not script.exists():
        environment["PYTHONPATH"] = str(Path(crossplant.__file__).parent)
    done = subprocess.run([*command, "import"], cwd=mill, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: plant ") and "file fleet.yaml" in line for line in lines)
    assert "plant mill: file fleet.yaml: field colour" in lines[0]
    assert "plant press" in lines[1]
    assert "environments.cam.geometry: fit: tiles needs tile_px" in lines[1]
    assert "plant oven" in lines[2]
    assert "ok: 'gut' is not among classes" in lines[2]
    assert not (mill / "store").exists()
    assert not (mill / "home").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"classes": {"dent": "dent", "ok ": "ok"}, "ok": ["ok "]},
            "classes: 'ok ' has white space at its ends; write 'ok'",
        ),
        ({"classes": {}}, "field classes"),
        ({"classes": {"good": "ok", "dent": "dent "}}, "the fleet class 'dent ' would be another one than 'dent'"),
        ({"classes": {"good": "OK", "dent": "dent"}}, "write 'ok'"),
        ({"costs": {"miss": float("inf")}}, "field costs.miss: Input should be a finite number"),
        (
            {"costs": {"miss_by_class": {"rust": 9}}},
            "costs.miss_by_class: unknown class 'rust'; known classes: dent, Kratzer groß",
        ),
        (
            {"costs": {"defect_rate": [0.02, 0.03, 0.05]}},
            "field costs.defect_rate: is estimate, low, high, so write [0.03, 0.02, 0.05]",
        ),
        ({"name": ".."}, "field name: String should match pattern '^[a-z0-9][a-z0-9_-]{0,62}$'. Small letters, digits"),
        ({"classes": None}, "field classes: Input should be a valid dictionary. Write `name: value`, a line each"),
        ({"classes": {1: "ok"}}, "field classes.1.[key]: Input should be a valid string. Quote it: YAML takes bare"),
        ({"ok": "good"}, "field ok: Input should be a valid tuple. Write a list: [one, two]"),
        ({"images": 7}, "field images: Input should be a valid string. Write one text, quoted where it is a number"),
    ],
)
def test_a_faulty_plant_is_one_line_and_nothing_is_made(mill, run, change, words):
    write_fleet(mill, {**MILL, **change})
    answer = run("import")
    (line,) = answer.errors
    assert answer.code == 2
    assert line.startswith(f"plant {change.get('name', 'mill')}: file fleet.yaml")
    assert words in line
    assert not (mill / "store").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plants: [}", "is not YAML at line 1"),
        ("- a", "must be a mapping"),
        ("\xff", "cannot be read"),
        ("fleet: a\nplants: []\nplants: []", "is not YAML at line 3: the key 'plants' is written twice. Indent"),
    ],
)
def test_a_file_that_is_no_fleet_file_is_one_line(tmp_path, run, text, words):
    (tmp_path / "fleet.yaml").write_bytes(text.encode("latin-1"))
    (line,) = run("status").errors
    assert words in line
    assert "fleet.yaml" in line


def test_a_fleet_file_that_is_not_there_is_one_line_with_the_remedy(run):
    (line,) = run("audit", "--fleet", "nowhere.yaml").errors
    assert line == "file nowhere.yaml: no such file. Name the fleet's YAML with --fleet FILE"


@pytest.mark.parametrize(
    "words",
    [
        *(
            f"{verb} --plant nowhere"
            for verb in ("import", "audit", "tune", "evaluate", "publish", "rollback", "serve")
        ),
        "promote --plant nowhere --bundle 00",
        "train --leave-out nowhere",
    ],
)
def test_an_unknown_plant_is_refused_by_every_verb_with_the_known_ones(mill, run, words):
    answer = run(*words.split())
    assert answer.code == 2
    assert answer.errors == ["plant nowhere: there is no such plant in the fleet. Known plants: mill"]
    assert not (mill / "store").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("audit", "plant mill: has not been imported. Run `crossplant import"),
        ("train", "plant mill: has not been imported. Run `crossplant import"),
        ("compare", "nothing has been trained. Run `crossplant train` first"),
        ("evaluate", "nothing has been compared. Run `crossplant compare` first"),
        ("publish", "nothing has been compared. Run `crossplant compare` first"),
        ("serve", "no plant has a route. Run `crossplant publish` first"),
        ("rollback --plant mill", "plant mill: has no route yet"),
        ("promote --plant mill --bundle 00", "field bundle: no published bundle begins with '00'"),
    ],
)
def test_a_verb_out_of_turn_names_the_verb_that_comes_first(mill, run, words, said):
    answer = run(*words.split())
    (line,) = answer.errors
    assert answer.code == 2
    assert said in line
    assert not (mill / "store").exists()


def test_every_fault_of_a_recipe_is_reported_at_once(mill, run):
    (mill / "recipe.yaml").write_text("stges: []\nbatch: -3\n", encoding="utf-8")
    lines = run("train", "--recipe", "recipe.yaml").errors
    assert [line.split(": ")[1] for line in lines] == ["field batch", "field stges"]
    assert all("file recipe.yaml" in line for line in lines)


def test_a_setting_that_is_not_a_number_or_not_a_setting_is_named(mill, run, monkeypatch):
    monkeypatch.setenv("CROSSPLANT_SLOTS", "many")
    assert "CROSSPLANT_SLOTS" in run("status").errors[0]
    monkeypatch.delenv("CROSSPLANT_SLOTS")
    monkeypatch.setenv("CROSSPLANT_SLTS", "2")
    assert "Did you mean CROSSPLANT_SLOTS?" in run("status").errors[0]


@pytest.mark.parametrize("words", ["rollback --plant mill", "serve", "status"])
def test_a_home_that_cannot_be_made_is_one_line_that_names_the_setting(mill, run, monkeypatch, words):
    (mill / "file").touch()
    monkeypatch.setenv("CROSSPLANT_HOME", str(mill / "file/home"))
    answer = run(*words.split())
    (line,) = answer.errors
    assert answer.code == 2
    assert "field CROSSPLANT_HOME: the folder cannot be made (not a directory)" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("status --json frames", "file frames: field --json: is a folder. Name a file in it"),
        ("status --json gone/status.json", "file gone/status.json: field --json: the folder does not exist"),
        ("tune --out frames", "file frames: field --out: is a folder. Name a file in it"),
        ("tune --out gone/best.yaml", "file gone/best.yaml: field --out: the folder does not exist"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(mill, run, words, said):
    answer = run(*words.split())
    assert (answer.code, answer.errors) == (2, [said])
    assert not (mill / "store").exists()
    assert not (mill / "home").exists()


# --- classes ---------------------------------------------------------------------------------------------------------


def test_frames_of_an_unknown_class_are_listed_and_the_others_are_imported(mill, run):
    save(mill / "frames/rust/a.png", pixels())
    save(mill / "frames/ok /a.png", pixels())
    save(mill / "frames/alone.png", pixels())
    answer = run("import", "--json", "-")
    assert answer.code == 0
    assert answer.rejected == {
        "rust/a.png": "unknown class 'rust'; known: dent, Kratzer groß",
        "ok /a.png": "the class name 'ok ' has white space at its ends; rename it to 'ok'",
        "alone.png": "lies in no class folder; put frames into <class>/",
    }
    assert answer.document["rows"] == len(GOOD)
    assert set(labels(mill).index) == set(GOOD)


def test_a_class_with_an_umlaut_and_a_space_is_one_class_however_its_folder_was_written(mill, run):
    composed, decomposed = (unicodedata.normalize(form, "Kratzer groß ä") for form in ("NFC", "NFD"))
    write_fleet(mill, {**MILL, "classes": {"dent": "dent", composed: "scratch"}})
    save(mill / "frames" / composed / "a.png", pixels(seed=50))
    save(mill / "frames" / decomposed / "b.png", pixels(seed=51))
    answer = run("import", "--json", "-")
    assert answer.code == 0
    assert answer.rejected == {}
    assert answer.document["classes"] == {"dent": 12, composed: 2}


@pytest.mark.slow
def test_an_empty_class_and_a_class_with_one_image_are_imported_and_audited(mill, run):
    write_fleet(mill, {**MILL, "classes": {**MILL["classes"], "hole": "hole"}})
    save(mill / "frames/Kratzer groß/only.png", pixels(seed=99))
    imported = run("import", "--json", "-")
    assert imported.code == 0
    assert imported.document["classes"] == {"dent": 12, "Kratzer groß": 1}
    assert "plant mill: class 'hole' is declared but has no usable frame" in imported.err
    audited = run("audit", "--json", "-")
    assert audited.code == 0
    found = {f["kind"]: f for f in audited.document["findings"] if f["kind"] in ("empty_class", "single_image_class")}
    assert set(found) == {"empty_class", "single_image_class"}
    assert "'hole'" in found["empty_class"]["detail"]
    assert "'Kratzer groß'" in found["single_image_class"]["detail"]
    assert all(f["plant"] == "mill" and f["remedy"] for f in found.values())


# --- images ----------------------------------------------------------------------------------------------------------


def bomb(side: int = 30_000) -> bytes:
    """A valid PNG of side x side black pixels, half a megabyte small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(1), bytes(1 + side // 8) * 1000
    data = b"".join(packer.compress(rows) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed=7)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def spoiled_jpeg() -> bytes:
    """A JPEG whose last third was written over, as a failing disk does."""
    data = jpeg()
    return data[: -len(data) // 3] + bytes(len(data) // 3)


def animated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "GIF", save_all=True, append_images=[Image.fromarray(pixels(seed=1))])
    return buffer.getvalue()


def deep() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65_535, 600).astype(np.uint16).reshape(20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


BAD_IMAGES = {
    "corrupt.jpg": (spoiled_jpeg, "corrupt or cut short. Export it again"),
    "cut.jpg": (lambda: jpeg()[:-40], "corrupt or cut short. Export it again"),
    "text.jpg": (lambda: b"Dear colleague,", "not a readable image, whatever its name says. Hand in a JPEG"),
    "page.png": (lambda: b"<!DOCTYPE html><html></html>", "not a readable image"),
    "bomb.png": (bomb, "more than the limit of 64 000 000 pixels. Cut the frame"),
    "empty.jpg": (lambda: b"", "the file is empty (0 bytes). Export it again"),
    "animated.gif": (animated, "several frames (animated or multi-page). Export one image a frame"),
    "deep.png": (deep, "geometry.bit_depth: holds 16-bit data"),
}


def test_images_that_cannot_be_learned_from_are_listed_with_reason_and_the_others_are_imported(mill, run):
    for name, (make, _) in BAD_IMAGES.items():
        (mill / "frames/dent" / name).write_bytes(make())
    answer = run("import", "--json", "-")
    assert answer.code == 0
    assert set(answer.rejected) == {f"dent/{name}" for name in BAD_IMAGES}
    for name, (_, words) in BAD_IMAGES.items():
        assert words in answer.rejected[f"dent/{name}"]
    assert set(labels(mill).index) == set(GOOD)


def test_unusual_images_are_read_rightly(mill, run):
    rotated = Image.Exif()
    rotated[274] = 6
    folder = mill / "frames/dent"
    save(folder / "rotated.jpg", pixels(seed=21), exif=rotated)
    save(folder / "cmyk.jpg", Image.fromarray(pixels(seed=22)).convert("CMYK"))
    save(folder / "palette.png", Image.fromarray(pixels(seed=23)).convert("P"))
    save(folder / "alpha.png", Image.fromarray(pixels(seed=24)).convert("RGBA"))
    save(folder / "grey.png", Image.fromarray(pixels(seed=25)).convert("L"))
    answer = run("import", "--json", "-")
    assert answer.code == 0
    assert answer.rejected == {}
    assert answer.document["rows"] == len(GOOD) + 5
    rows = labels(mill)
    assert tuple(rows.loc["dent/rotated.jpg", ["width_px", "height_px"]]) == (20, 30)
    assert tuple(rows.loc["dent/cmyk.jpg", ["width_px", "height_px"]]) == (30, 20)


def test_16_bit_frames_are_imported_where_they_are_declared_and_8_bit_ones_then_listed(mill, run):
    write_fleet(mill, {**MILL, "environments": {"default": {"geometry": {"bit_depth": 16}}}})
    (mill / "frames/dent/deep.png").write_bytes(deep())
    answer = run("import", "--json", "-")
    assert answer.document["rows"] == 1
    assert set(answer.rejected) == set(GOOD)
    assert "12 times: " in answer.err
    assert "all 12 are listed in " in answer.err
    assert "Set bit_depth: 8" in answer.rejected[GOOD[0]]


def test_a_plant_without_one_usable_image_is_refused_and_leaves_only_the_list_of_rejects(mill, run):
    for frame in GOOD:
        (mill / "frames" / frame).write_bytes(b"")
    answer = run("import")
    (line,) = answer.errors
    assert answer.code == 2
    assert line.startswith("plant mill: field images: no usable frame")
    assert "dent/g00.png: the file is empty" in line
    assert [path.name for path in (mill / "store").rglob("*") if path.is_file()] == ["mill.csv"]


# --- label tables ----------------------------------------------------------------------------------------------------


def test_duplicate_and_wrong_rows_of_a_table_are_listed_and_the_others_are_imported(mill, run):
    rows = [f"{frame},dent" for frame in GOOD]
    rows += [f"{GOOD[0]},dent", f"{GOOD[1]},Kratzer groß", "dent/none.png,dent", "../fleet.yaml,dent", f"{GOOD[2]},"]
    (mill / "labels.csv").write_text("\n".join(["frame,class", *rows]), encoding="utf-8")
    write_fleet(mill, {**MILL, "labels": "labels.csv"})
    answer = run("import", "--json", "-")
    assert answer.code == 0
    assert answer.rejected == {
        GOOD[0]: "duplicate row of this frame",
        GOOD[1]: "2 rows of this frame contradict each other (class); a frame has one class: "
        "keep the rows of the one that its part is to be judged by",
        "dent/none.png": "no such file in the plant's folder",
        "../fleet.yaml": "leaves the plant's folder",
        GOOD[2]: "the row has no class",
    }
    assert [row["frame"] for row in answer.document["rejected"]].count(GOOD[1]) == 2
    assert "Kratzer" not in Path(answer.document["rejects"]).read_text(encoding="utf-8"), "it may be a sealed answer"
    assert set(labels(mill).index) == set(GOOD) - {GOOD[1]}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"file,label\na,b\n", "lacks the column frame and class; it has file, label. Rename the columns"),
        (b"\xff\xfe\x00", "is not UTF-8. Save it as CSV UTF-8"),
        (b"", "is not a readable table"),
        (b"frame,class\n", "no usable frame"),
        (None, "field labels: there is no such file. Correct `labels` in the fleet file"),
    ],
)
def test_a_refused_second_import_leaves_the_first_as_it_was(mill, run, table, words):
    assert run("import").code == 0
    before = recorded_in(mill / "store")
    assert {name.partition("/")[0] for name in before} >= {"assignments.parquet", "labels", "sealed"}
    write_fleet(mill, {**MILL, "labels": "labels.csv"})
    if table is not None:
        (mill / "labels.csv").write_bytes(table)
    answer = run("import")
    (line,) = answer.errors
    assert answer.code == 2
    assert line.startswith("plant mill: ")
    assert "labels.csv" in line
    assert words in line
    assert recorded_in(mill / "store") == before


def test_frames_that_went_bad_do_not_undo_a_split(mill, run):
    first = run("import", "--json", "-").document
    roles = pd.read_parquet(mill / "store/assignments.parquet").set_index("lot")["role"]
    (mill / "frames" / GOOD[3]).write_bytes(b"")
    second = run("import", "--json", "-")
    assert set(second.rejected) == {GOOD[3]}
    assert second.document["rows"] == first["rows"] - 1
    assert pd.read_parquet(mill / "store/assignments.parquet").set_index("lot")["role"].equals(roles)


@pytest.mark.slow
def test_plants_that_cannot_be_imported_are_named_and_the_plants_before_and_after_are_imported(mill, run):
    (mill / "tables").mkdir()
    write_fleet(
        mill,
        MILL,
        {**MILL, "name": "press", "images": "gone"},
        {**MILL, "name": "oven", "labels": "tables"},
        {**MILL, "name": "lathe"},
    )
    answer = run("import", "--json", "-")
    press, oven = answer.errors
    assert answer.code == 2
    assert [plant["plant"] for plant in answer.document["plants"]] == ["mill", "lathe"]
    assert [f"error: {fault}" for fault in answer.document["faults"]] == [f"error: {press}", f"error: {oven}"]
    assert press.startswith("plant press: ")
    assert "gone: there is no such folder. Correct `images`" in press
    assert oven.startswith("plant oven: ")
    assert "tables" in oven
    assert set(labels(mill).index) == set(labels(mill, "lathe").index) == set(GOOD)
    assert not (mill / "store/labels/press.parquet").exists()
    assert answer.err.index("Imported") < answer.err.rindex("lathe") < answer.err.index("error: plant press")


# --- object stores ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_missing_bucket_of_frames_is_one_line(mill, run, object_store):
    write_fleet(mill, {**MILL, "images": "s3://no-such-bucket/frames"})
    answer = run("import")
    (line,) = answer.errors
    assert answer.code == 2
    assert "s3://no-such-bucket: there is no such bucket. Create it, or correct it" in line
    assert not (mill / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["import", "audit", "train", "compare"])
def test_a_missing_bucket_of_the_store_is_one_line(mill, run, object_store, verb):
    write_fleet(mill, MILL, store="s3://no-such-bucket/steel")
    answer = run(verb)
    assert answer.code == 2
    assert any("s3://no-such-bucket: there is no such bucket. Create it, or correct it" in e for e in answer.errors)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("where", ["frames", "store"])
def test_wrong_keys_are_one_line_that_names_the_variable_and_no_key(mill, run, bucket, monkeypatch, name, where):
    monkeypatch.setenv(name, "AKIAWRONGWRONG")
    plant = {**MILL, "images": f"{bucket}/frames"} if where == "frames" else MILL
    write_fleet(mill, plant, store=f"{bucket}/steel" if where == "store" else "store")
    answer = run("import")
    (line,) = answer.errors
    assert answer.code == 2
    assert bucket in line
    assert "AWS_ACCESS_KEY_ID" in line
    assert "AKIAWRONG" not in answer.err
    assert "operator-secret" not in answer.err
    assert not (mill / "store").exists()


@pytest.mark.slow
def test_an_address_with_credentials_in_it_is_refused_without_repeating_them(mill, run):
    write_fleet(mill, {**MILL, "images": "s3://key:topsecret@bucket/frames"})
    answer = run("import")
    assert answer.code == 2
    assert "credentials do not belong in an address" in answer.errors[0]
    assert "topsecret" not in answer.err


# --- bundles ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def works(tmp_path: Path) -> Any:
    """A published bundle of a plant `mill` whose green parts are good and red ones dented, and a fleet file for it."""
    from tests.serving.toys import Works

    made = Works(tmp_path / "works")
    plant = {"name": "mill", "images": "frames", "classes": {"ok": "ok", "dent": "dent"}, "ok": ["ok"]}
    write_fleet(tmp_path, plant, store=made.store.uri)
    return made


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A good part, a dented one, and between them everything that cannot be judged."""
    from tests.serving.toys import GREEN, RED, png

    folder = tmp_path / "shift"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(GREEN))
    (folder / "z.png").write_bytes(png(RED))
    return folder


def test_frames_that_cannot_be_judged_are_listed_with_reason_and_the_others_are_judged(works, frames, run):
    digest = works.bundle("own")
    bad = {name: words for name, (_, words) in BAD_IMAGES.items() if not name.endswith("gif")}
    for name in bad:
        (frames / name).write_bytes(BAD_IMAGES[name][0]())
    folder = works.root / f"store/bundles/{digest}"
    answer = run("predict", str(frames), "--bundle", str(folder), "--environment", "cam-1", "--json", "-")
    assert answer.code == 1
    rows = {row["image"]: row for row in answer.document["predictions"]}
    assert {name: rows[name]["verdict"] for name in ("a.png", "z.png")} == {"a.png": "ok", "z.png": "reject"}
    assert {name for name, row in rows.items() if row.get("error")} == set(bad)
    for name, words in bad.items():
        assert words in rows[name]["error"]
        assert name in rows[name]["error"]


def test_frames_of_one_name_in_two_folders_are_told_apart_and_one_that_has_gone_is_said_alone(works, frames, run):
    folder = works.root / f"store/bundles/{works.bundle('own')}"
    two_cameras(frames)
    (frames / "cam1/gone.png").symlink_to("nowhere")
    answer = run("predict", str(frames), "--bundle", str(folder), "--environment", "cam-1", "--json", "-")
    rows = {row["image"]: row for row in answer.document["predictions"]}
    assert answer.code == 1
    assert list(rows) == ["cam1/0001.png", "cam1/gone.png", "cam2/0001.png"]
    assert [rows[f"cam{n}/0001.png"]["verdict"] for n in (1, 2)] == ["ok", "reject"]
    assert [rows[f"cam{n}/0001.png"]["request_id"] for n in (1, 2)] == ["local-1", "local-3"]
    assert rows["cam2/0001.png"]["frames"][0]["image"] == "cam2/0001.png"
    assert "cannot be read (No such file or directory)" in rows["cam1/gone.png"]["error"]


def two_cameras(frames: Path) -> None:
    """The good part lies in cam1, the dented one in cam2, both under one name."""
    for name, camera in (("a.png", "cam1"), ("z.png", "cam2")):
        (frames / camera).mkdir()
        (frames / name).rename(frames / camera / "0001.png")


@pytest.mark.parametrize("name", ["manifest.json", "branch.onnx", "probe.npz"])
def test_a_bundle_with_one_byte_changed_judges_nothing_and_the_file_is_named(works, frames, run, name):
    from tests.serving.toys import spoil

    works.bundle("own")
    folder = works.root / "exports/own"
    trunk = folder / "trunk.onnx"
    trunk.write_bytes(works.trunk.read_bytes())
    arguments = ("predict", str(frames), "--bundle", str(folder), "--environment", "cam-1", "--json", "-")
    assert run(*arguments).code == 0
    spoil(folder / name)
    answer = run(*arguments)
    (line,) = answer.errors
    assert answer.code == 2
    assert answer.out == ""
    assert name in line


def test_a_trunk_with_one_byte_changed_judges_nothing_and_is_named(works, frames, run):
    from tests.serving.toys import spoil

    digest = works.bundle("own")
    spoil(works.root / f"store/trunks/{works.trunk_sha256}.onnx")
    folder = works.root / f"store/bundles/{digest}"
    answer = run("predict", str(frames), "--bundle", str(folder), "--environment", "cam-1")
    (line,) = answer.errors
    assert answer.code == 2
    assert works.trunk_sha256 in line


def test_a_bundle_with_one_byte_changed_is_not_promoted_and_the_route_stays(works, run, monkeypatch):
    from tests.serving.toys import spoil

    monkeypatch.setenv("CROSSPLANT_HOME", str(works.settings.home))
    policy = works.policy()
    good, bad = works.bundle("own"), works.bundle("other", sharpness=9.0)
    works.promote(bundle=good, policy=policy)
    spoil(works.root / f"store/bundles/{bad}/branch.onnx")
    answer = run("promote", "--plant", "mill", "--bundle", bad, "--policy", policy)
    (line,) = answer.errors
    assert answer.code == 2
    assert "branch.onnx" in line
    assert [(r.sequence, r.bundle) for r in works.journal.history("mill")] == [(1, good)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "field policy: no such file. Name a policy's JSON with --policy FILE"),
        ("{", "is not a policy"),
        ('{"plant": "mill", "classes": ["ok"], "pass_below": 3, "reject_above": 3}', "field pass_below"),
        ('{"plant": "oven", "classes": ["ok"], "pass_below": 0, "reject_above": 1}', "is a policy of plant oven"),
        ('{"plant": "mill", "classes": ["ok"], "pass_below": 0, "reject_above": 1}', "for other classes"),
    ],
    ids=["missing", "no-json", "out-of-range", "another-plant", "other-classes"],
)
def test_a_policy_that_cannot_be_used_is_one_line_that_names_the_file(works, frames, run, text, said):
    folder = works.root / f"store/bundles/{works.bundle('own')}"
    policy = works.root / "policy.json"
    if text is not None:
        policy.write_text(text, encoding="utf-8")
    answer = run("predict", str(frames), "--bundle", str(folder), "--environment", "cam-1", "--policy", str(policy))
    (line,) = answer.errors
    assert answer.code == 2
    assert f"file {policy}" in line
    assert said in line


def test_predict_names_what_is_missing(works, frames, run):
    bundle = ("--bundle", str(works.root / f"store/bundles/{works.bundle('own')}"))
    assert "name either an endpoint or a bundle" in run("predict", str(frames)).errors[0]
    assert "nothing.png: there is no such file" in run("predict", "nothing.png", *bundle).errors[0]
    assert "shift: is not a bundle" in run("predict", str(frames), "--bundle", str(frames)).errors[0]
    unknown = run("predict", str(frames), *bundle, "--plant", "press").errors[0]
    assert "plant press" in unknown
    assert "mill" in unknown
    asked = run("predict", str(frames), "--plant", "mill", "--address", "http://127.0.0.1:9").errors[0]
    assert "no token is kept for this plant" in asked


@pytest.mark.parametrize("words", [(), ("--environment", "cam-9")])
def test_a_wrong_or_missing_environment_is_one_line_and_not_one_a_frame(works, frames, run, words):
    folder = works.root / f"store/bundles/{works.bundle('own')}"
    answer = run("predict", str(frames), "--bundle", str(folder), *words, "--json", "-")
    (line,) = answer.errors
    assert (answer.code, answer.out) == (2, "")
    assert "plant mill: field environment: the environment" in line
    assert "Known: cam-1, tiled" in line


@pytest.mark.parametrize(
    ("address", "plant", "said"),
    [
        ("http://127.0.0.1:9", "mill", "file http://127.0.0.1:9: nobody answers"),
        ("http://h:port", "mill", "field --address: is not"),
        ("127.0.0.1:8000", "mill", "field --address: is not"),
        ("http://127.0.0.1:9", "..", "is not a plant's name"),
        ("http://127.0.0.1:9", "../home/x", "is not a plant's name"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_one_line_at_once(frames, run, monkeypatch, address, plant, said):
    monkeypatch.setenv("CROSSPLANT_TOKEN", "t0k")
    begun = time.monotonic()
    answer = run("predict", str(frames), "--plant", plant, "--address", address, "--json", "-")
    (line,) = answer.errors
    assert (answer.code, answer.out) == (2, "")
    assert said in line
    assert time.monotonic() - begun < 3


@pytest.fixture
def endpoint(works: Any) -> Iterator[tuple[str, str]]:
    """Address and token of the plant `mill` behind real HTTP, without Ray."""
    import threading

    import uvicorn

    from serving.app import build_app
    from serving.wiring import open_service

    works.promote(bundle=works.bundle("own"), policy=works.policy())
    service = open_service(works.settings, store_uri=works.store.uri, fleet="steel", replica="r1")
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # who asks before the server is up waits, and is not refused
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    token = works.token()["Authorization"].removeprefix("Bearer ")
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", token
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.mark.slow
def test_an_endpoint_refuses_token_plant_and_environment_once_and_a_bad_frame_alone(endpoint, frames, run, monkeypatch):
    address, token = endpoint
    monkeypatch.setenv("CROSSPLANT_TOKEN", token)
    (frames / "empty.jpg").write_bytes(b"")
    ask = ("predict", str(frames), "--address", address, "--json", "-")
    judged = run(*ask, "--plant", "mill", "--environment", "cam-1")
    assert judged.code == 1
    rows = {row["image"]: row for row in judged.document["predictions"]}
    assert (rows["a.png"]["verdict"], rows["z.png"]["verdict"]) == ("ok", "reject")
    assert "file empty.jpg: the file is empty (0 bytes). Export it again" in rows["empty.jpg"]["error"]
    for words, said in (
        (("--plant", "mill"), "plant mill: field environment: the environment must be named. Known: cam-1, tiled"),
        (("--plant", "mill", "--environment", "x"), "'x' is not declared. Known: cam-1, tiled"),
        (("--plant", "oven"), "plant oven: field Authorization: the token opens another plant than this"),
    ):
        answer = run(*ask, *words)
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.errors[0]
    monkeypatch.setenv("CROSSPLANT_TOKEN", "wrong")
    (line,) = run(*ask, "--plant", "mill", "--environment", "cam-1").errors
    assert "the token is unknown, expired or revoked" in line


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--one-part",)])
def test_an_endpoint_answers_by_the_names_that_a_bundle_answers_by(works, endpoint, frames, run, monkeypatch, words):
    address, token = endpoint
    monkeypatch.setenv("CROSSPLANT_TOKEN", token)
    two_cameras(frames)
    ask = ("predict", str(frames), "--environment", "cam-1", "--json", "-", *words)
    bundle = str(works.root / f"store/bundles/{works.bundle('own')}")
    asked, judged = run(*ask, "--address", address, "--plant", "mill"), run(*ask, "--bundle", bundle)
    found = [
        [(row["image"], [frame["image"] for frame in row["frames"]]) for row in answer.document["predictions"]]
        for answer in (asked, judged)
    ]
    assert found[0] == found[1]
    assert [name for _, names in found[0] for name in names] == ["cam1/0001.png", "cam2/0001.png"]
