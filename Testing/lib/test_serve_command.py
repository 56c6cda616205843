"""`gsmedseg serve`: whom it lets in, and what it refuses to start with."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from GSMedSegLib.cli import main

pytest.importorskip("fastapi", reason="the service needs the extra: pip install 'gsmedseg[server]'")


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GSMEDSEG_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "lets other computers in"),
        (["--host", "192.0.2.1"], "give a token"),
        (["--tls-cert", "x.pem"], "go together"),
        (["--sessions", "0"], "greater than 0"),
        (["--memory-gb", "-1"], "greater than 0"),
        (["--token-file", "missing.txt"], "missing.txt"),
        (["--weights", "no-such-weights"], "no-such-weights"),
    ],
)
def test_what_it_does_not_start_with(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("amount", ["-1", "half", "nan"])
def test_memory_for_regions_is_a_number(capsys: pytest.CaptureFixture[str], amount: str):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--cache-gb", amount])
    assert ended.value.code == 2
    assert f"expected gigabytes, 0 or more; got '{amount}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "web"])
@pytest.mark.parametrize("number", ["99999", "-1", "http"])
def test_a_port_is_a_number_that_exists(capsys: pytest.CaptureFixture[str], number: str, command: str):
    with pytest.raises(SystemExit) as ended:
        main([command, f"--port={number}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument --port: expected a port from 0 to 65535; got '{number}'" in said
    assert said.count("\n") == 1


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert main(["serve", "--port", str(number)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"gsmedseg: error: cannot listen on port {number} of 127.0.0.1")
    assert "choose another --port" in said[-1]


def test_weak_tokens_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for token in ("short", "with a space in the midst", "tökén-tökén-tökén-tökén"):
        monkeypatch.setenv("GSMEDSEG_TOKEN", token)
        assert main(["serve", "--host", "0.0.0.0"]) == 2
        assert "16 or more ASCII" in capsys.readouterr().err
        assert token not in capsys.readouterr().out
    (tmp_path / "token").write_text("short\n")
    assert main(["serve", "--token-file", str(tmp_path / "token")]) == 2


def test_a_certificate_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no certificate")
    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    assert main(["serve", *files]) == 2
    assert "not a certificate and its key" in capsys.readouterr().err
