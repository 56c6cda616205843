"""A client and a service on this machine: what a click gives, and what happens when something goes wrong."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from GSMedSegLib.cropped import crop
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Box, Click, ObjectPrompts
from GSMedSegLib.service import errors, server
from GSMedSegLib.service.client import EngineClient, parse_address
from GSMedSegLib.service.wire import PROTOCOL_HEADER, ImageBytes, Question
from Testing.service.conftest import TOKEN, Served, wait_until

Serve = Callable[..., AbstractContextManager[Served]]

ON_FIRST = ObjectPrompts((Click((8, 8, 8), True),))
MATRIX = np.diag([0.8, 0.7, 2.0, 1.0])


def expected(served: Served, image: np.ndarray, prompts: ObjectPrompts) -> np.ndarray:
    predictor = Predictor(served.engine)
    predictor.set_image(image, MATRIX)
    return predictor.segment_from(prompts).mask


def request(
    served: Served, verb: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request as any program may send it: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    connection.request(verb, path, body, given)
    response = connection.getresponse()
    answer = response.status, dict(response.headers), response.read()
    connection.close()
    return answer


@pytest.mark.parametrize(
    "prompts",
    [
        ON_FIRST,
        ObjectPrompts((Click((8, 8, 8), True), Click((12, 16, 20), False), Click((5, 8, 8), True))),
        ObjectPrompts((), Box((3, 3, 3), (13, 13, 13))),
        ObjectPrompts(
            (Click((12, 16, 20), True),), None, crop(np.ones((3, 3, 3), bool), (20, 24, 28), (7, 7, 7))
        ),
    ],
    ids=["click", "clicks", "box", "mask"],
)
def test_the_mask_is_the_engines_own(serve: Serve, image: np.ndarray, prompts: ObjectPrompts):
    with serve() as served:
        client = served.client()
        progress: list[tuple[int, int]] = []
        sent: list[tuple[int, int]] = []
        session = client.open(ImageBytes(image), MATRIX, lambda *n: sent.append(n))
        mask = client.segment(session, Question(prompts), image.shape, lambda *n: progress.append(n)).mask
        assert sent == [(1, 1)]
        assert progress[-1] == (len(prompts.clicks) or 1,) * 2
        assert np.array_equal(mask.whole(), expected(served, image, prompts))
        client.close_session(session)
        with pytest.raises(errors.NoSession):
            client.segment(session, Question(prompts), image.shape)


def test_clicks_share_a_connection(serve: Serve, image: np.ndarray):
    """A new one for every click would cost a server far away a round trip, with TLS three."""
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        connection = client._connection
        for _ in range(3):
            client.segment(session, Question(ON_FIRST), image.shape)
        with pytest.raises(errors.WrongState):
            client.segment(session, Question(ObjectPrompts()), image.shape)
        assert connection is not None
        assert client._connection is connection


def test_a_connection_closed_while_nobody_clicked_is_no_lost_engine(serve: Serve, image: np.ndarray):
    """Servers and proxies close idle connections after some seconds."""
    with serve() as served:
        served.listener.config.timeout_keep_alive = 0
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        for _ in range(3):
            time.sleep(0.2)
            assert client.segment(session, Question(ON_FIRST), image.shape).mask.shape == image.shape


def test_what_the_engine_says_of_itself(serve: Serve):
    with serve() as served:
        facts = served.client().about()
        assert facts["device"] == "cpu"
        assert facts["precision"] == "float32"
        assert facts["limits"]["image_voxels"] == 2**30
        status, headers, body = request(served, "GET", "/health")
        assert status == 200
        assert json.loads(body)["status"] == "ready"
        assert headers[PROTOCOL_HEADER.lower()] == "1"


def test_the_requests_are_documented(serve: Serve):
    with serve() as served:
        described = json.loads(request(served, "GET", "/openapi.json")[2])
        assert {"/health", "/metrics", "/v1/sessions", "/v1/sessions/{session}/segment"} <= set(
            described["paths"]
        )


def test_the_metrics_count(serve: Serve, image: np.ndarray):
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        client.segment(session, Question(ON_FIRST), image.shape)
        with pytest.raises(errors.WrongState):
            client.segment(session, Question(ObjectPrompts()), image.shape)
        with pytest.raises(errors.InvalidRequest):
            client.segment(session, Question(ObjectPrompts((Click((99, 0, 0), True),))), image.shape)
        wait_until(lambda: b'end="wrong_state"' in request(served, "GET", "/metrics")[2])
        metrics = request(served, "GET", "/metrics")[2].decode()
        assert 'gsmedseg_jobs_total{end="answered"} 2.0' in metrics  # the image, and the click
        assert 'gsmedseg_jobs_total{end="wrong_state"} 1.0' in metrics
        assert 'gsmedseg_refused_total{why="invalid"} 1.0' in metrics
        assert "gsmedseg_sessions 1.0" in metrics


def test_a_session_survives_wrong_requests(serve: Serve, image: np.ndarray):
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        for prompts in (ObjectPrompts(), ObjectPrompts((Click((0, 0, 99), True),))):
            with pytest.raises((errors.WrongState, errors.InvalidRequest)):
                client.segment(session, Question(prompts), image.shape)
        assert client.segment(session, Question(ON_FIRST), image.shape).mask.shape == image.shape


@pytest.mark.parametrize(
    ("image", "message"),
    [(np.zeros((4, 4, 4), np.int16), "constant"), (np.full((4, 4, 4), np.nan), "NaN")],
)
def test_an_image_that_cannot_be_segmented_is_refused(serve: Serve, image: np.ndarray, message: str):
    with serve() as served:
        with pytest.raises(errors.InvalidRequest, match=message):
            served.client().open(ImageBytes(image), np.eye(4))
        assert b"gsmedseg_sessions 0.0" in request(served, "GET", "/metrics")[2]


def test_a_wrong_token(serve: Serve):
    with serve() as served:
        with pytest.raises(errors.WrongToken, match="another token"):
            EngineClient(served.url, "a-wrong-token").about()
        with pytest.raises(errors.WrongToken, match="wants a token"):
            EngineClient(served.url).about()
        assert request(served, "GET", "/metrics", authorization="Bearer x")[0] == 401


def test_another_version_of_the_protocol(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    with serve() as served:
        status, _, body = request(served, "GET", "/v1/engine", gsmedseg_protocol="99")
        assert status == 400
        assert "update the older" in json.loads(body)["message"]


def test_web_pages_and_foreign_names_are_kept_out(serve: Serve):
    with serve() as served:
        assert request(served, "GET", "/v1/engine", origin="https://example.org")[0] == 403
        for host in ("example.org", "127.0.0.1.example.org:80", "", "[::2]:8731"):
            assert request(served, "GET", "/health", host=host)[0] == 403
        for host in ("127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:8731"):
            assert request(served, "GET", "/health", host=host)[0] == 200


def test_too_large_an_image_is_refused_before_it_is_sent(serve: Serve):
    with serve(image_voxels=1000) as served, pytest.raises(errors.TooLarge, match="crop the image"):
        served.client().open(ImageBytes(np.zeros((10, 10, 11))), np.eye(4))
    with serve(memory_gb=0.001) as served, pytest.raises(errors.TooLarge, match="GiB"):
        served.client().open(ImageBytes(np.zeros((10, 10, 11))), np.eye(4))


def test_no_more_sessions_than_allowed(serve: Serve, image: np.ndarray):
    with serve(sessions=2) as served:
        clients = [served.client() for _ in range(3)]
        first, _ = (client.open(ImageBytes(image), MATRIX) for client in clients[:2])
        with pytest.raises(errors.EngineBusy, match="2 sessions"):
            clients[2].open(ImageBytes(image), MATRIX)
        clients[0].close_session(first)
        assert clients[2].open(ImageBytes(image), MATRIX)


def test_no_more_memory_than_allowed(serve: Serve, image: np.ndarray):
    with serve(memory_gb=0.05) as served:
        served.client().open(ImageBytes(image), MATRIX)
        with pytest.raises(errors.EngineBusy, match="memory"):
            served.client().open(ImageBytes(image), MATRIX)


def test_an_idle_session_expires_and_says_so(serve: Serve, image: np.ndarray):
    with serve(idle_s=0.2) as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        time.sleep(0.5)
        with pytest.raises(errors.NoSession, match="expired"):
            client.segment(session, Question(ON_FIRST), image.shape)


def test_an_oversized_request_is_cut_short(serve: Serve):
    """Whether it says how large it is or not."""
    with serve(request_bytes=1000) as served:
        assert request(served, "POST", "/v1/sessions", bytes(2000))[0] == 413
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
            head = f"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            raw.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
            assert b"413" in raw.recv(100)


def test_a_request_that_stands_still_is_given_up(serve: Serve):
    head = f"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    with serve(receive_s=0.2) as served, socket.create_connection(("127.0.0.1", served.port), 30) as raw:
        raw.sendall(f"{head}Content-Length: 100\r\n\r\nx".encode())
        assert b"408" in raw.recv(1000)


def test_damaged_chunks_and_images(serve: Serve, image: np.ndarray):
    with serve() as served:
        sent = ImageBytes(image)
        new = {"shape": sent.shape, "dtype": sent.dtype, "ijk_to_ras": MATRIX.tolist(), "sha256": "0" * 64}
        opened = json.loads(request(served, "POST", "/v1/sessions", json.dumps(new))[2])
        chunks = f"/v1/sessions/{opened['session']}/chunks"
        assert request(served, "PUT", f"{chunks}/0", b"short")[0] == 422
        assert request(served, "PUT", f"{chunks}/0", b"no zlib", content_encoding="deflate")[0] == 422
        assert request(served, "PUT", f"{chunks}/0", b"", content_encoding="br")[0] == 400
        assert request(served, "PUT", f"{chunks}/7", b"")[0] == 422
        assert request(served, "POST", f"/v1/sessions/{opened['session']}/ready")[0] == 409
        assert request(served, "PUT", f"{chunks}/0", sent.chunk(0, False))[0] == 200
        answer = request(served, "POST", f"/v1/sessions/{opened['session']}/ready")[2]
        assert b"checksum" in answer


@pytest.mark.parametrize(
    "new",
    [
        b"", b"{}", b"null", b"\xff", b'{"shape": [1, 2]}', b"[" * 10_000,
        {"shape": [0, 1, 1]}, {"shape": [2**40, 1, 1]}, {"dtype": "O"}, {"dtype": "f16"}, {"sha256": "x"},
        {"ijk_to_ras": [[1]]}, {"ijk_to_ras": np.zeros((4, 4)).tolist()}, {"extra": 1},
    ],
)  # fmt: skip
def test_malformed_sessions_are_refused(serve: Serve, new: Any):
    sound = {"shape": [4, 4, 4], "dtype": "u1", "ijk_to_ras": np.eye(4).tolist(), "sha256": "0" * 64}
    with serve() as served:
        body = new if isinstance(new, bytes) else json.dumps({**sound, **new}).encode()
        status, _, answer = request(served, "POST", "/v1/sessions", body, content_type="application/json")
        assert status == 400, answer
        assert set(json.loads(answer)) == {"error", "message"}


def test_fuzzed_requests_never_fail_within(serve: Serve, image: np.ndarray, caplog: pytest.LogCaptureFixture):
    """Random paths, verbs and bodies: always an answer below 500, and the engine still works."""
    rng = np.random.default_rng(0)
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        own = f"/v1/sessions/{session}"
        paths = ["/health", "/v1/engine", "/v1/sessions", f"{own}/segment", "/v1/sessions/x/segment", "/%00",
                 f"{own}/chunks/0", f"{own}/chunks/x", "/../etc", f"{own}/ready",
                 "/v1/sessions/%2e%2e/job"]  # fmt: skip
        bodies = [None, b"", b"{}", b"[]", b"\x00\xff" * 50, b'{"clicks": [[0,0,0,true]], "box": 3}',
                  b'{"clicks": [[1e99,0,0,true]]}', b'{"clicks": ' + b"[" * 5000,
                  b'{"clicks": [[0,0,0,null]]}',
                  b'{"mask": {"start_kji": [0,0,0], "size": [9,9,9], "data": "AAAA"}}']  # fmt: skip
        for _ in range(150):
            verb = rng.choice(["GET", "POST", "PUT", "PATCH", "OPTIONS"])
            body = bodies[rng.integers(len(bodies))]
            if body and rng.random() < 0.3:
                cut = bytearray(body)
                cut[rng.integers(len(cut))] = rng.integers(256)
                body = bytes(cut)
            status, headers, _ = request(served, verb, paths[rng.integers(len(paths))], body)
            assert status < 500, (verb, body)
            assert PROTOCOL_HEADER.lower() in {name.lower() for name in headers}
        mask = client.segment(session, Question(ON_FIRST), image.shape).mask.whole()
        assert np.array_equal(mask, expected(served, image, ON_FIRST))


class Slow:
    """Holds an engine up at every encoding and decoding until it is let go on."""

    def __init__(self, engine: Any) -> None:
        self.go, self.waiting = threading.Event(), threading.Event()
        self._check = engine.interrupt
        engine.interrupt = self

    def __call__(self) -> None:
        self.waiting.set()
        while not self.go.wait(0.01):
            self._check()


class Clicking:
    """A click made in a thread, and what went wrong with it."""

    def __init__(self, client: EngineClient, session: str, shape: tuple[int, ...]) -> None:
        self.errors: list[Exception] = []
        self._call = (session, Question(ON_FIRST), shape)
        self._client = client
        self.thread = threading.Thread(target=self._click)
        self.thread.start()

    def _click(self) -> None:
        try:
            self._client.segment(*self._call)
        except errors.EngineError as error:
            self.errors.append(error)

    def end(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_a_connection_closed_within_an_answer_is_a_lost_engine(
    serve: Serve, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """As when the user stops the engine while it works: between two reads, and, from a thread, within one."""

    def close_within_read(*_: object) -> Iterator[Any]:
        client.close()
        yield None.readline()  # type: ignore[attr-defined] # what http.client does then

    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        with pytest.raises(errors.EngineLost, match="ended before"):
            client.segment(session, Question(ON_FIRST), image.shape, lambda *_: client.close())
        with monkeypatch.context() as patched:
            patched.setattr("GSMedSegLib.service.client.read_events", close_within_read)
            with pytest.raises(errors.EngineLost, match="was closed"):
                client.segment(session, Question(ON_FIRST), image.shape)
        assert client.segment(session, Question(ON_FIRST), image.shape).mask.shape == image.shape


def test_a_click_is_cancelled(serve: Serve, image: np.ndarray):
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        slow = Slow(served.engine)
        clicking = Clicking(client, session, image.shape)
        assert slow.waiting.wait(30)
        client.cancel(session)
        clicking.end()
        assert [type(error) for error in clicking.errors] == [errors.Cancelled]
        slow.go.set()
        assert np.array_equal(
            client.segment(session, Question(ON_FIRST), image.shape).mask.whole(),
            expected(served, image, ON_FIRST),
        )


def test_a_newer_click_takes_the_place_of_the_one_before(serve: Serve, image: np.ndarray):
    with serve() as served:
        client, second = served.client(), served.client()
        session = client.open(ImageBytes(image), MATRIX)
        slow = Slow(served.engine)
        clicking = Clicking(client, session, image.shape)
        assert slow.waiting.wait(30)
        newer = Clicking(second, session, image.shape)
        clicking.end()
        slow.go.set()
        newer.end()
        assert [type(error) for error in clicking.errors] == [errors.Cancelled]
        assert newer.errors == []


def test_a_client_that_goes_away_leaves_nothing_running(serve: Serve, image: np.ndarray):
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        slow = Slow(served.engine)
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
            body = b'{"clicks": [[8, 8, 8, true]]}'
            head = f"POST /v1/sessions/{session}/segment HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}"
            raw.sendall(f"{head}\r\n\r\n".encode() + body)
            assert slow.waiting.wait(30)
        wait_until(lambda: b'end="cancelled"} 1.0' in request(served, "GET", "/metrics")[2])


def test_a_slow_engine_says_that_it_lives(serve: Serve, image: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """The client waits longer than its patience with silence."""
    monkeypatch.setattr(server, "HEARTBEAT_S", 0.05)
    with serve() as served:
        client = served.client(timeout_s=0.5)
        session = client.open(ImageBytes(image), MATRIX)
        slow = Slow(served.engine)
        threading.Timer(1.0, slow.go.set).start()
        assert client.segment(session, Question(ON_FIRST), image.shape).mask.shape == image.shape


def test_waiting_clicks_are_limited(serve: Serve, image: np.ndarray):
    with serve(waiting=1) as served:
        clients = [served.client() for _ in range(3)]
        sessions = [client.open(ImageBytes(image), MATRIX) for client in clients]
        slow = Slow(served.engine)
        threads = []
        for client, session in zip(clients[:2], sessions):
            threads.append(
                threading.Thread(target=client.segment, args=(session, Question(ON_FIRST), image.shape))
            )
            threads[-1].start()
            assert slow.waiting.wait(30)
        wait_until(lambda: b"gsmedseg_waiting 1.0" in request(served, "GET", "/metrics")[2])
        with pytest.raises(errors.EngineBusy, match="waiting"):
            clients[2].segment(sessions[2], Question(ON_FIRST), image.shape)
        slow.go.set()
        for thread in threads:
            thread.join(60)


def test_a_failure_within_is_told_without_what_the_image_holds(
    serve: Serve, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with serve() as served, caplog.at_level(logging.INFO):
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("the name of a patient")

        monkeypatch.setattr(served.engine, "decode", fail)
        with pytest.raises(errors.EngineError, match="ZeroDivisionError"):
            client.segment(session, Question(ON_FIRST), image.shape)
        wait_until(lambda: "ZeroDivisionError" in caplog.text)
        assert "patient" not in caplog.text
        places = r"worker\.py:\d+ perform > .*sessions\.py:\d+ segment > .*:\d+ fail$"
        assert re.search(places, caplog.text, re.MULTILINE)
        monkeypatch.undo()
        assert client.segment(session, Question(ON_FIRST), image.shape).mask.shape == image.shape


def test_the_service_ends_while_it_works(serve: Serve, image: np.ndarray):
    with serve() as served:
        client = served.client()
        session = client.open(ImageBytes(image), MATRIX)
        slow = Slow(served.engine)
        clicking = Clicking(client, session, image.shape)
        assert slow.waiting.wait(30)
    clicking.end()
    assert isinstance(clicking.errors[0], (errors.ShuttingDown, errors.EngineLost, errors.Cancelled))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("server", "http://server:8731"),
        (" server:80/ ", "http://server:80"),
        ("https://server", "https://server:8731"),
        ("http://10.0.0.1:9000/path?x", "http://10.0.0.1:9000"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_addresses_as_users_write_them(text: str, url: str):
    assert parse_address(text).url == url


@pytest.mark.parametrize(
    "text", ["", " ", "ftp://server", "http://", "server:port", "server:99999", "0.0.0.0:8731"]
)
def test_what_is_no_address(text: str):
    with pytest.raises(ValueError, match=r"expected an address|enter its name"):
        parse_address(text)


def test_nothing_answers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(errors.Unreachable, match="nothing answers"):
        EngineClient(f"127.0.0.1:{port}").about()
    with pytest.raises(errors.Unreachable, match="no computer is called"):
        EngineClient("no-such-host.invalid").about()


class Impostor:
    """Something else that answers on a port: always the same bytes."""

    def __init__(self, answer: bytes, hold_s: float = 0.0) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._answer, self._hold_s = answer, hold_s
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                time.sleep(self._hold_s)
                connection.sendall(self._answer)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", errors.NotGSMedSeg),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", errors.Unreachable),
        (b"HTTP/1.1 200 OK\r\nGSMedSeg-Protocol: 1\r\nContent-Length: 20\r\n\r\n{", errors.EngineLost),
        (b"HTTP/1.1 200 OK\r\nGSMedSeg-Protocol: 1\r\nContent-Length: 2\r\n\r\n[]", errors.EngineLost),
        (b"HTTP/1.1 200 OK\r\nGSMedSeg-Protocol: 9\r\nContent-Length: 14\r\n\r\n"
         b'{"protocol":9}', errors.VersionMismatch),
        (b"SSH-2.0-OpenSSH\r\n", errors.EngineLost),
        (b"", errors.EngineLost),
    ],
)  # fmt: skip
def test_something_else_answers(answer: bytes, kind: type[Exception]):
    with pytest.raises(kind):
        EngineClient(Impostor(answer).url).about()


def test_an_engine_that_is_silent():
    with pytest.raises(errors.EngineLost, match="silent"):
        EngineClient(Impostor(b"", hold_s=5).url, timeout_s=0.2).about()


class SlowLine:
    """Takes 256 KiB a moment, and answers what it got whole; then it is silent."""

    def __init__(self, body_bytes: int, moment_s: float) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._body_bytes, self._moment_s = body_bytes, moment_s
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            taken = 0
            while taken < self._body_bytes:
                part = 0
                while part < 2**18 and taken + part < self._body_bytes:
                    part += len(connection.recv(2**16))
                taken += part
                time.sleep(self._moment_s)
            connection.sendall(b"HTTP/1.1 200 OK\r\nGSMedSeg-Protocol: 1\r\nContent-Length: 2\r\n\r\n{}")
            connection.recv(2**16)
            time.sleep(60)


def test_a_slow_line_takes_longer_for_a_large_body_alone(monkeypatch: pytest.MonkeyPatch):
    """4 MiB in 1.6 s are fast enough for a line of 0.5 MB/s; a request without a body has the usual time."""
    monkeypatch.setattr("GSMedSegLib.service.client.SLOWEST_BYTES_S", 500_000)
    line = SlowLine(2**22, 0.1)
    client = EngineClient(line.url, timeout_s=0.5)
    assert client._ask("PUT", "/v1/sessions/x/chunks/0", bytes(2**22)) == {}
    assert client._connection is not None
    assert client._connection.sock.gettimeout() == 0.5
    began = time.monotonic()
    with pytest.raises(errors.EngineLost, match=r"silent for 0\.5 s"):
        client.about()
    assert time.monotonic() < began + 5


def test_silence_is_as_long_as_it_was_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("GSMedSegLib.service.client.SLOWEST_BYTES_S", 1000)
    client = EngineClient(Impostor(b"", hold_s=30).url, timeout_s=0.2)
    with pytest.raises(errors.EngineLost, match=r"silent for 0\.7 s"):
        client._ask("PUT", "/v1/sessions/x/chunks/0", bytes(500))


def test_a_cancel_waits_for_a_silent_engine_no_longer_than_the_timeout():
    began = time.monotonic()
    with pytest.raises(errors.EngineLost, match="silent"):
        EngineClient(Impostor(b"", hold_s=30).url, timeout_s=0.2).cancel("session")
    assert time.monotonic() < began + 10


def test_a_session_whose_image_broke_off_is_closed_at_the_next_open(
    serve: Serve, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    def break_off(done: int, total: int) -> None:
        raise errors.EngineLost("the connection broke")

    with serve(sessions=1) as served:
        client = served.client()
        with pytest.raises(errors.EngineLost):
            client.open(ImageBytes(image), MATRIX, break_off)
        assert client.about()["sessions"] == 1
        session = client.open(ImageBytes(image), MATRIX)
        assert client.about()["sessions"] == 1
        with monkeypatch.context() as patched:
            patched.setattr(client, "_ask", unreachable)
            client.close_session(session)
            with pytest.raises(errors.Unreachable):
                client.open(ImageBytes(image), MATRIX)
        client.open(ImageBytes(image), MATRIX)
        assert client.about()["sessions"] == 1


def unreachable(*_: object) -> Any:
    raise errors.Unreachable("nothing answers")


def test_a_token_that_cannot_be_sent():
    with pytest.raises(ValueError, match="token"):
        EngineClient("localhost", "tökén\n")
