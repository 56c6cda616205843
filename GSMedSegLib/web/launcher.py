"""Several users on one computer: a process, a port and a token for each, for Slicer's core has one scene."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from GSMedSegLib.console import say, when_input_ends

TOKEN_VARIABLE = "GSMEDSEG_WEB_TOKEN"
"""Environment variable with the page's token: unlike arguments, other users of the machine do not see it."""

MOST_STARTS = 5
"""A page that ends by itself soon after its start is not started more often than this in a row."""

STEADY_S = 60.0
"""A page that ran for so long had started well."""

_POLL_S = 0.2
_END_S = 10.0


class Page:
    """One user's page, in a process of its own that ends with this one.

    Args:
        number: of the user, from 1.
        command: that serves the page.
        token: of the page; it stays the same when the page is started again.
    """

    def __init__(self, number: int, command: Sequence[str], token: str) -> None:
        self.number = number
        self._command, self._token = list(command), token
        self._process: subprocess.Popen[str] | None = None
        self.starts = 0
        """In a row, each after a page that had not run for long."""
        self._started_s = 0.0

    @property
    def given_up(self) -> bool:
        """Whether it ended too often, and just now soon after its start, to be started again."""
        steady = time.monotonic() - self._started_s > STEADY_S
        return self.starts >= MOST_STARTS and self.pid is None and not steady

    @property
    def pid(self) -> int | None:
        """Of the process; None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the process; what it says is passed on with the user's number."""
        self._hang_up()
        now = time.monotonic()
        self.starts = 1 if now - self._started_s > STEADY_S else self.starts + 1
        self._started_s = now
        environment = {**os.environ, TOKEN_VARIABLE: self._token, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**environment, "PYTHONIOENCODING": "utf-8"},
        )
        threading.Thread(target=self._pass_on, args=(self._process,), daemon=True).start()

    def end(self) -> None:
        """Have the process end by itself, which keeps its user's work, and wait for it."""
        process = self._process
        if process is None:
            return
        self._hang_up()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _hang_up(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.strip():
                    print(f"user {self.number}: {line.rstrip()}", flush=True)


def launch(
    users: int,
    port: int,
    arguments: Sequence[str],
    tokens: Sequence[str] | None = None,
    until_input_ends: bool = False,
) -> int:
    """Serve a page for each user until the program is told to end.

    Args:
        users: how many.
        port: of the first page; the others follow.
        arguments: of `gsmedseg web` for every page, without users, port, user name and file with tokens.
        tokens: a page's each; None for new ones.
        until_input_ends: the end of the standard input tells it to end, too.

    Returns:
        exit code: 0 when it was told to end, 1 when every page kept ending.

    Raises:
        ValueError: no users, or ports that do not exist.
    """
    if users < 1 or port < 1 or port + users - 1 > 65535:
        raise ValueError(
            f"expected one user or more and ports up to 65535; got {users} users from port {port} on"
        )
    tokens = tokens or [secrets.token_urlsafe(24) for _ in range(users)]
    assert len(set(tokens)) == users
    pages = [
        Page(
            number,
            [
                *(sys.executable, "-m", "GSMedSegLib.cli", "web", *arguments),
                *("--no-browser", "--until-input-ends"),
                *(f"--port={port + number - 1}", f"--user=user{number}"),
            ],
            token,
        )
        for number, token in enumerate(tokens, 1)
    ]
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    if until_input_ends:
        when_input_ends(ending.set)
    before = {name: signal.signal(name, end) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        return watch(pages, ending)
    finally:
        for page in pages:
            page.end()
        for name, handler in before.items():
            signal.signal(name, handler)


def watch(pages: Sequence[Page], ending: threading.Event) -> int:
    """Start pages, and those that end again, until told otherwise or all are given up; the exit code."""
    for page in pages:
        page.start()
    running = list(pages)
    while running and not ending.is_set():
        for page in [page for page in running if page.pid is None]:
            if page.given_up:
                say(f"user {page.number}: the page ended {page.starts} times; see above why")
                running.remove(page)
            else:
                say(f"user {page.number}: the page ended; it is started again")
                page.start()
        time.sleep(_POLL_S)
    return 0 if running else 1
