from __future__ import annotations

from pathlib import Path

from cluster.host import this_host

CPUINFO = """processor : 0
model name : Some Core
cpu family : 6
model : 143
cpu MHz : {mhz}
flags : fpu avx2 avx512_vnni {more}

processor : 1
model name : Another
"""


def written(folder: Path, **words: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(CPUINFO.format(**({"mhz": "2000", "more": ""} | words)), encoding="utf-8")
    return path


def test_a_host_is_its_processor_its_kernels_abilities_and_its_runtime(tmp_path: Path):
    found = this_host(cpuinfo=written(tmp_path))
    assert found.cpu.endswith("Some Core 6 143")
    assert found.flags == ("avx2", "avx512_vnni")
    assert found.runtime.startswith("onnxruntime 1")


def test_its_kind_is_that_of_what_picks_kernels_and_nothing_else(tmp_path: Path):
    kind = this_host(cpuinfo=written(tmp_path)).kind
    assert this_host(cpuinfo=written(tmp_path, mhz="3100", more="tsc")).kind == kind
    assert this_host(cpuinfo=written(tmp_path, more="amx_int8")).kind != kind


def test_a_machine_that_does_not_say_has_a_kind_too(tmp_path: Path):
    assert this_host(cpuinfo=tmp_path / "nothing").kind == this_host(cpuinfo=tmp_path / "nothing").kind
    assert this_host().kind == this_host().kind
