"""A web server on this machine that serves one file, well or badly."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """What to serve, how, and what was asked.

    Attributes:
        content: the file.
        etag: its ETag; None to send none.
        cut_after: for each request to come, after how many bytes the connection breaks (None: never).
        status: for each request to come, an error status to answer with instead (None: none).
        ranges: whether Range requests are honoured.
        says_length: whether the length is said.
        redirect_to: an address to send every request on to.
        requests: the path and the headers of every request, in order.
    """

    content: bytes = b""
    etag: str | None = '"v1"'
    cut_after: list[int | None] = field(default_factory=list)
    status: list[int | None] = field(default_factory=list)
    ranges: bool = True
    says_length: bool = True
    redirect_to: str | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def asked(self, header: str) -> list[str | None]:
        """One header of every request."""
        return [headers.get(header) for _, headers in self.requests]


@contextmanager
def serve(server: FileServer) -> Iterator[FileServer]:
    """Run a server on a free port of 127.0.0.1 while the block lasts; fills its `url`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Stay silent."""

        def do_CONNECT(self) -> None:
            """What a proxy is asked for https."""
            server.requests.append((self.path, dict(self.headers.items())))
            self.send_error(502)

        def do_GET(self) -> None:
            server.requests.append((self.path, dict(self.headers.items())))
            status = server.status.pop(0) if server.status else None
            if status is not None:
                self.send_error(status)
                return
            if server.redirect_to is not None:
                self.send_response(302)
                self.send_header("Location", server.redirect_to)
                self.end_headers()
                return
            total, start = len(server.content), 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked and server.ranges and self.headers.get("If-Range") in (None, server.etag):
                start = int(asked[1])
                if start >= total:
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if server.etag is not None:
                self.send_header("ETag", server.etag)
            if server.says_length:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            cut = server.cut_after.pop(0) if server.cut_after else None
            body = server.content[start:]
            self.wfile.write(body if cut is None else body[:cut])

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that leave early are part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{httpd.server_address[1]}/weights"
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()
