"""What was measured of this machine, kept in its cache: once at each setting, the same for every process.

Without a GPU a process's own computing is timed, as neighbours on the same cores will not be there for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from plants.hashing import sha256


class Measured:
    """Findings in a folder, each under all that it depends on, the machine among it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, about: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What the folder says, or else what is measured now and stands there then; of two at once the first."""
        words = {**about, "machine": machine()}
        path = self.folder / f"{sha256(json.dumps(words, sort_keys=True).encode())[:32]}.json"
        if not path.exists():
            found = {**words, "found": measure()}
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f".{path.stem}.{os.getpid()}"
            part.write_text(json.dumps(found, sort_keys=True), encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        return json.loads(path.read_text(encoding="utf-8"))["found"]


def machine() -> dict[str, str]:
    """What computes here: the processor by name and abilities, the GPU where there is one, torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"processor": _processor(), "gpu": gpu, "torch": torch.__version__}


def clock() -> Callable[[], float]:
    """The clock by which work is timed here."""
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    abilities = hashlib.sha256("|".join(named.get(k, "") for k in ("flags", "Features")).encode()).hexdigest()[:16]
    return f"{platform.machine()} {named.get('model name', '')} {abilities}"
