"""Engines in processes of their own: started, lost, started again, and the image sent anew."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from GSMedSegLib.prompts import Click, ObjectPrompts
from GSMedSegLib.service import engines, errors
from GSMedSegLib.service.client import EngineClient
from GSMedSegLib.service.engines import OwnEngine, ServerEngine
from GSMedSegLib.service.remote_image import RemoteImage
from GSMedSegLib.service.wire import Question
from Testing.service.conftest import TOKEN, Served, wait_until

ROOT = Path(__file__).resolve().parents[2]
ON_FIRST = ObjectPrompts((Click((8, 8, 8), True),))
TWO = ObjectPrompts((Click((8, 8, 8), True), Click((12, 16, 20), False)))


@pytest.fixture(scope="module")
def own() -> Iterator[OwnEngine]:
    """An engine of the bundled weights, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    engine = OwnEngine(arguments=["--device", "cpu", "--precision", "fp32"], environment=environment)
    yield engine
    engine.stop()


def test_it_starts_answers_and_ends(own: OwnEngine):
    client = own.connect()
    assert client.about()["weights"] == "compact"
    assert own.running
    assert any("listening on" in line for line in own.log)
    assert not any(TOKEN in line for line in own.log)
    pid = own.pid
    own.lost()
    assert not own.running
    assert own.pid is None
    assert pid is not None


def test_a_killed_engine_is_replaced_and_gives_the_same_mask(own: OwnEngine, image: np.ndarray):
    """Killed between two clicks, and in the midst of one."""
    remote = RemoteImage(own, image, np.eye(4))
    before = remote.segment(Question(TWO))
    pid = own.pid
    assert own._process is not None
    own._process.kill()
    told: list[str] = []
    assert remote.segment(Question(TWO), lambda what, *_: told.append(what)) == before
    assert own.pid != pid
    assert "recovering" in told
    assert "image" in told

    killed = threading.Event()

    def kill(what: str, done: int, total: int) -> None:
        if what == "clicks" and not killed.is_set():
            killed.set()
            assert own._process is not None
            own._process.kill()

    fresh = RemoteImage(own, image, np.eye(4))
    assert fresh.segment(Question(TWO), kill) == before
    assert killed.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="a port is not free again at once on Windows")
def test_who_takes_the_port_of_an_engine_that_crashed_gets_nothing(own: OwnEngine):
    """Neither the token nor what is asked: it may be another user's program."""
    client, process = own.connect(), own._process
    assert process is not None
    process.kill()
    process.wait()
    got: list[bytes] = []

    def listen(taken: socket.socket) -> None:
        connection, _ = taken.accept()
        with connection:
            got.append(connection.recv(1000))

    with socket.create_server(("127.0.0.1", client.address.port)) as taken:
        thread = threading.Thread(target=listen, args=(taken,))
        thread.start()
        with pytest.raises(errors.EngineLost, match="ended"):
            client.about()
        thread.join(30)
    assert got == [b""]
    own.lost()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path):
    """Whoever crashes leaves no engine behind."""
    code = (
        "import os, time\n"
        "from GSMedSegLib.service.engines import OwnEngine\n"
        "engine = OwnEngine(arguments=['--device', 'cpu', '--precision', 'fp32'])\n"
        "engine.connect()\n"
        "print(engine.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", timeout=120
    )
    pid = int(answer.stdout)
    wait_until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    status = Path(f"/proc/{pid}/status")  # a zombie that nobody waits for has ended too
    return not (status.exists() and "State:\tZ" in status.read_text())


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill(pid, 0) ends the process on Windows")
def test_the_check_for_life_works():
    assert _lives(os.getpid())


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals for other processes")
def test_a_signal_ends_it_cleanly(name: str):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    engine = OwnEngine(arguments=["--device", "cpu", "--precision", "fp32"], environment=environment)
    engine.connect()
    process = engine._process
    assert process is not None
    process.send_signal(getattr(signal, name))
    assert process.wait(30) == 0
    engine.stop()


