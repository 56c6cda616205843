"""A client of the engine's service: the standard library and numpy are all it needs.

Every call waits for its answer; a program with a window makes them in a thread. What goes wrong is an
`EngineError` or an `InvalidRequest`, whose text can be shown as it is.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from numpy.typing import ArrayLike

from GSMedSegLib import __version__
from GSMedSegLib.cropped import Voxel
from GSMedSegLib.geometry import as_ijk_to_ras
from GSMedSegLib.service.errors import (
    EngineError,
    EngineLost,
    NoSession,
    NotGSMedSeg,
    TLSFailed,
    Unreachable,
    VersionMismatch,
    error_of,
)
from GSMedSegLib.service.wire import (
    DEFAULT_PORT,
    LOCAL_HOSTS,
    PROTOCOL,
    PROTOCOL_HEADER,
    Answer,
    ImageBytes,
    Question,
    answer_from_event,
    question_to_json,
    read_events,
)

Report = Callable[[int, int], None]
"""Told how many steps are done, of how many; may raise to break off."""

SLOWEST_BYTES_S = 20_000
"""Bytes a second that a line must carry: a request may take so much longer than the timeout."""

_LARGEST_ANSWER = 2**20
_LARGEST_MASK = 2**31


@dataclass(frozen=True)
class Address:
    """Where an engine is.

    Attributes:
        host: a name or number.
        port: of it.
        tls: whether the connection is encrypted.
    """

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """As it is written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return self.host in LOCAL_HOSTS


def parse_address(text: str) -> Address:
    """What a user entered: `server`, `server:8731`, `https://server`, with or without a slash at the end.

    Raises:
        ValueError: no address, or one that nobody can be reached at.
    """
    entered = text.strip()
    if entered and "://" not in entered:
        entered = f"http://{entered}"
    try:
        parts = urlsplit(entered)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(
            f"expected an address such as server:{DEFAULT_PORT}, got {text!r}: {error}"
        ) from error
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError(f"expected an address such as server:{DEFAULT_PORT} or https://server; got {text!r}")
    if host in ("0.0.0.0", "::"):
        raise ValueError(f"{host} is where a server listens, not where it is; enter its name, or localhost")
    return Address(host, port or DEFAULT_PORT, parts.scheme == "https")


