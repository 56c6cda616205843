"""`gsmedseg doctor`: what it prints, in which order, and its exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from GSMedSegLib import __version__, doctor
from GSMedSegLib.cli import main
from GSMedSegLib.doctor import CHECKS, Check, Finding
from GSMedSegLib.doctor_command import report
from GSMedSegLib.machine import Machine

FINDINGS = [
    Finding("Python", "ok", "3.12.1"),
    Finding("GPU", "warning", "not used", "get another torch"),
    Finding("memory", "problem", "0.2 GiB", "close other programs"),
    Finding("extras", "ok", "without server", "install it"),
]


def patient(monkeypatch: pytest.MonkeyPatch, *verdicts: Any) -> None:
    """As if the machine had these ailments."""
    checks = tuple(Check(f"check {n}", lambda _, v=verdict: v) for n, verdict in enumerate(verdicts))
    monkeypatch.setattr(doctor, "CHECKS", checks)


def test_what_matters_comes_first():
    assert report(FINDINGS) == "\n".join(
        [
            f"GSMedSeg {__version__}: 1 problem and 1 warning",
            "",
            "PROBLEM  memory  0.2 GiB",
            "                 fix: close other programs",
            "WARNING  GPU     not used",
            "                 fix: get another torch",
            "ok       Python  3.12.1",
            "ok       extras  without server",
            "                 tip: install it",
        ]
    )


def test_lines_are_wrapped_under_their_text_and_paths_stay_whole():
    path = "/a/" + "long-" * 20
    lines = report([Finding("x", "ok", f"word {'and ' * 30}{path}")], columns=60).splitlines()[2:]
    assert lines[-1] == " " * 12 + path
    assert all(len(line) <= 60 for line in lines[:-1])
    assert all(line.startswith(" " * 12) for line in lines[1:])


def test_nothing_to_say():
    assert report([]).startswith(f"GSMedSeg {__version__}: all is well")
    many = [Finding("a", "problem", "x"), Finding("b", "problem", "y")]
    assert report(many).splitlines()[0].endswith(": 2 problems")


@pytest.mark.parametrize(("states", "code"), [(["ok", "warning"], 0), (["ok", "problem"], 1), ([], 0)])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    states: list[str],
    code: int,
    options: list[str],
):
    patient(monkeypatch, *[(state, "found", "") for state in states])
    assert main(["doctor", *options]) == code
    assert capsys.readouterr().err == ""


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    patient(monkeypatch, ("warning", "Größe", "do this"))
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "gsmedseg": __version__,
        "quick": False,
        "findings": [{"name": "check 0", "state": "warning", "found": "Größe", "advice": "do this"}],
    }


def test_quick_on_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def not_asked(machine: Machine) -> Any:
        raise AssertionError("a slow check was asked")

    checks = tuple(Check(c.name, not_asked, True) if c.slow else c for c in CHECKS)
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert all((f"  {check.name}  " in printed) != check.slow for check in CHECKS if check.name != "torch")
