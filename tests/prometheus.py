"""A real Prometheus for tests: Debian's, fetched and unpacked without root into the tests' cache where it is missing.

By hand: `python tests/prometheus.py` says where it lies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from object_store import cache_folder, free_port


class PrometheusUnavailable(RuntimeError):
    """There is no Prometheus and none could be fetched; says why."""


def binary(name: str = "prometheus") -> str:
    """Where Prometheus, or its promtool, is. Raises PrometheusUnavailable."""
    found = shutil.which(name)
    if found:
        return found
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise PrometheusUnavailable("prometheus is not installed, and there is no apt-get to fetch it")
    folder = cache_folder(Path("/tmp")) / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _fetch(folder)
            (folder / "complete").touch()
    return str(folder / "usr" / "bin" / name)


def _fetch(folder: Path) -> None:
    download = ["apt-get", "-q", "download", "prometheus"]
    done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and os.geteuid() == 0:  # a machine whose lists of packages are empty
        subprocess.run(["apt-get", "-q", "update"], capture_output=True, check=False)
        done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
    packages = list(folder.glob("prometheus_*.deb"))
    if done.returncode or not packages:
        raise PrometheusUnavailable(f"apt-get download prometheus failed: {done.stderr.strip()[-200:]}")
    subprocess.run(["dpkg", "-x", str(packages[0]), str(folder)], check=True, capture_output=True)


class Prometheus:
    """A server that scrapes one address each second, with a bearer token from a file and rules from a file."""

    def __init__(self, folder: Path, *, target: str, token_file: Path, rules: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        scrape = {
            "job_name": "crossplant",
            "static_configs": [{"targets": [target.removeprefix("http://")]}],
            "authorization": {"type": "Bearer", "credentials_file": str(token_file)},
        }
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [scrape],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.address = f"http://127.0.0.1:{free_port()}"
        words = [
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address.removeprefix('http://')}",
        ]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([binary(), *words], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.address}/-/ready", timeout=2).close()
                return
            time.sleep(0.1)
        self.stop()
        raise PrometheusUnavailable(f"prometheus did not start: {(folder / 'log').read_text()[-300:]}")

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Every row of an instant query, as labels and value. Raises RuntimeError for one that is not understood."""
        found = self._get("query", query=expression)
        return [(row["metric"], float(row["value"][1])) for row in found["result"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert that is pending or fires."""
        return list(self._get("alerts")["alerts"])

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, with `health` and `lastError`."""
        return list(self._get("targets")["activeTargets"])

    def stop(self) -> None:
        """The process has ended."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def _get(self, what: str, **words: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(words)}") as answer:
                found: dict[str, Any] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{words}: {error.read().decode()[:500]}") from None
        return found


if __name__ == "__main__":
    print(binary())
