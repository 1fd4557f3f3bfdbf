"""The front door's exit codes, and what stands on stdout and stderr before a verb blocks."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import crossplant
from tests.fleets import drawn_fleet


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a fleet of one plant, `mill`; home is a folder with a name that rich would take for markup."""
    monkeypatch.setenv("CROSSPLANT_HOME", str(tmp_path / "[bold]"))
    return str(drawn_fleet(tmp_path / "works", "mill", num_lots=1))


def code(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["crossplant", *words])
    with pytest.raises(SystemExit) as ended:
        crossplant.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("withdrawn", [True, False])
def test_evaluate_ends_with_1_after_its_document_when_a_decision_was_withdrawn(fleet, monkeypatch, capsys, withdrawn):
    document = {"plants": {"mill": {"withdrawn": withdrawn}}}
    monkeypatch.setattr("jobs.verdicts.evaluate", lambda *_, **__: document)
    assert code(monkeypatch, "evaluate", "--fleet", fleet, "--json", "-") == int(withdrawn)
    said = capsys.readouterr()
    assert json.loads(said.out) == document
    assert ("check failed: 1 decisions were withdrawn" in said.err) is withdrawn


@pytest.mark.parametrize(
    ("state", "withdrawn", "expected"), [("done", [], 0), ("failed", [], 1), ("done", ["mill"], 1)]
)
@pytest.mark.parametrize("words", [(), ("--keep",)])
def test_demo_ends_with_1_when_a_run_failed_or_a_decision_was_withdrawn_once_it_has_stopped_serving(
    fleet, monkeypatch, capsys, state, withdrawn, expected, words
):
    stopped: list[bool] = []
    answers: dict[str, Any] = {
        "plants.synthetic.make_fleet": Path(fleet),
        "jobs.verbs.import_fleet": {"faults": []},
        "jobs.verbs.audit_fleet": {},
        "jobs.verbs.train": {"runs": [{"state": state}]},
        "jobs.verdicts.compare": {"matrix": {}, "decisions": {}, "report": "compare.html"},
        "jobs.verdicts.evaluate": {},
        "jobs.release.publish": {"withdrawn": withdrawn, "uncertified": []},
        "crossplant._called": {"address": "http://127.0.0.1:9", "endpoints": {}, "metrics": {}},
    }
    for name, answer in answers.items():
        monkeypatch.setattr(name, lambda *_, found=answer, **__: found)
    monkeypatch.setattr("crossplant._stop", lambda _, keep: stopped.append(keep))
    assert code(monkeypatch, "demo", "--json", "-", *words) == expected
    assert stopped == [bool(words)]
    document = json.loads(capsys.readouterr().out)
    assert document["withdrawn"] == withdrawn
    assert set(document) >= {"plants", "synthetic", "runs", "matrix", "decisions", "endpoints", "metrics", "seconds"}


def test_serve_has_said_every_endpoint_in_a_line_and_its_document_before_it_waits(fleet, tmp_path, monkeypatch, capsys):
    document = {"address": "http://127.0.0.1:8000", "plants": ["mill"]}
    waiting, out = [], io.BytesIO()
    monkeypatch.setattr("serving.verbs.serve_fleet", lambda *_, **__: document)
    monkeypatch.setattr("serving.verbs.wait_until_interrupted", lambda _: waiting.append(json.loads(out.getvalue())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    assert code(monkeypatch, "serve", "--fleet", fleet, "--json", "-") == 0
    assert waiting == [document]
    tokens = tmp_path / "[bold]/tokens"
    assert capsys.readouterr().err.splitlines() == [
        f"http://127.0.0.1:8000/plants/mill/predict  token: {tokens}/mill.token",
        f"promote, roll back: {tokens}/_lead.token; GET /metrics: {tokens}/_auditor.token",
    ]


def test_the_frozen_floor_takes_no_number_of_trials(fleet, tmp_path, monkeypatch, capsys):
    out = ("--out", str(tmp_path / "best.yaml"))
    assert code(monkeypatch, "tune", "--fleet", fleet, "--frozen", "--trials", "3", *out) == 2
    assert "error: field --trials: frozen heads are fitted at all settings" in capsys.readouterr().err


def test_policy_needs_a_comparison_and_takes_its_parts_in_pairs(fleet, monkeypatch, capsys):
    assert code(monkeypatch, "policy", "--fleet", fleet, "--plant", "mill") == 2
    assert "error: file " in (said := capsys.readouterr().err)
    assert "nothing has been compared. Run `crossplant compare` first" in said
    assert code(monkeypatch, "policy", "--fleet", fleet, "--plant", "mill", "--parts", "100") == 2
    assert "error: field --checked: is missing" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["70000", "65536", "-1"])
def test_a_port_that_is_none_is_refused(fleet, monkeypatch, capsys, port):
    assert code(monkeypatch, "serve", "--fleet", fleet, "--port", port) == 2
    assert "'--port'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"), [(("foo",), "No such command 'foo'"), (("train", "--sed", "3"), "No such option: --sed")]
)
@pytest.mark.parametrize("where", [("--kuberay",), ("--address", "http://127.0.0.1:9")])
def test_what_no_verb_takes_is_refused_before_it_is_sent(monkeypatch, capsys, where, words, said):
    assert code(monkeypatch, "submit", *where, *words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_a_path_of_the_cluster_is_not_looked_for_here(monkeypatch, capsys):
    assert code(monkeypatch, "submit", "--kuberay", "train", "--json", "/nowhere/here/train.json") == 0
    assert "/nowhere/here/train.json" in capsys.readouterr().out


def test_shots_of_one_part_are_not_asked_as_one_part(monkeypatch, capsys):
    assert code(monkeypatch, "predict", "--bundle", "nowhere", "--one-part", "--repeats", "shots") == 2
    assert "field --repeats / --one-part: shots of one part are judged one by one" in capsys.readouterr().err
