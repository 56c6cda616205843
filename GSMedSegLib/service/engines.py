"""Engines that a client may use: its own, as a process on this computer, or one on a server."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from GSMedSegLib.service.client import EngineClient
from GSMedSegLib.service.errors import EngineError, EngineLost, NotGSMedSeg, Unreachable, WrongToken

LOG_LINES = 500
"""Lines of an engine's log that are kept."""

START_S = 120.0
"""An engine that does not answer after so long is given up: loading torch from a slow disk takes a minute."""

_POLL_S = 0.1
_STOP_S = 5.0

TOKEN_VARIABLE = "GSMEDSEG_TOKEN"
"""The environment variable with the token: unlike arguments, other users of the machine do not see it."""

LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)$")
"""How `Listener` says where an engine is, which has the port chosen by the system."""

Check = Callable[[], None]
"""Called while waiting; may raise to break off."""


class EngineSource(Protocol):
    """Where an engine comes from."""

    def connect(self, check: Check | None = None) -> EngineClient:
        """A client of an engine that answers; it is started if it has to be."""

    def lost(self) -> None:
        """The engine did not answer any more: the next `connect` is to make sure of one that does."""


class ServerEngine:
    """An engine somebody else started.

    Args:
        url: as a user enters it.
        token: that it was started with.
        ca_file: a certificate to trust.
        timeout_s: silence after which it counts as lost.
        retry_s: for how long an engine that was lost is waited for.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        ca_file: str | None = None,
        timeout_s: float = 15.0,
        retry_s: float = 20.0,
    ) -> None:
        self._client = EngineClient(url, token, ca_file, timeout_s)
        self._retry_s = retry_s
        self._known = False
        self._lost = False

    def connect(self, check: Check | None = None) -> EngineClient:
        """The client, once the engine has answered.

        Raises:
            EngineError: it does not; the text says why.
        """
        until = time.monotonic() + (self._retry_s if self._lost else 0)
        while not self._known:
            try:
                self._client.about()
                self._known, self._lost = True, False
            except (Unreachable, EngineLost, NotGSMedSeg):
                if time.monotonic() > until:
                    raise
                _wait(check)
        return self._client

    def lost(self) -> None:
        """The next `connect` waits for it to come back."""
        self._client.close()
        self._lost, self._known = self._known or self._lost, False


class OwnEngine:
    """An engine in a process of its own on this computer; it ends with the process that started it.

    Args:
        python: program to run it with.
        arguments: of `gsmedseg serve`, such as --weights and --device.
        environment: in place of this process's own.
        timeout_s: silence after which it counts as lost.
    """

    def __init__(
        self,
        python: str = sys.executable,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        timeout_s: float = 15.0,
    ) -> None:
        self._python, self._arguments = python, tuple(arguments)
        self._environment = environment
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._client: EngineClient | None = None
        self._token = ""
        self._ports: list[int] = []
        self._answered = False
        self._ended = False
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        """What it said, a line each."""

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process; None when it does not live."""
        return self._process.pid if self._process is not None and self.running else None

    def connect(self, check: Check | None = None) -> EngineClient:
        """A client; the engine is started when it does not run, and waited for.

        Raises:
            EngineError: it was stopped, ended at once, or does not answer; the text has what it said last.
            OSError: the program cannot be run.
        """
        if not self._ended and not self.running:
            self._start()
        ports, process = self._ports, self._process
        until = time.monotonic() + START_S
        while True:
            client = self._client
            if self._ended or ports is not self._ports:
                self._end(0)  # it may have been started while it was being stopped
                raise EngineError("the engine was stopped; start it again")
            if client is not None and self._answered:
                return client
            if not self.running:
                raise EngineError(self._why_it_ended())
            try:
                if not ports:
                    raise Unreachable("it has not said where it listens")
                if client is None:
                    self._client = client = EngineClient(
                        f"127.0.0.1:{ports[0]}",
                        self._token,
                        timeout_s=self._timeout_s,
                        lives=lambda: process is not None and process.poll() is None,
                    )
                client.about()
                self._answered = True
            except (Unreachable, EngineLost, NotGSMedSeg, WrongToken) as error:
                if client is not None:
                    client.close()
                if time.monotonic() > until:
                    self._end()
                    raise EngineError(f"the engine does not answer after {START_S:.0f} s: {error}") from error
                _wait(check)

    def lost(self) -> None:
        """Ends what is left of it; the next `connect` starts another one."""
        self._end(0)

    def stop(self) -> None:
        """End the process for good: nobody who still asks starts another one."""
        self._ended = True
        self._end()

    def _end(self, wait_s: float = _STOP_S) -> None:
        """Ends the process: by closing its input, and by force when it has not ended after `wait_s`."""
        process, self._process = self._process, None
        if self._client is not None:
            self._client.close()
        self._client, self._ports, self._answered = None, [], False
        if process is None:
            return
        if process.stdin is not None:
            with suppress(OSError):  # it has ended already
                process.stdin.close()
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self._end(0)
        self._token, ports = secrets.token_urlsafe(32), self._ports
        # It says itself which port it got: on one chosen here, another user's program could listen first.
        command = [self._python, "-m", "GSMedSegLib.cli", "serve", "--port", "0", "--until-input-ends"]
        environment = dict(os.environ if self._environment is None else self._environment)
        environment.update(
            {TOKEN_VARIABLE: self._token, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        )
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW
        self._process = subprocess.Popen(
            [*command, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            **options,
        )
        threading.Thread(target=self._listen, args=(self._process, ports), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str], ports: list[int]) -> None:
        """Keeps what a process says, and the port that it listens on."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.log.append(line.rstrip())
                told = None if ports else LISTENING.search(line.rstrip())
                if told is not None:
                    ports.append(int(told[1]))

    def _why_it_ended(self) -> str:
        code = self._process.returncode if self._process is not None else None
        said = [line for line in list(self.log) if line.strip()]
        return f"the engine ended (exit code {code}): {said[-1] if said else 'it said nothing'}"


def _wait(check: Check | None) -> None:
    if check is not None:
        check()
    time.sleep(_POLL_S)