def test_a_port_that_is_taken_is_told():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GSMEDSEG_TOKEN": TOKEN}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "GSMedSegLib.cli", "serve", "--device", "cpu", "--port", port]
        told = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert told.returncode == 2
    assert "in use" in told.stderr


def test_an_engine_that_cannot_start_says_why():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    engine = OwnEngine(arguments=["--weights", "no-such-weights"], environment=environment)
    with pytest.raises(errors.EngineError, match="no-such-weights"):
        engine.connect()
    assert not engine.running


def test_a_program_that_is_not_there():
    with pytest.raises(OSError, match="no-such-python"):
        OwnEngine("no-such-python").connect()


ELSEWHERE = """
import sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("GSMedSeg-Protocol", "1")
        self.send_header("Content-Length", "14")
        self.end_headers()
        self.wfile.write(b'{"protocol":1}')

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Answer)
print("arguments:", *sys.argv[1:])
time.sleep(0.5)
print("listening on http://127.0.0.1:%d" % server.server_port)
print(("and so on " * 100 + "\\n") * 300)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""


def test_nothing_is_sent_before_the_engine_says_where_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a port chosen beforehand, whoever listens there first would get the token and the image."""
    (tmp_path / "GSMedSegLib").mkdir()
    (tmp_path / "GSMedSegLib" / "__init__.py").touch()
    (tmp_path / "GSMedSegLib" / "cli.py").write_text(ELSEWHERE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "START_S", 20.0)
    engine = OwnEngine(environment={**os.environ, "PYTHONPATH": str(tmp_path)})
    known_then: list[bool] = []

    def client(*arguments: Any, **options: Any) -> EngineClient:
        known_then.append(any("listening on" in line for line in list(engine.log)))
        return EngineClient(*arguments, **options)

    monkeypatch.setattr(engines, "EngineClient", client)
    try:
        assert engine.connect().about() == {"protocol": 1}
        assert known_then == [True]
        wait_until(lambda: len(engine.log) > 300)
    finally:
        engine.stop()


