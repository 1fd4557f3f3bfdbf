from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import submit as module
from cluster.submit import Submission, entrypoint, submit, token_of
from plants.errors import InputError
from tests.ray_head import free_ports, started

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-forty-characters-for-this-test"
LIMIT = 20_000_000
"""What this head takes as one package; Ray's own limit is 500 MB."""

PROGRAM = """
import os, pathlib, sys, time
print("verb", *sys.argv[1:], flush=True)
if sys.argv[1] == "train":
    import ray
    gate = pathlib.Path(os.environ["GATE"])
    while not gate.exists():
        time.sleep(0.05)
    ray.init(os.environ["CROSSPLANT_RAY_ADDRESS"], log_to_driver=False)
    print("a task of the cluster said", ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
if sys.argv[1] == "audit":
    with open(os.environ["COUNT"], "a") as file:
        file.write("ran\\n")
    sys.exit(1)
"""


@dataclass(frozen=True, slots=True)
class Head:
    address: str
    code: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A real head node with token authentication, and the code that is sent there."""
    code = tmp_path_factory.mktemp("code")
    (code / "crossplant.py").write_text(PROGRAM, "utf-8")
    with started(token=TOKEN, variables={"RAY_max_grpc_message_size": str(LIMIT)}) as node:
        yield Head(node.dashboard, code)


@pytest.mark.slow
def test_a_submitted_verb_runs_on_the_cluster_and_its_log_is_seen_while_it_runs(head: Head, tmp_path: Path):
    gate, lines = tmp_path / "gate", list[str]()

    def on_line(line: str) -> None:
        lines.append(line)
        if line.startswith("verb train"):
            gate.touch()  # the job waits for this file, so its first line was seen before it ended

    done = submit(
        ["train", "--fleet", "two words.yaml"],
        address=head.address,
        working_dir=head.code,
        env={"GATE": str(gate)},
        wait=True,
        on_line=on_line,
        token=TOKEN,
    )
    assert (done.status, done.exit_code, done.is_final) == ("SUCCEEDED", 0, True)
    ours = [line for line in lines if line.startswith(("verb", "a task"))]
    assert ours == ["verb train --fleet two words.yaml", "a task of the cluster said 42"]


@pytest.mark.slow
def test_a_job_of_the_same_id_is_joined_and_not_started_twice_and_its_exit_code_is_told(head: Head, tmp_path: Path):
    count = tmp_path / "count"
    ask = {"address": head.address, "working_dir": head.code, "env": {"COUNT": str(count)}, "token": TOKEN}
    first = submit(["audit"], job_id="audit-once", wait=False, **ask)  # type: ignore[arg-type]
    again = submit(["audit"], job_id="audit-once", wait=True, on_line=lambda line: None, **ask)  # type: ignore[arg-type]
    assert not first.is_final
    assert (first.job_id, again.job_id, again.status, again.exit_code) == ("audit-once", "audit-once", "FAILED", 1)
    assert count.read_text() == "ran\n"


@pytest.mark.slow
def test_a_real_verb_imports_a_real_plant_as_a_job_with_the_folder_that_was_sent(head: Head, tmp_path: Path):
    from PIL import Image

    for number, name in enumerate(["good", "good", "dent", "dent"]):
        (tmp_path / "frames" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(tmp_path / "frames" / name / f"{number}.png")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"fleet: sent\nstore: {tmp_path}/store\nplants:\n"
        f"  - {{name: mill, images: {tmp_path}/frames, classes: {{good: ok, dent: dent}}, ok: [good]}}\n",
        "utf-8",
    )
    lines: list[str] = []
    ask = {"address": head.address, "working_dir": ROOT, "wait": True, "on_line": lines.append, "token": TOKEN}
    env = {"CROSSPLANT_HOME": str(tmp_path / "home")}
    done = submit(["import", "--fleet", str(fleet)], env=env, **ask)  # type: ignore[arg-type]
    assert (done.status, done.exit_code) == ("SUCCEEDED", 0), "\n".join(lines)
    assert any("mill" in line for line in lines)
    assert (tmp_path / "store" / "labels" / "mill.parquet").is_file()
    wrong = submit(["import", "--fleet", str(fleet), "--plant", "nowhere"], env=env, **ask)  # type: ignore[arg-type]
    assert (wrong.status, wrong.exit_code) == ("FAILED", 2)
    assert any("nowhere" in line and "Known plants: mill" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "said"), [("not-the-token", "the cluster refused the token"), ("", "asks for a token and none is set")]
)
def test_a_wrong_token_and_a_missing_one_give_one_clear_line(head: Head, token: str, said: str):
    with pytest.raises(InputError, match=said) as caught:
        submit(["train"], address=head.address, token=token)
    assert "\n" not in str(caught.value)
    assert "RAY_AUTH_TOKEN" in str(caught.value)
    assert head.address in str(caught.value)
    assert "not-the-token" not in str(caught.value)


@pytest.mark.slow
def test_a_folder_that_does_not_exist_is_refused_before_a_job_is_made(head: Head, tmp_path: Path):
    with pytest.raises(InputError, match="is not a folder"):
        submit(["train"], address=head.address, working_dir=tmp_path / "gone", token=TOKEN)


@pytest.mark.slow
def test_a_folder_too_large_to_send_gives_one_line_with_what_to_do(head: Head, tmp_path: Path):
    (tmp_path / "large.bin").write_bytes(os.urandom(LIMIT + 1_000_000))
    with pytest.raises(InputError, match="the job was not taken") as caught:
        submit(["train"], address=head.address, token=TOKEN, working_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert "Send a smaller working folder" in str(caught.value)


def test_an_address_where_nothing_listens_gives_one_line_at_once():
    port = free_ports(1)[0]
    start = time.monotonic()
    with pytest.raises(InputError, match="no Ray cluster answers") as caught:
        submit(["train"], address=f"http://127.0.0.1:{port}", token="")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_an_address_of_another_kind_is_refused_with_the_right_form():
    with pytest.raises(InputError, match="http://HOST:8265"):
        submit(["train"], address="ray://127.0.0.1:10001", token="")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CROSSPLANT_JOURNAL_URL", "postgresql://routes:geheim@db:5432/routes"),
        ("AWS_SECRET_ACCESS_KEY", "geheim"),
        ("RAY_AUTH_TOKEN", "geheim"),
    ],
)
def test_a_variable_that_holds_a_secret_is_refused_by_name_before_anything_is_sent(name: str, value: str):
    with pytest.raises(InputError, match=f"field {name}: holds a secret") as caught:
        submit(["train"], address="http://127.0.0.1:9", env={name: value}, token="")
    assert "geheim" not in str(caught.value)


def test_the_shell_line_keeps_arguments_with_spaces_and_quotes_whole():
    assert entrypoint(["predict", "a b.png", "it's"]) == "python -m crossplant predict 'a b.png' 'it'\"'\"'s'"
    with pytest.raises(InputError, match="no verb"):
        entrypoint([])


def test_the_token_is_the_one_that_ray_would_take(tmp_path: Path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    (tmp_path / "named").write_text("of-file")
    home = {"HOME": str(tmp_path)}
    assert token_of(home) == "of-home"
    assert token_of({**home, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}) == "of-file"
    assert token_of({**home, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "named"), "RAY_AUTH_TOKEN": "of-env"}) == "of-env"
    assert token_of({**home, "RAY_AUTH_TOKEN": "of-env", "RAY_AUTH_MODE": "disabled"}) is None
    assert token_of({"HOME": str(tmp_path / "empty")}) is None


def test_token_mode_without_a_token_and_an_unreadable_token_file_say_what_to_set(tmp_path: Path):
    with pytest.raises(InputError, match="RAY_AUTH_MODE: is token, but there is no token"):
        token_of({"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"})
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH: cannot be read"):
        token_of({"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")})


class BreakingLog:
    """A job whose log connection breaks in the middle of its third line, once."""

    text = "one\ntwo\nthree\nfour"

    def __init__(self) -> None:
        self.calls = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.calls += 1
        if self.calls == 1:
            yield self.text[:10]
            raise RuntimeError("WebSocket connection closed unexpectedly")
        yield self.text

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        status = "SUCCEEDED" if self.calls > 1 else "RUNNING"
        return SimpleNamespace(status=SimpleNamespace(value=status), message="", driver_exit_code=0)

    def get_job_logs(self, job_id: str) -> str:
        return self.text


@pytest.mark.slow
def test_every_line_is_seen_once_when_the_log_connection_breaks():
    lines: list[str] = []
    module._follow(BreakingLog(), "job", on_line=lines.append)
    assert lines == ["one", "two", "three", "four"]


def test_a_cluster_that_goes_away_while_a_job_is_followed_gives_one_line_with_the_job():
    class Gone(BreakingLog):
        def get_job_info(self, job_id: str) -> SimpleNamespace:
            raise ConnectionError("refused")

    with pytest.raises(InputError, match="no longer answers for job job-7"):
        module._follow(Gone(), "job-7", on_line=lambda line: None)


def test_a_job_that_runs_is_not_final():
    assert not Submission("a", "RUNNING").is_final
