"""A verb of the command as a job of a Ray cluster that runs already, through Ray's Jobs API.

Where a cluster is made for the job, use `cluster.kuberay`. Neither copies credentials: a job finds its keys where the
cluster keeps them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.kuberay import rayjob_manifest as rayjob_manifest
from plants.errors import InputError

EXCLUDES = (".git", ".venv", ".crossplant", "tests", "k8s", "**/__pycache__", "*.sqlite", "*.db")
"""What a working folder does not send."""

FINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_REMEDY = "Set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token) to the cluster's token"


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submitted job, as far as it is known."""

    job_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, in Ray's words."""
    message: str = ""
    exit_code: int | None = None
    """The verb's own exit code; None while it runs or where it was never started."""

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL


def entrypoint(verb_args: Sequence[str]) -> str:
    """The shell line that runs a verb, from the working folder where it holds the code, else as installed."""
    if not verb_args:
        raise InputError("no verb was given", field="submit", remedy="Say e.g. crossplant submit train --fleet f.yaml")
    return shlex.join(["python", "-m", "crossplant", *verb_args])


def submit(
    verb_args: Sequence[str],
    *,
    address: str,
    working_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
    wait: bool = False,
    on_line: Callable[[str], None] = print,
    token: str | None = None,
    job_id: str | None = None,
    timeout_s: float = 30.0,
) -> Submission:
    """The verb is a job of the cluster at `address`; with `wait`, it has ended and `on_line` saw each line of its log.

    `env` are plain variables of the job: never put a secret there, it can be read by all who may list jobs. A
    `job_id` that the cluster knows already is not started again but joined. `timeout_s` bounds the first contact.
    Raises InputError for an address that does not answer, a token that is refused, a folder that cannot be sent, and
    a variable that holds a password.
    """
    _refuse_passwords(env or {})
    client = _connect(address, token=token_of(os.environ) if token is None else token, timeout_s=timeout_s)
    line = entrypoint(verb_args)
    runtime: dict[str, Any] = {"env_vars": {"CROSSPLANT_RAY_ADDRESS": "auto", **(env or {})}}
    if working_dir is not None:
        if not working_dir.is_dir():
            raise InputError("is not a folder", file=str(working_dir), field="working_dir")
        runtime |= {"working_dir": str(working_dir), "excludes": list(EXCLUDES)}
    try:
        if job_id is None or not _is_known(client, job_id):
            job_id = client.submit_job(entrypoint=line, runtime_env=runtime, submission_id=job_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the job was not taken: {_first_line(error)}",
            file=address,
            remedy="Send a smaller working folder, or none where the image holds the code",
        ) from None
    if wait:
        _follow(client, str(job_id), on_line=on_line)
    return status(str(job_id), client=client)


def status(job_id: str, *, client: Any) -> Submission:
    """What the cluster knows of a job now. Raises InputError when it no longer answers."""
    from ray.exceptions import RayError

    try:
        info = client.get_job_info(job_id)
    except (RuntimeError, OSError, RayError) as error:
        raise InputError(
            f"the cluster no longer answers for job {job_id} ({type(error).__name__})",
            remedy="When it is back, submit the same verb again: what is done is not repeated",
        ) from None
    return Submission(job_id, str(info.status.value), info.message or "", info.driver_exit_code)


def token_of(env: Mapping[str, str]) -> str | None:
    """The token Ray itself would use: variable, file named by a variable, `~/.ray/auth_token`; None without one.

    Looked up here because Ray's client does so only with RAY_AUTH_MODE=token. Raises InputError for a token file that
    cannot be read, and for token mode without a token.
    """
    mode = env.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if env.get("RAY_AUTH_TOKEN", "").strip():
        return env["RAY_AUTH_TOKEN"].strip()
    named = env.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path(env.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    try:
        found = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        if named:
            raise InputError(
                f"cannot be read ({type(error).__name__})", file=named, field="RAY_AUTH_TOKEN_PATH", remedy=_REMEDY
            ) from None
        found = ""
    if not found and mode == "token":
        raise InputError("is token, but there is no token", field="RAY_AUTH_MODE", remedy=_REMEDY)
    return found or None


def _connect(address: str, *, token: str | None, timeout_s: float) -> Any:
    """A client that has spoken to the cluster, or InputError in one line."""
    import ray.exceptions
    import requests
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise InputError(
            "is not an address of Ray's Jobs API", file=address, field="address", remedy="Say http://HOST:8265"
        )
    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=timeout_s)  # Ray's client would wait for ever
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except ray.exceptions.AuthenticationError:
        what = "the cluster refused the token" if token else "the cluster asks for a token and none is set"
        raise InputError(what, file=address, field="RAY_AUTH_TOKEN", remedy=_REMEDY) from None
    except (requests.RequestException, ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers ({type(error).__name__})",
            file=address,
            field="address",
            remedy="Say where its dashboard listens, e.g. http://HOST:8265",
        ) from None


def _refuse_passwords(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if re.search(r"://[^/\s:@]*:[^/\s@]+@", value) or re.search(r"SECRET|PASSWORD|ACCESS_KEY|TOKEN$", name):
            raise InputError(
                "holds a secret, and a job's variables can be read by all who may list jobs",
                field=name,
                remedy="Set it on the cluster's nodes instead",
            )


def _is_known(client: Any, job_id: str) -> bool:
    return any(job.submission_id == job_id for job in client.list_jobs())


def _follow(client: Any, job_id: str, *, on_line: Callable[[str], None]) -> None:
    """The job has ended, each line of its log was seen once, also across a log connection that broke."""
    seen = 0
    while True:
        try:
            seen = asyncio.run(_tail(client, job_id, skip=seen, on_line=on_line))
        except _Broken as broken:
            seen = broken.seen
        if status(job_id, client=client).is_final:
            break
        time.sleep(0.5)
    for line in client.get_job_logs(job_id).removesuffix("\n").split("\n")[seen:]:
        on_line(line)


class _Broken(RuntimeError):
    """The log's connection broke after so many lines."""

    def __init__(self, seen: int) -> None:
        super().__init__(seen)
        self.seen = seen


async def _tail(client: Any, job_id: str, *, skip: int, on_line: Callable[[str], None]) -> int:
    """How many whole lines the log has given in all; the first `skip` are not shown again."""
    import aiohttp

    seen, rest = 0, ""
    try:
        async for chunk in client.tail_job_logs(job_id):
            *whole, rest = (rest + chunk).split("\n")
            for line in whole:
                seen += 1
                if seen > skip:
                    on_line(line)
    except (RuntimeError, aiohttp.ClientError):
        raise _Broken(max(seen, skip)) from None
    return max(seen, skip)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
