"""A large file from the web: resumed where it stopped, through the user's proxy, whole or absent."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Progress = Callable[[int, int | None], None]
"""Called with the bytes on disk and the bytes in all (None where the server does not say)."""

BLOCK_BYTES = 1 << 20
ATTEMPTS = 5
RETRY_WAIT_S = 1.0
"""The download ends after this many requests in a row that gained nothing; the wait between them doubles."""

RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class _Origin:
    """What a partial file is part of; a file that changed on the server gives another origin.

    Attributes:
        url: as asked for.
        validator: the server's ETag or Last-Modified; None when it sends neither.
        bytes_total: None when the server does not say.
    """

    url: str
    validator: str | None
    bytes_total: int | None

    def fits(self, found: _Origin) -> bool:
        """Whether a partial answer belongs to this file; with a validator asked for, it may say less."""
        silent = None if self.validator else self.bytes_total
        return found.validator in (None, self.validator) and found.bytes_total in (silent, self.bytes_total)


class _InterruptedError(Exception):
    """The transfer stopped for a reason that may pass."""


def download(
    url: str,
    target: Path,
    *,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Download a file.

    What has arrived is kept in `target` + ".part" when the transfer stops for any reason, and the next call
    goes on from there with an HTTP Range request, unless the file has changed on the server. Proxies are
    taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY, certificates from SSL_CERT_FILE where it is set.

    Args:
        url: http or https.
        target: the file wanted; its folder exists. An older file is replaced at the end.
        check: looks at the complete file before it becomes `target`; when it raises ValueError, what was
            downloaded is deleted.
        progress: called after every block; an exception it raises stops the download.
        timeout_s: for connecting, and for every block.

    Raises:
        ValueError: `url` is neither http nor https, or `check` refused the file.
        OSError: the server cannot be reached or refuses, or the disk is full; says what to do.
    """
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError(f"expected an address that starts with https:// or http://, not {url!r}")
    part = target.with_name(f"{target.name}.part")
    opener = urllib.request.build_opener()  # reads the proxy variables now, unlike urlopen
    failures, before = 0, -1
    while True:
        try:
            _transfer(opener, url, part, progress, timeout_s)
            break
        except _InterruptedError as error:
            here = part.stat().st_size if part.exists() else 0
            failures, before = (failures + 1 if here <= before else 1), max(here, before)
            if failures >= ATTEMPTS:
                raise ConnectionError(
                    f"the download from {_host(url)} broke off ({error}); {here / 1e6:.1f} MB are kept, "
                    "run the same command again to go on from there"
                ) from error
            time.sleep(RETRY_WAIT_S * 2 ** (failures - 1))
    try:
        if check is not None:
            check(part)
    except ValueError:
        part.unlink()
        _origin_file(part).unlink()
        raise
    os.replace(part, target)
    _origin_file(part).unlink()


def _transfer(
    opener: urllib.request.OpenerDirector, url: str, part: Path, progress: Progress | None, timeout_s: float
) -> None:
    """One request: fetch what is missing in `part`. Returns when the file is complete."""
    origin, here = _read_origin(part, url)
    if origin is not None and here == origin.bytes_total:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "gsmedseg", "Accept-Encoding": "identity"})
    if origin is not None and here:
        request.add_header("Range", f"bytes={here}-")
        if origin.validator:
            request.add_header("If-Range", origin.validator)
    try:
        response = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and here:
                part.unlink()
                raise _InterruptedError("the server could not continue the file, starting over") from error
            raise _http_error(error, url) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(error, url, begun=here > 0) from error
    with response:
        if urllib.parse.urlsplit(url).scheme == "https" and not response.url.startswith("https:"):
            raise ConnectionError(f"{_host(url)} redirects to an address without encryption, not followed")
        start, total = _position(response)
        found = _Origin(url, _validator(response), total)
        if start and (start != here or origin is None or not origin.fits(found)):
            part.unlink()
            raise _InterruptedError("the file has changed on the server, starting over")
        if start and origin is not None:
            total = origin.bytes_total
        _check_space(part, (total or start) - start)
        done = start
        with part.open("ab" if start else "wb") as file:
            if not start:  # after the old bytes are gone, so that the two never disagree
                _origin_file(part).write_text(json.dumps(asdict(found)), encoding="utf-8")
            while True:
                try:
                    block = response.read(BLOCK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _InterruptedError(str(error) or type(error).__name__) from error
                if not block:
                    break
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise _InterruptedError(f"the connection closed at {done} of {total} bytes")
    if part.stat().st_size != done:
        part.unlink()
        raise _InterruptedError("another download wrote to the same file, starting over")


def _position(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the bytes of a response begin in the file, and the length of the file."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        raise ConnectionError(
            f"{_host(response.url)} answered with a range it does not name; try another mirror"
        )
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What identifies this version of the file: a strong ETag, else its date."""
    etag: str | None = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    date: str | None = response.headers.get("Last-Modified")
    return date


def _origin_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_origin(part: Path, url: str) -> tuple[_Origin | None, int]:
    """What the partial file is part of and how long it is; a file of unknown origin counts as none."""
    try:
        here = part.stat().st_size
        origin = _Origin(**json.loads(_origin_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None, 0
    if origin.url != url or (origin.validator is None and origin.bytes_total is None):
        return None, 0
    return origin, here


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the download needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free; make room, or "
            "set GSMEDSEG_HOME to a folder on another disk",
            str(part.parent),
        )


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or url


def _http_error(error: urllib.error.HTTPError, url: str) -> Exception:
    """What an HTTP status means for the user."""
    if error.code in RETRY_STATUS:
        return _InterruptedError(f"HTTP {error.code} {error.reason}")
    meaning = {
        401: "the server wants a login",
        403: "the server refuses access",
        404: "the file is not there (any more)",
        407: "the proxy wants a login: set HTTPS_PROXY=http://user:password@host:port",
        410: "the file is not there any more",
    }.get(error.code, str(error.reason))
    return ConnectionError(f"{url} could not be downloaded, HTTP {error.code}: {meaning}")


def _unreachable(error: Exception, url: str, begun: bool) -> Exception:
    """What a failed connection means for the user; one that was `begun` already may come back."""
    host, reason = _host(url), getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ConnectionError(
            f"the certificate of {host} is not trusted ({reason.verify_message}); behind a filtering proxy, "
            "set SSL_CERT_FILE to your organisation's certificate bundle"
        )
    if reason is error or isinstance(reason, ConnectionResetError):  # it was connected: worth another try
        return _InterruptedError(str(reason) or type(reason).__name__)
    proxy = urllib.request.getproxies().get(urllib.parse.urlsplit(url).scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        way = f"through the proxy {proxy.rpartition('@')[2]}"
    else:
        way = "without a proxy (set HTTPS_PROXY if you need one)"
    gone = f"{host} cannot be reached {way}: {reason}; check the network"
    return _InterruptedError(gone) if begun else ConnectionError(gone)
