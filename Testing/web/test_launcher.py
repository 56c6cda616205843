"""A page for each of several users: processes that are started, watched and ended."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from GSMedSegLib import web_command
from GSMedSegLib.cli import main
from GSMedSegLib.web import launcher
from GSMedSegLib.web.launcher import MOST_STARTS, TOKEN_VARIABLE, Page, launch, watch
from GSMedSegLib.web_command import _address, _tell, _tokens, _without
from Testing.web.conftest import WebServer

SERVES = "import os, sys; print('open', os.environ['GSMEDSEG_WEB_TOKEN'], flush=True); sys.stdin.read()"
"""Stands for `gsmedseg web --until-input-ends`."""


LAUNCHES = """
import sys
from GSMedSegLib.web import launcher
class Page(launcher.Page):
    def __init__(self, number, command, token):
        super().__init__(number, [sys.executable, "-c", sys.argv[1]], token)
launcher.Page = Page
sys.exit(launcher.launch(2, 8700, [], until_input_ends=True))
"""
"""Two such pages, until its own input ends."""


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_page_that_ends_is_started_again_with_its_token(capfd: pytest.CaptureFixture[str]):
    out, err = "", ""

    def has_said(text: str, times: int) -> bool:
        nonlocal out, err
        said = capfd.readouterr()
        out, err = out + said.out, err + said.err
        return out.count(text) == times

    pages = [Page(n, [sys.executable, "-c", SERVES], f"token-{n}") for n in (1, 2)]
    ending = threading.Event()
    watching = threading.Thread(target=watch, args=(pages, ending))
    watching.start()
    wait_until(lambda: has_said("user 1: open token-1", 1))
    wait_until(lambda: has_said("user 2: open token-2", 1))
    first, second = pages[0].pid, pages[1].pid
    assert first is not None
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: has_said("user 1: open token-1", 2))
    assert pages[0].pid not in (None, first)
    assert pages[1].pid == second
    ending.set()
    watching.join()
    for page in pages:
        page.end()
        assert page.pid is None
    assert has_said("user 2: open token-2", 1)
    assert "user 1: the page ended; it is started again" in err


def test_pages_end_with_the_input_of_their_launcher():
    """As when the connection breaks over which it was started."""
    program = subprocess.Popen(
        [sys.executable, "-c", LAUNCHES, SERVES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert program.stdin is not None
    assert program.stdout is not None
    told = sorted(program.stdout.readline().split(":")[0] for _ in range(2))
    assert told == ["user 1", "user 2"]
    program.stdin.close()
    assert program.wait(60) == 0
    program.stdout.close()


def test_a_page_that_keeps_ending_is_given_up(capfd: pytest.CaptureFixture[str]):
    page = Page(1, [sys.executable, "-c", "raise SystemExit('port taken')"], "token")
    assert watch([page], threading.Event()) == 1
    assert page.starts == MOST_STARTS
    page.end()
    said = capfd.readouterr()
    assert "the page ended 5 times" in said.err
    assert "user 1: port taken" in said.out


def test_a_page_given_up_leaves_the_others_alone(capfd: pytest.CaptureFixture[str]):
    bad = Page(1, [sys.executable, "-c", "raise SystemExit('port taken')"], "token")
    good = Page(2, [sys.executable, "-c", SERVES], "token")
    ending = threading.Event()
    codes: list[int] = []
    watching = threading.Thread(target=lambda: codes.append(watch([bad, good], ending)))
    watching.start()
    wait_until(lambda: bad.given_up)
    wait_until(lambda: "the page ended 5 times" in capfd.readouterr().err)
    assert good.pid is not None
    ending.set()
    watching.join()
    good.end()
    assert codes == [0]


def test_a_page_that_ran_long_enough_begins_to_count_anew(monkeypatch: pytest.MonkeyPatch):
    """Also after its last start of those allowed in a row."""
    page = Page(1, [sys.executable, "-c", ""], "token")
    for _ in range(MOST_STARTS):
        page.start()
        wait_until(lambda: page.pid is None)
    assert page.given_up
    monkeypatch.setattr(launcher, "STEADY_S", -1.0)  # so it had run for long, this last time
    assert not page.given_up
    page.start()
    assert page.starts == 1
    page.end()


@pytest.mark.parametrize(("users", "port"), [(0, 8732), (3, 65534), (2, 0)])
def test_impossible_numbers_are_refused(users: int, port: int):
    with pytest.raises(ValueError, match=r"expected one user or more and ports up to 65535; got"):
        launch(users, port, [])


def test_users_share_all_other_arguments():
    given = ["scan.nii.gz", "--users", "3", "--port=9000", "--user", "me", "--precision", "fp32"]
    assert _without(given, "--users", "--port", "--user") == ["scan.nii.gz", "--precision", "fp32"]


def test_users_have_tokens_of_their_own_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not on the command line, where other users of the computer would see them."""
    file = tmp_path / "tokens"
    first, second, third = (f"{name}-token-0123456789" for name in ("first", "second", "third"))
    file.write_text(f"{first}\n{second}\n\n{third}\n")
    given = [*("web", "--users", "2", "--token-file"), str(file), "--precision", "fp32"]
    monkeypatch.setattr("sys.argv", ["gsmedseg", *given])
    monkeypatch.setattr(web_command, "NEEDED", {})
    pages: list[Page] = []
    monkeypatch.setattr(launcher, "watch", lambda made, _: pages.extend(made) or 0)
    assert main(given) == 0
    assert [page._token for page in pages] == [first, second]
    for page in pages:
        assert "--precision" in page._command
        assert not {"--token-file", str(file), first, second} & set(page._command)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["a" * 20, "b" * 20], "3 different tokens, one a line; the file has 2, 2 of them different"),
        (["a" * 20, "b" * 20, "a" * 20], "the file has 3, 2 of them different"),
        (["a" * 20, "b" * 20, "short"], "choose a longer one"),
        ([], "the file has 0"),
    ],
)
def test_too_few_or_equal_tokens_are_refused(tmp_path: Path, said: list[str], message: str):
    file = tmp_path / "tokens"
    file.write_text("\n".join(said))
    with pytest.raises(ValueError, match=message):
        _tokens(file, 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_token_is_read_as_editors_and_shells_write_it(tmp_path: Path, encoding: str):
    file, token = tmp_path / "token", "a-token-0123456789"
    file.write_text(f"{token}\r\n", encoding=encoding)
    options = argparse.Namespace(token_file=file, host="127.0.0.1", port=0, tls_cert=None, tls_key=None)
    assert _address(options).token == token
    assert _tokens(file, 1) == [token]
    file.write_text(token, encoding="utf-16")
    with pytest.raises(ValueError, match="is not text in UTF-8; save it with this encoding"):
        _address(options)


def test_the_browser_is_led_by_a_file_that_nobody_else_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What a program is started with, every user of the computer sees; and the address has the token."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    url, way = "http://127.0.0.1:8732/?token=secret", tmp_path / "open.html"
    _tell(url, None)
    assert not way.exists()
    _tell(url, way)
    wait_until(lambda: bool(opened))
    assert opened == [way.as_uri()]
    assert f'content="0; url={url}"' in way.read_text(encoding="utf-8")
    assert os.name == "nt" or way.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out == 2 * f"open {url}\n"


@pytest.mark.slow
@pytest.mark.usefixtures("_draws")
def test_an_input_that_ended_before_the_page_was_ready_ends_it(tmp_path: Path):
    """As when ssh breaks while GSMedSeg starts."""
    ended = subprocess.run(
        [sys.executable, "-m", "GSMedSegLib.cli", "web", "--no-browser", "--port=0", "--until-input-ends"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "GSMEDSEG_HOME": str(tmp_path)},
        timeout=120,
        check=True,
    )
    assert ended.stdout == b""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
    reason="Windows has no SIGHUP; with nohup it is ignored",
)
@pytest.mark.usefixtures("_draws")
def test_a_page_whose_terminal_is_closed_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Images that were sent, and the way to the page."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = WebServer(tmp_path / "home")
    url = server.url.replace("/?", f"/upload/{'0' * 16}/a.dcm?")
    assert urlopen(Request(url, data=b"voxels", method="PUT")).status == 200
    assert list(tmp_path.glob("gsmedseg-*/*/a.dcm"))
    os.kill(server.pid, signal.SIGHUP)
    assert server._process.wait(30) == 0
    assert server.end() == 0
    assert not list(tmp_path.glob("gsmedseg-*"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="ends the program by SIGTERM, which Windows has not")
@pytest.mark.usefixtures("_draws")
def test_two_users_have_pages_of_their_own(tmp_path: Path):
    from urllib.error import HTTPError

    from Testing.service.conftest import free_port

    port = free_port()
    environment = {**os.environ, "GSMEDSEG_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    environment.pop(TOKEN_VARIABLE, None)
    program = subprocess.Popen(
        [sys.executable, "-m", "GSMedSegLib.cli", "web", "--users", "2", f"--port={port}"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
    )
    assert program.stdout is not None
    urls = {}
    for line in program.stdout:
        if ": open " in line:
            user, _, url = line.partition(": open ")
            urls[user] = url.strip()
        if len(urls) == 2:
            break
    first, second = urls["user 1"], urls["user 2"]
    assert urlopen(first).status == urlopen(second).status == 200
    token = first.partition("?")[2]
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{second.partition('?')[0]}?{token}")
    assert refused.value.code == 403
    program.terminate()
    program.stdout.read()
    program.stdout.close()
    assert program.wait(60) == 0
