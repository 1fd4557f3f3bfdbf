"""DESIGN.md 3's drawing, held by reading every import, also those inside functions, and by fresh interpreters."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ROOMS = ("plants", "cluster", "jobs", "serving")

GROUND = frozenset({"numpy", "pyarrow", "pandas", "PIL", "pydantic", "scipy", "sklearn", "yaml"})
RIM = frozenset({"ray", "fsspec", "s3fs", "botocore", "aiohttp", "requests", "sqlalchemy", "mlflow"})
"""botocore, aiohttp and requests for the exceptions that s3fs and Ray's clients let through."""
LEARNING = frozenset(
    {"torch", "torchvision", "timm", "peft", "safetensors", "huggingface_hub"}
    | {"onnx", "onnxscript", "onnxruntime", "optuna"}
    | {"ray.train", "ray.tune", "skimage", "cleanlab", "matplotlib", "rich", "typer"}
)
ANSWERING = frozenset(
    {"ray.serve", "fastapi", "starlette", "uvicorn", "httpx", "onnxruntime", "prometheus_client", "python_multipart"}
)

ALLOWED = {
    "plants": GROUND | {"plants"},
    "cluster": GROUND | RIM | {"plants", "cluster"},
    "jobs": GROUND | RIM | LEARNING | {"plants", "cluster", "jobs"},
    "serving": GROUND | RIM | ANSWERING | {"plants", "cluster", "serving"},
}
SPLIT = {f"ray.{part}" for part in ("train", "tune", "serve", "data", "rllib", "llm")}
"""Libraries inside Ray that are not Ray core: each must be allowed by its own name."""

VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "base"}

ABSENT = {
    "plants": ("ray", "torch", "onnxruntime", "timm", "mlflow", "sqlalchemy", "fastapi", "s3fs", "cluster"),
    "cluster": ("torch", "onnxruntime", "timm", "fastapi", "ray.serve", "ray.train", "ray.tune", "jobs", "serving"),
    "jobs": ("serving", "ray.serve"),
    "serving": ("torch", "torchvision", "timm", "onnx", "safetensors", "ray.train", "ray.tune", "jobs"),
}


OPENS = {"seal", "sealed", "unseal", "open_test"}
REACHES = {"open_store", "at", "list", "exists", "read", "read_json", "local_path", "download", "getattr"}
OPENERS = {"cluster/catalog.py", "cluster/imports.py", "jobs/evaluate.py", "jobs/verdicts.py"}
"""`import` seals and says what it corrected, `evaluate` opens, and `verdicts` is the verb that asks it to."""


@dataclass(frozen=True, slots=True)
class Import:
    """One name imported at one line, as `package.part`."""

    file: Path
    line: int
    name: str

    @property
    def place(self) -> str:
        """file:line, as editors open it."""
        return f"{self.file.as_posix()}:{self.line}"


