"""What kind of host this process runs on, as far as it decides which kernels a runtime picks."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from plants.certificate import FLAGS, Host

CPUINFO = Path("/proc/cpuinfo")


def this_host(*, cpuinfo: Path = CPUINFO) -> Host:
    """The processor by name and abilities, and the version of ONNX Runtime, which is not loaded."""
    runtime = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return Host(cpu=f"{platform.machine()} {platform.processor()}".strip(), runtime=runtime)
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    model = [named.get(name, "") for name in ("model name", "cpu family", "model", "CPU part")]
    flags = {*named.get("flags", "").split(), *named.get("Features", "").split()} & FLAGS
    return Host(cpu=" ".join([platform.machine(), *filter(None, model)]), flags=tuple(sorted(flags)), runtime=runtime)
