"""What the service's tests share: a small engine, and a server of it in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("fastapi", reason="the service needs the extra: pip install 'gsmedseg[server]'")

from GSMedSegLib.service.client import EngineClient
from GSMedSegLib.service.listener import Listener
from GSMedSegLib.service.server import Service, make_app
from GSMedSegLib.service.sessions import Limits

TOKEN = "a-token-for-the-tests"


class Served:
    """A service in a thread, on a port of this machine.

    Args:
        engine: that it serves.
        limits: of the service.
        port: 0 for a free one.
    """

    def __init__(self, engine: Any, limits: Limits, port: int = 0, tls: Any = None) -> None:
        self.engine = engine
        service = Service(engine, limits)
        self.listener = Listener(make_app(service, TOKEN), "127.0.0.1", port, tls)
        self._working = threading.Thread(target=service.worker.work, daemon=True)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.listener.serve()), daemon=True)

    @property
    def port(self) -> int:
        return self.listener.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Served:
        self._working.start()
        self._thread.start()
        wait_until(lambda: self.listener.started)
        return self

    def stop(self) -> None:
        self.listener.end()
        for thread in (self._thread, self._working):
            thread.join(20)
            assert not thread.is_alive(), "the service does not end"

    def client(self, **options: Any) -> EngineClient:
        return EngineClient(self.url, TOKEN, **options)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Waits for something that is to become true; a busy machine may take its time."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def serve(make_engine: Callable[..., Any]) -> Callable[..., AbstractContextManager[Served]]:
    """Starts services of a small engine, whose random weights leave room for two objects."""

    @contextmanager
    def start(engine: Any = None, port: int = 0, tls: Any = None, **limits: Any) -> Iterator[Served]:
        made = engine or make_engine({"roi": "16"}, additions=True, detail=0)
        served = Served(made, Limits(**{"memory_gb": 2.0, **limits}), port, tls).start()
        try:
            yield served
        finally:
            served.stop()

    return start


@pytest.fixture
def image() -> NDArray[np.int16]:
    """(20, 24, 28) two bright balls on noise."""
    rng = np.random.default_rng(1)
    k, j, i = np.ogrid[:20, :24, :28]
    balls = ((k - 8) ** 2 + (j - 8) ** 2 + (i - 8) ** 2 < 25) | (
        (k - 12) ** 2 + (j - 16) ** 2 + (i - 20) ** 2 < 16
    )
    return (100 * balls + rng.normal(0, 10, balls.shape)).astype(np.int16)