class EngineClient:
    """Talks to one engine. One call at a time; `cancel` may come from another thread.

    Args:
        url: as `parse_address` takes it.
        token: that the engine was started with.
        ca_file: certificate to trust, for an engine with one of its own making.
        timeout_s: silence after which the engine counts as lost; it gives a sign of life every second.
        lives: asked when connected, before anything is sent: whether the engine has not ended, and its port
            not become another program's.

    Raises:
        ValueError: a bad address, or a certificate file that is none.
        OSError: a certificate file that cannot be read.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        ca_file: str | None = None,
        timeout_s: float = 15.0,
        lives: Callable[[], bool] = lambda: True,
    ) -> None:
        self.address = parse_address(url)
        self._timeout_s, self._lives = timeout_s, lives
        self._headers = {
            PROTOCOL_HEADER: str(PROTOCOL),
            "User-Agent": f"gsmedseg/{__version__}",
        }
        if token:
            if not (token.isascii() and token.isprintable()):
                raise ValueError("a token is made of ASCII letters, digits and signs; copy it again")
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls: ssl.SSLContext | None = None
        if self.address.tls:
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except ssl.SSLError as error:
                raise ValueError(f"{ca_file}: not a certificate in PEM format") from error
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        self._left: list[str] = []

    def about(self) -> dict[str, Any]:
        """What the engine says of itself: version, weights, device, precision, limits.

        Raises:
            EngineError: it cannot be used; the text says why.
        """
        facts = self._ask("GET", "/v1/engine")
        if facts.get("protocol") != PROTOCOL:
            raise VersionMismatch(
                f"the engine is GSMedSeg {facts.get('version')}, this is {__version__}; update the older one"
            )
        return facts

    def open(self, image: ImageBytes, ijk_to_ras: ArrayLike, report: Report | None = None) -> str:
        """Send an image.

        Args:
            image: as bytes.
            ijk_to_ras: (4, 4), mm.
            report: told how many chunks are there.

        Returns:
            the session's name.

        Raises:
            EngineError: the image could not be sent, or is not taken.
            InvalidRequest: it cannot be segmented: constant, or with NaN.
        """
        new = {
            "shape": image.shape,
            "dtype": image.dtype,
            "ijk_to_ras": as_ijk_to_ras(ijk_to_ras).tolist(),
            "sha256": image.sha256(),
        }
        self._close_left()
        session = str(self._ask("POST", "/v1/sessions", new)["session"])
        compress = not self.address.local  # within a machine, sending is faster than compressing
        encoding = {"Content-Encoding": "deflate" if compress else "identity"}
        try:
            for number in range(image.chunks):
                data = image.chunk(number, compress)
                self._ask("PUT", f"/v1/sessions/{session}/chunks/{number}", data, encoding)
                if report is not None:
                    report(number + 1, image.chunks)
            for _ in self._events("POST", f"/v1/sessions/{session}/ready", None):
                pass
        except (EngineLost, Unreachable):
            self.leave(session)
            raise
        except Exception:
            self.close_session(session)
            raise
        return session

    def segment(self, session: str, question: Question, shape: Voxel, report: Report | None = None) -> Answer:
        """The mask of an object.

        Args:
            session: from `open`.
            question: what is asked.
            shape: (K, J, I) of the image.
            report: told how many clicks are done.

        Raises:
            EngineError: of which `Cancelled` after `cancel`, `NoSession` after the engine was started anew.
            InvalidRequest: prompts outside the image.
        """
        answer: Answer | None = None
        path = f"/v1/sessions/{session}/segment"
        for header, payload in self._events("POST", path, question_to_json(question)):  # to its end
            kind = header.get("event")
            if kind == "progress" and report is not None:
                report(int(header["done"]), int(header["total"]))
            elif kind == "answer":
                try:
                    answer = answer_from_event(header, payload, shape)
                except ValueError as error:
                    raise EngineLost(f"the engine's answer is damaged: {error}") from error
        if answer is None:
            raise EngineLost("the engine ended before it had an answer")
        return answer

    def cancel(self, session: str) -> None:
        """End what a session is waiting for; from any thread."""
        connection = self._connect()
        try:
            with self._plain_errors(connection):
                self._call(connection, "DELETE", f"/v1/sessions/{session}/job", None, {})
        finally:
            connection.close()

    def close_session(self, session: str) -> None:
        """Let the engine forget an image; nothing is raised."""
        try:
            self._ask("DELETE", f"/v1/sessions/{session}")
        except NoSession:
            return  # forgotten already
        except EngineError:
            self.leave(session)

    def leave(self, session: str) -> None:
        """Give a session up without asking the engine, which may be lost; the next `open` closes it.

        From any thread; nothing is raised.
        """
        self._left.append(session)

    def _close_left(self) -> None:
        """Nothing is raised: an engine that is lost says so to the next request."""
        left, self._left = self._left, []
        for session in left:
            self.close_session(session)

    def close(self) -> None:
        """End the connection; the next call makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s)

    def _ask(
        self, verb: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        with self._lock, self._kept() as connection:
            response = self._call(connection, verb, path, body, headers or {})
            return _read_json(response)

    def _events(self, verb: str, path: str, body: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
        with self._lock, self._kept() as connection:
            response = self._call(connection, verb, path, body, {})
            try:
                for header, payload in read_events(response, _LARGEST_MASK):
                    if header.get("event") == "error":
                        response.read()  # up to the end: the connection can be used again
                        raise error_of(header.get("error"), header.get("message"))
                    yield header, payload
            except AttributeError as error:
                if self._connection is connection:
                    raise
                # What http.client raises when another thread ended the engine and closed its connection.
                raise EngineLost("the connection was closed") from error
            except ValueError as error:
                if isinstance(error, EngineError) or type(error) is not ValueError:
                    raise
                raise EngineLost(f"the engine's answer broke off ({error})") from error

    @contextmanager
    def _kept(self) -> Iterator[http.client.HTTPConnection]:
        """The connection; after anything but a whole answer it is closed."""
        if self._connection is None:
            self._connection = self._connect()
        whole = False
        try:
            with self._plain_errors(self._connection):
                yield self._connection
            whole = True
        except (EngineLost, Unreachable, TLSFailed, NotGSMedSeg):
            raise
        except EngineError:
            whole = True
            raise
        finally:
            if not whole:
                self.close()

    @contextmanager
    def _plain_errors(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        url = self.address.url
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise TLSFailed(
                f"{url} shows a certificate that this computer does not trust ({error.verify_message}); "
                "enter the file of the certificate that signed it"
            ) from error
        except ssl.SSLError as error:
            raise TLSFailed(f"{url} does not encrypt; enter its address with http:// ({error})") from error
        except socket.gaierror as error:
            raise Unreachable(f"no computer is called {self.address.host}; check the address") from error
        except ConnectionRefusedError as error:
            raise Unreachable(
                f"nothing answers at {url}; start the engine there, or check the port and the firewall"
            ) from error
        except TimeoutError as error:
            used = _socket_of(connection)
            waited_s = round(self._timeout_s if used is None else used.gettimeout() or 0.0, 1)
            raise EngineLost(
                f"{url} has been silent for {waited_s:g} s; check the network, or restart the engine"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise EngineLost(f"the connection to {url} broke ({type(error).__name__})") from error

    def _call(
        self, connection: http.client.HTTPConnection, verb: str, path: str, body: Any, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if body is not None and data is not body else {}

        def send() -> http.client.HTTPResponse:
            if _socket_of(connection) is None:
                connection.connect()
                if not self._lives():
                    raise EngineLost(f"the engine at {self.address.url} has ended; start it again")
            used = cast("socket.socket", connection.sock)
            used.settimeout(self._timeout_s + len(data or b"") / SLOWEST_BYTES_S)
            try:
                connection.request(verb, path, data, {**self._headers, **kind, **headers})
                response = connection.getresponse()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                raise ConnectionResetError("the encrypted connection was closed") from error
            if _socket_of(connection) is used:  # the body has arrived
                used.settimeout(self._timeout_s)
            return response

        used_before = _socket_of(connection) is not None
        try:
            response = send()
        except ConnectionError:
            if not used_before:
                raise
            # Servers and proxies close idle connections; the same request twice does no harm.
            connection.close()
            response = send()
        if response.headers.get(PROTOCOL_HEADER) is None:
            raise _foreign(self.address.url, response)
        if response.status >= 400:
            answer = _read_json(response)
            raise error_of(answer.get("error"), answer.get("message"))
        return response


def _socket_of(connection: http.client.HTTPConnection) -> socket.socket | None:
    """None before it is connected, and after it was closed."""
    return cast("socket.socket | None", connection.sock)


def _read_json(response: http.client.HTTPResponse) -> dict[str, Any]:
    try:
        answer = json.loads(response.read(_LARGEST_ANSWER))
    except (ValueError, RecursionError) as error:
        raise EngineLost("the engine's answer is damaged") from error
    if not isinstance(answer, dict):
        raise EngineLost("the engine's answer is damaged")
    return answer


def _foreign(url: str, response: http.client.HTTPResponse) -> EngineError:
    """What an answer means that is no engine's."""
    if response.status in (502, 503, 504):
        return Unreachable(
            f"a proxy at {url} answers that it cannot reach the engine ({response.status}); "
            "see whether the engine runs, and where the proxy looks for it"
        )
    return NotGSMedSeg(
        f"something else than a GSMedSeg engine answers at {url} ({response.status} {response.reason}); "
        "check address and port"
    )