def test_an_engine_that_never_listens_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "GSMedSegLib").mkdir()
    (tmp_path / "GSMedSegLib" / "__init__.py").touch()
    (tmp_path / "GSMedSegLib" / "cli.py").write_text("import sys\nsys.stdin.read()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "START_S", 0.5)
    engine = OwnEngine(environment={**os.environ, "PYTHONPATH": str(tmp_path)})
    with pytest.raises(errors.EngineError, match="has not said where it listens"):
        engine.connect()
    assert not engine.running


def test_waiting_for_an_engine_can_be_broken_off(own: OwnEngine):
    own.lost()

    def check() -> None:
        raise errors.Cancelled("enough")

    with pytest.raises(errors.Cancelled):
        own.connect(check)
    own.lost()


def test_a_stopped_engine_is_not_started_again_by_who_still_asks(image: np.ndarray):
    """As when Stop is pressed while a mask is made: the question is given up, and no process is left."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    engine = OwnEngine(arguments=["--device", "cpu"], environment=environment)
    remote = RemoteImage(engine, image, np.eye(4))

    def stop_at_once(doing: str, done: int, total: int) -> None:
        if doing == "clicks":
            engine.stop()

    with pytest.raises(errors.EngineError, match="the engine was stopped"):
        remote.segment(Question(TWO), stop_at_once)
    assert not engine.running


def test_a_server_that_is_started_again_goes_on(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray, make_engine: Callable[..., Any]
):
    engine = make_engine({"roi": "16"}, additions=True)
    with serve(engine) as served:
        port = served.port
        source = ServerEngine(served.url, TOKEN)
        remote = RemoteImage(source, image, np.eye(4))
        before = remote.segment(Question(ON_FIRST))

    def later() -> None:
        time.sleep(0.5)
        with serve(engine, port=port):
            finished.wait(60)

    finished = threading.Event()
    thread = threading.Thread(target=later)
    thread.start()
    assert remote.segment(Question(ON_FIRST)) == before
    finished.set()
    thread.join(60)


def test_a_server_that_does_not_come_back(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray
):
    with serve() as served:
        remote = RemoteImage(ServerEngine(served.url, TOKEN, retry_s=0.2), image, np.eye(4))
        remote.prepare()
        assert remote.sent
    with pytest.raises((errors.Unreachable, errors.EngineLost)):
        remote.segment(Question(ON_FIRST))
    assert not remote.sent


def test_an_expired_session_is_opened_again(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray
):
    with serve(idle_s=0.2) as served:
        remote = RemoteImage(ServerEngine(served.url, TOKEN), image, np.eye(4))
        before = remote.segment(Question(ON_FIRST))
        time.sleep(0.6)
        assert remote.segment(Question(ON_FIRST)) == before
        remote.close()
        assert not remote.sent


def test_a_broken_connection_leaves_no_session_behind(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray
):
    with serve() as served:
        source = ServerEngine(served.url, TOKEN)
        remote = RemoteImage(source, image, np.eye(4))
        broken: list[str] = []

        def progress(what: str, done: int, total: int) -> None:
            if what == "clicks" and not broken:
                broken.append(what)
                raise errors.EngineLost("the connection broke")

        remote.segment(Question(ON_FIRST), progress)
        assert broken
        assert source.connect().about()["sessions"] == 1


def test_a_cancel_that_may_arrive_late_finds_a_session_not_in_use(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    def silent(session: str) -> None:
        raise errors.EngineLost("silent")

    with serve() as served:
        source = ServerEngine(served.url, TOKEN)
        remote = RemoteImage(source, image, np.eye(4))
        before = remote.segment(Question(ON_FIRST))
        client, session = source.connect(), remote._session
        with monkeypatch.context() as patched:
            patched.setattr(client, "cancel", silent)
            remote.cancel()
        assert not remote.sent
        assert remote.segment(Question(ON_FIRST)) == before
        assert remote._session != session
        assert client.about()["sessions"] == 1


def test_cancel_while_nothing_goes_on_does_nothing(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray
):
    with serve() as served:
        remote = RemoteImage(ServerEngine(served.url, TOKEN), image, np.eye(4))
        remote.cancel()
        assert remote.segment(Question(ON_FIRST)).mask.shape == image.shape
        remote.cancel()
        assert remote.segment(Question(ON_FIRST)).mask.shape == image.shape


def test_an_image_closed_while_its_session_is_opened_leaves_none_behind(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """The session comes back when the image has been given up already; and none is opened after that."""
    with serve() as served:
        source = ServerEngine(served.url, TOKEN)
        client, remote = source.connect(), RemoteImage(source, image, np.eye(4))
        opened: list[str] = []

        def late(*arguments: Any) -> str:
            opened.append(type(client).open(client, *arguments))
            remote.close()
            return opened[-1]

        monkeypatch.setattr(client, "open", late)
        for _ in range(2):
            with pytest.raises(errors.Cancelled):
                remote.segment(Question(ON_FIRST))
            assert not remote.sent
            assert client.about()["sessions"] == 0
        assert len(opened) == 1


def test_a_question_cancelled_while_the_image_was_sent_is_not_asked(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """The image stays for the next one."""
    with serve() as served:
        source = ServerEngine(served.url, TOKEN)
        client, remote = source.connect(), RemoteImage(source, image, np.eye(4))
        asked: list[Any] = []

        def late(*arguments: Any) -> str:
            session = type(client).open(client, *arguments)
            remote.cancel()
            return session

        def segment(*arguments: Any) -> Any:
            asked.append(arguments)
            return type(client).segment(client, *arguments)

        monkeypatch.setattr(client, "open", late)
        monkeypatch.setattr(client, "segment", segment)
        with pytest.raises(errors.Cancelled):
            remote.segment(Question(ON_FIRST))
        assert asked == []
        assert remote.sent
        assert remote.segment(Question(ON_FIRST)).mask.shape == image.shape
        assert len(asked) == 1
