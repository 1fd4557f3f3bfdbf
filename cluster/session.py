"""Ray, started inside this process or joined, with a deadline and one clear line when it cannot be had.

An embedded Ray keeps its files in a private folder of this process and takes its token from there, so that neither the
user's home nor another Ray on the machine is touched; `RAY_AUTH_*` variables, where set, are left to Ray.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.resources import Resources, check, shortage
from cluster.settings import Settings
from plants.errors import CheckFailed, InputError

_PREFIX = "crossplant-"
_LONGEST_TMP = 10
"""The socket paths of Ray's HAProxy add 60 characters to this folder's name of up to 28, and it takes 97 in all."""


class _Process:
    """What this process has started: at most one Ray, and the private folder it lives in."""

    folder: Path | None = None
    is_ours: bool = False
    given: tuple[str, ...] = ()
    """The environment variables it has set for Ray."""


_process = _Process()


def start(
    settings: Settings,
    *,
    num_slots: int | None = None,
    dashboard: bool = False,
    log_to_driver: bool = False,
    variables: Callable[[Path], Mapping[str, str]] | None = None,
) -> None:
    """Afterwards Ray is usable: one that was there already, an embedded one, or the cluster the settings name.

    An embedded one and its processes get the environment variables that `variables` makes of its private folder, as
    far as the user has set none of them.

    Raises InputError within `settings.start_timeout_s` when it is not.
    """
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": "error"}
    if settings.is_embedded:
        _give_token()
        if variables is not None:
            _give({name: value for name, value in variables(_folder()).items() if name not in os.environ})
        options |= {
            "num_cpus": num_slots or settings.slots,
            "include_dashboard": dashboard,
            "object_store_memory": settings.object_store_mb << 20,
            "_temp_dir": str(_folder()),
        }
    else:
        _reach(settings.ray_address, timeout_s=settings.start_timeout_s)
    try:
        ray.init(settings.ray_address, **options)
    except Exception as error:
        stop()
        raise _refused(settings, error) from None
    _process.is_ours = True


def stop() -> None:
    """Afterwards the Ray that `start` brought is gone, and what it put into the environment with it."""
    import ray

    if _process.is_ours:
        ray.shutdown()
        _process.is_ours = False
    for name in _process.given:
        os.environ.pop(name, None)
    _process.given = ()


@contextlib.contextmanager
def running(settings: Settings, *, num_slots: int | None = None) -> Iterator[None]:
    """Ray for the length of a block."""
    start(settings, num_slots=num_slots)
    try:
        yield
    finally:
        stop()


def require(demand: Resources, *, copies: int = 1, timeout_s: float = 0.0) -> None:
    """Afterwards it is known that Ray's nodes can hold that many copies of a demand, each on one node.

    Waits up to `timeout_s` for nodes still to come. Raises InputError that says what is asked for and what is there.
    """
    deadline = time.monotonic() + timeout_s
    while shortage(demand, nodes(), copies=copies) and time.monotonic() < deadline:
        time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
    check(demand, nodes(), copies=copies)


def resources() -> dict[str, float]:
    """What all living nodes have in all; nothing while there is no Ray."""
    if "ray" not in sys.modules:  # half a second to import
        return {}
    import ray

    return dict(ray.cluster_resources()) if ray.is_initialized() else {}


def nodes() -> list[dict[str, float]]:
    """What each living node has in all."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def map_tasks(
    function: Callable[[Any], Any], items: Iterable[Any], /, *, num_cpus: float = 1, in_flight: int | None = None
) -> Iterator[Any]:
    """Like `map`, each item a Ray task: results in order, few held at once.

    Raises what a task raised, as `result` does.
    """
    import ray

    require({"CPU": num_cpus})
    limit = in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / max(num_cpus, 0.1)))
    task = ray.remote(num_cpus=num_cpus)(_apply)
    shared = ray.put(function)
    pending: list[Any] = []
    for item in items:
        if len(pending) >= limit:
            yield result(pending.pop(0))
        pending.append(task.remote(shared, item))
    while pending:
        yield result(pending.pop(0))


def result(reference: Any) -> Any:
    """What a task came to. InputError and CheckFailed raised in it are raised here as themselves, one line each."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, InputError | CheckFailed):
            raise error.cause from None
        raise


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _give_token() -> None:
    """Ray's token for embedded clusters comes from a file of this process, unless the user has arranged it."""
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    file = _folder() / "token"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32), encoding="ascii")
    _give({"RAY_AUTH_TOKEN_PATH": str(file)})
    _process.given += ("RAY_AUTH_MODE",)  # which Ray sets itself


def _give(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    _process.given += tuple(variables)


def _folder() -> Path:
    if _process.folder is None:
        base = tempfile.gettempdir()
        base = base if len(base) <= _LONGEST_TMP else "/tmp"
        _sweep(Path(base))
        _process.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
        atexit.register(_clean, _process.folder, os.getpid())
    return _process.folder


def _clean(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        stop()
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    """Remove folders that killed processes of this user left behind."""
    for folder in base.glob(f"{_PREFIX}[0-9]*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            is_ours = folder.stat().st_uid == os.getuid() and not folder.is_symlink()
            if is_ours and pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                shutil.rmtree(folder, ignore_errors=True)


def _reach(address: str, *, timeout_s: float) -> None:
    """Raise InputError when nothing listens at host:port; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers ({type(error).__name__})",
            file=address,
            field="CROSSPLANT_RAY_ADDRESS",
            remedy="Correct the address, or set it to local for an embedded Ray",
        ) from None


def _refused(settings: Settings, error: Exception) -> InputError:
    first = str(error).strip().split("\n")[0][:200]
    if "uthenticat" in first or "oken" in first:
        return InputError(
            "the Ray cluster refused the token",
            file=settings.ray_address,
            field="RAY_AUTH_TOKEN",
            remedy="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's",
        )
    return InputError(
        f"Ray did not start ({type(error).__name__}: {first})",
        file=settings.ray_address,
        field="CROSSPLANT_RAY_ADDRESS",
        remedy="See that the machine has memory and disk to spare, or name a running cluster",
    )
