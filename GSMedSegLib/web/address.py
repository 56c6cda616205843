"""Where the page is served, and to whom."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

EVERYWHERE = ("0.0.0.0", "::")
"""All networks of this computer: to listen on, not to open."""


@dataclass(frozen=True)
class Address:
    """Where the page is served, and to whom.

    Attributes:
        host: address to listen on.
        port: 0 for any that is free.
        token: that every request must have.
        tls: certificate and key files, to encrypt, or None.
    """

    host: str
    port: int
    token: str
    tls: tuple[Path, Path] | None = None

    def url(self, port: int) -> str:
        """As it is opened in a browser, here or elsewhere, when it is served on a port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in EVERYWHERE:
            full = socket.getfqdn()
            host = socket.gethostname() if full.endswith(".arpa") or full == "localhost" else full
        return f"{'https' if self.tls else 'http'}://{host}:{port}/?token={self.token}"
