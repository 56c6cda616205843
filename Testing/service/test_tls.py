"""An engine elsewhere, reached by an encrypted line."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib.prompts import Click, ObjectPrompts
from GSMedSegLib.service import errors
from GSMedSegLib.service.client import EngineClient
from GSMedSegLib.service.engines import ServerEngine
from GSMedSegLib.service.remote_image import RemoteImage
from GSMedSegLib.service.wire import Question
from Testing.service.conftest import TOKEN, Served

ON_FIRST = Question(ObjectPrompts((Click((8, 8, 8), True),)))
CERTIFICATE = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
ABOUT = b'HTTP/1.1 200 OK\r\nGSMedSeg-Protocol: 1\r\nContent-Length: 14\r\n\r\n{"protocol":1}'

Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of `localhost`, signed by itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *CERTIFICATE.split(), *files], check=True, capture_output=True)
    return certificate, key


class Hasty:
    """Answers each connection once, and closes it: what a service or a proxy does to one that nobody uses."""

    def __init__(self, tls: tuple[Path, Path]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*tls)
        self.url = f"https://localhost:{self._socket.getsockname()[1]}"
        self.closed = threading.Semaphore(0)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            plain, _ = self._socket.accept()
            with self._context.wrap_socket(plain, server_side=True) as connection:
                taken = connection.recv(65536)
                size = int(re.search(rb"Content-Length: (\d+)", taken)[1]) + taken.index(b"\r\n\r\n") + 4
                while len(taken) < size:
                    taken += connection.recv(65536)
                connection.sendall(ABOUT)
                with suppress(OSError):
                    connection.settimeout(0.05)
                    connection.unwrap()
            self.closed.release()


def test_a_pause_between_clicks_does_no_harm(tls: tuple[Path, Path]):
    """The line is closed meanwhile; that does not mean that nothing is encrypted."""
    hasty = Hasty(tls)
    client = EngineClient(hasty.url, TOKEN, str(tls[0]))
    for size in (1, 10, 1000_000):
        assert client._ask("PUT", "/v1/sessions/s/chunks/0", bytes(size)) == {"protocol": 1}
        assert hasty.closed.acquire(timeout=30)


def test_a_click_by_an_encrypted_line(serve: Serve, tls: tuple[Path, Path], image: np.ndarray):
    with serve(tls=tls) as served:
        source = ServerEngine(f"https://localhost:{served.port}", TOKEN, str(tls[0]))
        assert RemoteImage(source, image, np.eye(4)).segment(ON_FIRST).mask.shape == image.shape
        source.connect().close()  # the service waits some seconds for who does not


def test_who_cannot_be_trusted_or_does_not_encrypt_is_told_apart(serve: Serve, tls: tuple[Path, Path]):
    for options, why in (({"tls": tls}, "does not trust"), ({}, "does not encrypt")):
        with serve(**options) as served, pytest.raises(errors.TLSFailed, match=why):
            EngineClient(f"https://localhost:{served.port}", TOKEN).about()
