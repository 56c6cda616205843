"""What every request has to pass: the right address, token and protocol, in reasonable size and time."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from GSMedSegLib.service.errors import (
    EngineError,
    Forbidden,
    InvalidRequest,
    TooLarge,
    TooSlow,
    VersionMismatch,
    WrongToken,
)
from GSMedSegLib.service.sessions import Limits
from GSMedSegLib.service.wire import PROTOCOL, PROTOCOL_HEADER

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)
"""What anybody may ask."""


class Guard:
    """An ASGI application around another one.

    Web pages are kept out by their Origin, foreign names of this machine (DNS rebinding) by their Host.

    Args:
        app: gets the requests that pass.
        token: every request has it; empty lets everybody in.
        hosts: names by which the service may be called; empty for any.
        limits: of size and time.
    """

    def __init__(self, app: App, token: str, hosts: frozenset[str], limits: Limits) -> None:
        self._app, self._token, self._hosts, self._limits = app, token, hosts, limits

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, or the start and the end of the service."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        broken: list[EngineError | InvalidRequest] = []

        async def send_plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (PROTOCOL_HEADER.lower().encode(), str(PROTOCOL).encode()),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        async def send_marked(message: Message) -> None:
            nonlocal started
            if broken:
                error, answered = broken[0], started
                started = True
                if not answered:  # the application took it for an error of its own
                    await answer_error(error, send_plain)
                return
            if message["type"] == "http.response.start":
                started = True
            await send_plain(message)

        try:
            self._check(scope)
            await self._app(scope, self._bounded(receive, broken), send_marked)
        except (EngineError, InvalidRequest) as error:
            if not started:
                await answer_error(error, send_plain)

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        if "origin" in headers:
            raise Forbidden("this engine answers no web pages; use a GSMedSeg client")
        host = headers.get("host", "").rsplit("@")[-1]
        name = host[: host.index("]") + 1] if host.startswith("[") else host.split(":")[0]
        if self._hosts and name.lower() not in self._hosts:
            raise Forbidden(
                f"this engine is called {' or '.join(sorted(self._hosts))}, not {name!r}; use that address"
            )
        if scope["path"] in OPEN_PATHS:
            return
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self._token and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise WrongToken(
                "the engine wants another token; copy the one it was started with"
                if given
                else "the engine wants a token; enter the one it was started with"
            )
        spoken = headers.get(PROTOCOL_HEADER.lower())
        if spoken is not None and spoken != str(PROTOCOL):
            raise VersionMismatch(
                f"the engine speaks protocol {PROTOCOL}, the client {spoken!r:.20}; update the older of them"
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise InvalidRequest(f"content-length is a number, got {length!r:.20}")
        self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        if size > self._limits.request_bytes:
            raise TooLarge(
                f"a request has at most {self._limits.request_bytes / 2**20:.0f} MiB; send images in chunks"
            )

    def _bounded(self, receive: Receive, broken: list[EngineError | InvalidRequest]) -> Receive:
        """Counts what arrives, and does not wait forever for a request's end; keeps what it raised."""
        size, complete = 0, False

        async def receive_bounded() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()  # waits for the client to go away
            try:
                message = await asyncio.wait_for(receive(), self._limits.receive_s)
            except asyncio.TimeoutError:
                broken.append(
                    TooSlow(
                        f"nothing came for {self._limits.receive_s:.0f} s within a request; send it again"
                    )
                )
                raise broken[0] from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            try:
                self._check_size(size)
            except TooLarge as error:
                broken.append(error)
                raise
            return message

        return receive_bounded


async def answer_error(error: EngineError | InvalidRequest, send: Send) -> None:
    """Answers a request with an error."""
    body = json.dumps({"error": error.code, "message": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # What is left of the request is not read, so the connection is of no more use.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
