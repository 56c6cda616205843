"""The web server around the service: where it listens, and when it ends."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import uvicorn

GRACE_S = 5
"""Answers under way at the end have so long to be finished."""


class Listener(uvicorn.Server):
    """Serves an application until it is told to end, by Ctrl+C, a signal, or the end of the standard input.

    Args:
        app: from `make_app`.
        host: address to listen on.
        port: 0 for any that is free.
        tls: certificate and key files, to encrypt.
    """

    def __init__(self, app: Any, host: str, port: int, tls: tuple[Path, Path] | None = None) -> None:
        certificate, key = (None, None) if tls is None else map(str, tls)
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                ssl_certfile=certificate,
                ssl_keyfile=key,
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                lifespan="on",
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says where."""
        await super().startup(sockets)
        if not self.started or not self.servers:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        where = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"listening on {where}\n", end="", flush=True)  # at once: `OwnEngine` reads it as one line

    def end(self) -> None:
        """Stop listening, finish or cancel what is under way, and return from `run`; from any thread."""
        self.should_exit = True