def imports(text: str, *, file: Path) -> Iterator[Import]:
    """Every import of a file, also inside functions, under `if TYPE_CHECKING` and by `import_module("...")`."""
    for node in ast.walk(ast.parse(text, filename=str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*file.parts[: len(file.parts) - node.level], *filter(None, [node.module])])
            module = base if node.level else str(node.module)
            yield Import(file, node.lineno, module)
            for alias in node.names:
                yield Import(file, node.lineno, f"{module}.{alias.name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            known = isinstance(name, ast.Constant) and isinstance(name.value, str)
            yield Import(file, node.lineno, str(name.value) if known and isinstance(name, ast.Constant) else "?")


def breach(found: Import, *, room: str) -> str | None:
    """Why a room may not import this, or None."""
    top, _, rest = found.name.partition(".")
    layer = f"{top}.{rest.partition('.')[0]}" if rest else top
    name = layer if layer in SPLIT else top
    if name in sys.stdlib_module_names or name in ALLOWED[room]:
        return None
    if name == "?":
        return f"{found.place} imports a name that is computed: write the import out"
    kind = "the room" if name in ROOMS else "the package"
    return f"{found.place} imports {found.name}: {room} may not import {kind} {name} (DESIGN.md 3)"


def breaches(root: Path) -> list[str]:
    """One line for every import below `root` that the drawing does not allow."""
    lines = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            file = path.relative_to(root)
            found = (breach(i, room=room) for i in imports(path.read_text("utf-8"), file=file))
            lines += [line for line in found if line]
    return list(dict.fromkeys(lines))


def modules(room: str) -> list[str]:
    """Every module of a room, packages first."""
    files = sorted((ROOT / room).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def looks_into_the_seal(text: str) -> list[int]:
    """The lines of a file that name the store of the sealed answers, their reader or their opener.

    What does not count is the address that the fleet's file gives (`fleet.sealed`).
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        is_seen = False
        if isinstance(node, ast.Attribute):
            is_seen = node.attr in OPENS and ast.unparse(node) != "fleet.sealed"
        elif isinstance(node, ast.ImportFrom):
            is_seen = node.module == "jobs.evaluate" or bool({alias.name for alias in node.names} & (OPENS - {"seal"}))
        elif isinstance(node, ast.Import):
            is_seen = "jobs.evaluate" in {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in REACHES:
            is_seen = any(re.match(r"f?['\"]sealed(/|['\"])", ast.unparse(given)) for given in node.args)
        if is_seen:
            found.append(node.lineno)
    return found


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text, "utf-8")


def test_every_import_of_every_room_is_one_that_the_drawing_allows():
    found = breaches(ROOT)
    assert not found, "\n".join(["the layering is broken:", *found])


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("plants/a.py", "import numpy\ndef f():\n    import torch\n", "plants/a.py:3 imports torch"),
        ("plants/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray\n", "plants/a.py:3"),
        ("plants/a.py", "from cluster.storage import Store\n", "may not import the room cluster"),
        ("cluster/a.py", "class A:\n    def f(self):\n        from ray import train\n", "the package ray.train"),
        ("cluster/a.py", "import ray.serve\n", "the package ray.serve"),
        ("cluster/a.py", "import importlib\nimportlib.import_module('onnxruntime')\n", "the package onnxruntime"),
        ("cluster/a.py", "import importlib\nimportlib.import_module('to' + 'rch')\n", "a name that is computed"),
        ("jobs/a.py", "from serving import app\n", "the room serving"),
        ("jobs/deep/a.py", "from ...serving import app\n", "jobs/deep/a.py:1 imports serving"),
        ("serving/a.py", "import numpy, torch.nn as nn\n", "imports torch.nn"),
        ("serving/a.py", "try:\n    from jobs.train import fit\nexcept ImportError:\n    pass\n", "the room jobs"),
        ("serving/a.py", "import safetensors\n", "the package safetensors"),
        ("serving/a.py", "import tests.toys\n", "the package tests"),
    ],
)
def test_an_import_against_the_drawing_is_named_with_its_line(tmp_path: Path, file: str, text: str, line: str):
    write(tmp_path, file, text)
    found = breaches(tmp_path)
    assert found
    assert line in found[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("plants/a.py", "from __future__ import annotations\nimport json\nfrom plants.errors import InputError\n"),
        ("plants/a.py", "from .errors import InputError\nfrom PIL import Image\n"),
        ("cluster/a.py", "from ray.job_submission import JobStatus\nimport plants.plant\n"),
        ("jobs/a.py", "import ray.tune.schedulers\nfrom cluster import ledger\n"),
        ("serving/a.py", "def f():\n    from ray import serve\n    return serve\n"),
    ],
)
def test_an_import_that_the_drawing_allows_is_not_named(tmp_path: Path, file: str, text: str):
    write(tmp_path, file, text)
    assert breaches(tmp_path) == []


def test_only_the_one_opener_and_what_seals_can_name_the_sealed_answers():
    files = [*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), ROOT / "crossplant.py"]
    found = {path.relative_to(ROOT).as_posix() for path in files if looks_into_the_seal(path.read_text("utf-8"))}
    assert found == OPENERS
    lines = (ROOT / "jobs/verdicts.py").read_text("utf-8").splitlines()
    seen = [lines[number - 1].strip() for number in looks_into_the_seal("\n".join(lines))]
    assert seen == ["from jobs.evaluate import evaluate_fleet"]


@pytest.mark.parametrize(
    "text",
    [
        "material.catalog.sealed('essen')",
        "catalog.seal.read('essen.parquet')",
        "def f():\n    from jobs.evaluate import open_test",
        "import jobs.evaluate",
        "from plants.splits import unseal",
        "splits.unseal(a, b)",
        "getattr(catalog, 'sealed')",
        "store.read(f'sealed/{plant}.parquet')",
        "open_store(store.at('sealed'))",
    ],
)
def test_a_way_to_the_sealed_answers_is_seen(text: str):
    assert looks_into_the_seal(text)


def test_the_embedded_fleet_and_the_pretraining_share_no_generator():
    """A backbone that has seen the fleet's own surfaces would prove nothing on them."""

    def imported(*files: str) -> set[str]:
        paths = [ROOT / file for file in files]
        found = [one for path in paths for one in imports(path.read_text("utf-8"), file=path)]
        return {word for one in found for word in one.name.split(".")}

    assert not imported("jobs/procedural.py", "jobs/pretrain.py") & {"surfaces", "rendering", "factories", "synthetic"}
    fleet = (f"plants/{name}.py" for name in ("surfaces", "rendering", "factories", "synthetic"))
    assert not imported(*fleet) & {"procedural", "pretrain", "jobs"}


def test_the_front_door_imports_no_room_before_a_verb_asks():
    tree = ast.parse((ROOT / "crossplant.py").read_text("utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = {i.name.partition(".")[0] for i in imports(ast.unparse(top), file=Path("crossplant.py"))}
    assert not names & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_has_a_vague_name_or_one_of_the_standard_library(room: str):
    stems = {name: name.rpartition(".")[2] for name in modules(room)}
    vague = [name for name, stem in stems.items() if set(stem.split("_")) & VAGUE]
    shadows = [name for name, stem in stems.items() if stem in sys.stdlib_module_names]
    assert (vague, shadows) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_a_fresh_interpreter_that_imports_a_whole_room_has_not_loaded_what_it_must_not(room: str):
    seen = loaded_after(modules(room))
    assert set(modules(room)) <= seen
    assert sorted(seen & set(ABSENT[room])) == []


def test_a_fresh_interpreter_that_opens_the_front_door_has_loaded_no_room_and_no_heavy_library():
    assert sorted(loaded_after(["crossplant"]) & {*ROOMS, "ray", "torch", "pandas", "mlflow"}) == []


@pytest.mark.slow
def test_a_lane_has_loaded_nothing_heavy_that_it_has_no_use_for():
    idle = {"scipy.stats", "sklearn", "sqlalchemy", "mlflow", "optuna", "matplotlib"}
    assert sorted(loaded_after(["jobs.imported"]) & idle) == []


@pytest.mark.slow
def test_what_the_rooms_import_is_installed_because_pyproject_asks_for_it():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    wanted = closure_of(declared)
    owners = importlib.metadata.packages_distributions()
    undeclared = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for found in imports(path.read_text("utf-8"), file=path.relative_to(ROOT)):
                top = found.name.partition(".")[0]
                if top in sys.stdlib_module_names or top in (*ROOMS, "?"):
                    continue
                if not {plain(owner) for owner in owners.get(top, ())} & wanted:
                    undeclared.append(f"{found.place} imports {top}: no dependency of pyproject.toml brings it")
    assert not undeclared, "\n".join(dict.fromkeys(undeclared))


def loaded_after(names: list[str]) -> set[str]:
    """What is in sys.modules of a fresh interpreter that imported these modules."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "sys.__stdout__.write('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.rpartition("\n")[2]))


def names_of(text: str) -> set[str]:
    """What a module has at its top level, what it imports there included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def missing(text: str) -> list[str]:
    """The names that a file takes from our rooms and that are not there."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS:
            folder = ROOT / node.module.replace(".", "/")
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            known = names_of(file.read_text("utf-8")) if file.exists() else set()
            known |= {path.stem for path in folder.glob("*")}
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in known]
    return found


def test_what_benches_take_from_the_rooms_is_there():
    """Their own runs take hours, so that nothing else would notice a name that has moved."""
    files = sorted((ROOT / "tests/benchmarks").glob("*.py"))
    assert len(files) > 20
    assert {file.name: found for file in files if (found := missing(file.read_text("utf-8")))} == {}
    assert missing("from jobs.plan import Plan, Nowhere\nfrom jobs.nowhere import x") == [
        "jobs.plan.Nowhere",
        "jobs.nowhere.x",
    ]


@pytest.mark.parametrize("module", ["serving.app", "plants", "cluster.session", "jobs.verbs", "crossplant"])
def test_a_warning_of_our_own_code_is_an_error(module):
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["ray", "ray.serve._private.config"])
def test_what_ray_has_yet_to_renew_is_no_warning_of_ours(module):
    with warnings.catch_warnings(record=True) as said:
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
    assert said == []


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure_of(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring, themselves included, as they are installed here."""
    todo, seen = [Requirement(text) for text in requirements], set[tuple[str, frozenset[str]]]()
    while todo:
        need = todo.pop()
        key = (plain(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in importlib.metadata.distribution(need.name).requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *need.extras)):
                todo.append(inner)
    return {name for name, _ in seen}
