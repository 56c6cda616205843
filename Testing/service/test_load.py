"""Many clients, long sessions, bad lines: no cross-talk, and memory that does not grow."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import psutil
import pytest

from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Click, ObjectPrompts
from GSMedSegLib.service.engines import ServerEngine
from GSMedSegLib.service.remote_image import RemoteImage
from GSMedSegLib.service.wire import ImageBytes, Question
from Testing.service.conftest import TOKEN, Served

Serve = Callable[..., AbstractContextManager[Served]]

CLIENTS = 8
CLICKS = 50


def scene(seed: int) -> np.ndarray:
    """An image of its own size and content for each client."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(12, 28, 3))
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    radius = rng.uniform(3, 6)
    ball = sum((g - n / 2) ** 2 for g, n in zip(grid, shape)) < radius**2
    return (100 * ball + rng.normal(0, 5, shape)).astype(np.float32)


def session_of(seed: int, image: np.ndarray) -> list[ObjectPrompts]:
    """Fifty steps: clicks, and undo every third time."""
    rng = np.random.default_rng(100 + seed)
    middle = tuple(n // 2 for n in image.shape)
    clicks, steps = [Click(middle, True)], []
    for number in range(CLICKS):
        steps.append(ObjectPrompts(tuple(clicks)))
        if number % 3 == 2 and len(clicks) > 1:
            clicks.pop()
        else:
            kji = tuple(int(rng.integers(n)) for n in image.shape)
            clicks.append(Click(kji, bool(rng.integers(2))))
            clicks = clicks[:1] + clicks[-3:]
    return steps


@pytest.mark.slow
def test_eight_clients_with_fifty_clicks_each(serve: Serve, make_engine: Callable[..., Any]):
    engine = make_engine({"roi": "16"}, additions=True, cache_gb=0.01)
    images = [scene(seed) for seed in range(CLIENTS)]
    wanted = []
    for seed, image in enumerate(images):
        predictor = Predictor(engine)
        predictor.set_image(image, np.eye(4))
        wanted.append([predictor.segment_from(prompts).mask for prompts in session_of(seed, image)])
    wrong: list[str] = []

    def work(seed: int, source: ServerEngine) -> None:
        try:
            remote = RemoteImage(source, images[seed], np.eye(4))
            for number, prompts in enumerate(session_of(seed, images[seed])):
                mask = remote.segment(Question(prompts)).mask.whole()
                if not np.array_equal(mask, wanted[seed][number]):
                    wrong.append(f"client {seed}, click {number}")
        except Exception as error:  # noqa: BLE001 - a thread's error would be lost
            wrong.append(f"client {seed}: {error!r}")

    with serve(engine, memory_gb=4.0) as served:
        threads = [
            threading.Thread(target=work, args=(seed, ServerEngine(served.url, TOKEN, timeout_s=60)))
            for seed in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    assert wrong == []


@pytest.mark.slow
def test_a_long_session_does_not_grow(serve: Serve, make_engine: Callable[..., Any], image: np.ndarray):
    """A hundred and sixty images opened and clicked on, one after the other."""
    engine = make_engine({"roi": "16"}, additions=True, cache_gb=0.01)
    process = psutil.Process()
    with serve(engine) as served:
        source = ServerEngine(served.url, TOKEN)

        def work(times: int) -> int:
            for number in range(times):
                remote = RemoteImage(source, image + number, np.eye(4))
                remote.segment(Question(ObjectPrompts((Click((8, 8, 8), True),))))
                remote.close()
            gc.collect()
            return process.memory_info().rss

        before = work(40)
        assert work(120) - before < 32 * 2**20


class SlowLine:
    """A connection that carries so many bytes a second, or breaks after so many.

    Args:
        port: that it leads to.
        bytes_per_s: of what the client sends.
        break_after: bytes of the client's, once; None for never.
    """

    def __init__(self, port: int, bytes_per_s: int = 2**20, break_after: int | None = None) -> None:
        self._port, self._rate, self._left = port, bytes_per_s, break_after
        self._ends: list[socket.socket] = []
        self._refused = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, refused: int) -> None:
        """Breaks it, and answers the next connections as a proxy does whose engine is away."""
        self._refused = refused
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            near, _ = self._socket.accept()
            if self._refused:
                self._refused -= 1
                with near:
                    near.recv(65536)
                    near.sendall(
                        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [near, far]
            threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(4096):
                if slow:
                    time.sleep(len(data) / self._rate)
                    if self._left is not None:
                        self._left -= len(data)
                        if self._left < 0:
                            self._left = None
                            break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()


def test_a_proxy_whose_engine_is_started_again_is_waited_for(serve: Serve, image: np.ndarray):
    first, second = Click((8, 8, 8), True), Click((12, 16, 20), True)
    with serve() as served:
        direct = RemoteImage(ServerEngine(served.url, TOKEN), image, np.eye(4))
        line = SlowLine(served.port, 2**24)
        remote = RemoteImage(ServerEngine(line.url, TOKEN, retry_s=60), image, np.eye(4))
        told: list[str] = []
        for clicks in ((first,), (first, second)):
            question = Question(ObjectPrompts(clicks))
            answer = remote.segment(question, lambda what, done, total: told.append(what))
            assert answer == direct.segment(question)
            assert ("recovering" in told) == (len(clicks) > 1)
            line.cut(refused=3)


def test_a_slow_line(serve: Serve, image: np.ndarray):
    with serve() as served:
        direct = RemoteImage(ServerEngine(served.url, TOKEN), image, np.eye(4))
        prompts = ObjectPrompts((Click((8, 8, 8), True),))
        slow = RemoteImage(ServerEngine(SlowLine(served.port, 2**16).url, TOKEN), image, np.eye(4))
        assert slow.segment(Question(prompts)) == direct.segment(Question(prompts))


@pytest.mark.parametrize("after", [0, 500, 5_000, 29_000])
def test_a_line_that_breaks(serve: Serve, image: np.ndarray, after: int):
    """Before, within and after the image: it is sent again, and the mask is the same."""
    with serve() as served:
        prompts = ObjectPrompts((Click((8, 8, 8), True),))
        wanted = RemoteImage(ServerEngine(served.url, TOKEN), image, np.eye(4)).segment(Question(prompts))
        source = ServerEngine(SlowLine(served.port, 2**24, after).url, TOKEN, retry_s=5)
        if after < 500:
            source._lost = True  # as after an engine that was known: it is waited for
        assert RemoteImage(source, image, np.eye(4)).segment(Question(prompts)) == wanted
    assert ImageBytes(image).chunks == 1
