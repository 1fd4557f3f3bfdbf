"""Golden parts: what a line shows its camera at shift start, to learn whether camera, light and model still agree.

They must be judged as they were judged last, and one part, photographed again and again, must get one verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plants.errors import InputError

MAX_BYTES = 64 << 20
_HOW = "Give a document that `crossplant predict --json FILE` wrote"

Prediction = Mapping[str, Any]


def load_predictions(path: Path) -> list[Prediction]:
    """The predictions of an earlier document. Raises InputError for anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"more than {MAX_BYTES >> 20} MiB", field="--expect", file=str(path), remedy=_HOW)
        found = json.loads(path.read_text(encoding="utf-8"))["predictions"]
        if not all(isinstance(row["image"], str) for row in found):
            raise TypeError
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", field="--expect", file=str(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError("holds no predictions", field="--expect", file=str(path), remedy=_HOW) from None
    _by_image(found, file=str(path))
    return list(found)


def changed(now: Sequence[Prediction], *, before: Sequence[Prediction]) -> list[str]:
    """A sentence for every golden part, matched by `image`, that is not judged as before, is new or is missing.

    Raises InputError where two are of one name.
    """
    known, seen = _by_image(before), _by_image(now)
    lines = []
    for image in sorted(known.keys() | seen.keys()):
        if image not in seen:
            lines.append(f"{image}: was not shown, before {_said(known[image])}")
        elif image not in known:
            lines.append(f"{image}: {_said(seen[image])}, and was not judged before")
        elif _result(seen[image]) != _result(known[image]):
            model = "" if seen[image].get("model") == known[image].get("model") else ", by another model or policy"
            lines.append(f"{image}: {_said(seen[image])}, before {_said(known[image])}{model}")
    return lines


def unlike(shots: Sequence[Prediction]) -> list[str]:
    """A sentence for every shot of one part that is not judged as most of them are, the first of equals.

    Raises InputError for fewer than two shots.
    """
    if len(shots) < 2:
        raise InputError("needs two shots or more", field="--repeats", remedy="Give several, each of one frame")
    results = [_result(row) for row in shots]
    usual = shots[results.index(max(results, key=results.count))]
    same = results.count(_result(usual))
    most = f"{same} of {len(shots)} shots are {_said(usual)}"
    return [f"{row['image']}: {_said(row)}, but {most}" for row in shots if _result(row) != _result(usual)]


def _by_image(rows: Sequence[Prediction], *, file: str | None = None) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    for row in rows:
        if row["image"] in found:
            remedy = "Give one folder: its frames are named by their paths in it"
            raise InputError(f"two frames are named {row['image']}", file=file, field="--expect", remedy=remedy)
        found[row["image"]] = row
    return found


def _result(row: Prediction) -> tuple[Any, ...]:
    return ("error",) if row.get("error") else (row.get("verdict"), row.get("defect"))


def _said(row: Prediction) -> str:
    if row.get("error"):
        return "could not be judged"
    return " ".join(str(word) for word in (row.get("verdict"), row.get("defect")) if word)
