"""Downloads survive bad connections, changed files, proxies, full disks. No request leaves this machine."""

from __future__ import annotations

import errno
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from GSMedSegLib import download as module
from GSMedSegLib.download import download
from Testing.lib.file_server import FileServer, serve

CONTENT = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine that runs the tests, no waiting, blocks small enough to be interrupted."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(module, "RETRY_WAIT_S", 0.0)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(FileServer(CONTENT)) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can resolve no host name."""

    def unknown(*args: object, **kwargs: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def part_of(target: Path) -> Path:
    return target.with_name("weights.pt.part")


class StopError(Exception):
    """The user's Ctrl-C."""


def stop_at(limit: int) -> module.Progress:
    def progress(done: int, total: int | None) -> None:
        if done >= limit:
            raise StopError

    return progress


def test_a_file_arrives_whole(server: FileServer, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(server.url, target, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert seen[0] == (1000, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_file_arrives(server: FileServer, target: Path) -> None:
    server.content = b""
    download(server.url, target)
    assert target.read_bytes() == b""


def test_a_cut_connection_is_taken_up_where_it_broke(server: FileServer, target: Path) -> None:
    """Three cuts in one call: each request asks for what is missing, of the same version of the file."""
    server.cut_after = [300_000, 200_000, 1]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=300000-", "bytes=500000-", "bytes=500001-"]
    assert server.asked("If-Range") == [None, '"v1"', '"v1"', '"v1"']


def test_a_stopped_download_goes_on_in_the_next_call(server: FileServer, target: Path) -> None:
    with pytest.raises(StopError):
        download(server.url, target, progress=stop_at(400_000))
    assert not target.exists()
    assert part_of(target).stat().st_size == 400_000
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=400000-"]
    assert list(target.parent.iterdir()) == [target]


def test_an_older_file_stays_until_the_new_one_is_whole(server: FileServer, target: Path) -> None:
    target.write_bytes(b"old")
    with pytest.raises(StopError):
        download(server.url, target, progress=stop_at(400_000))
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("etag", ['"v2"', None], ids=["another version", "no version said"])
def test_a_file_that_changed_on_the_server_starts_over(
    etag: str | None, server: FileServer, target: Path
) -> None:
    """Two halves of different files never become one."""
    server.etag = '"v1"' if etag else None
    with pytest.raises(StopError):
        download(server.url, target, progress=stop_at(400_000))
    server.content, server.etag = b"new" * 300_000, etag
    download(server.url, target)
    assert target.read_bytes() == server.content


def test_without_a_version_the_length_tells_that_it_is_the_same(server: FileServer, target: Path) -> None:
    server.etag, server.cut_after = None, [300_000]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=300000-"]


def test_with_neither_version_nor_length_nothing_is_resumed(server: FileServer, target: Path) -> None:
    """A partial file of unknown origin is worth nothing."""
    server.etag, server.says_length = None, False
    with pytest.raises(StopError):
        download(server.url, target, progress=stop_at(400_000))
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range") == [None, None]


def test_a_partial_file_from_another_address_is_not_continued(server: FileServer, target: Path) -> None:
    with pytest.raises(StopError):
        download(server.url + "?mirror", target, progress=stop_at(400_000))
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range") == [None, None]


def test_a_server_that_ignores_range_sends_all_again(server: FileServer, target: Path) -> None:
    server.ranges, server.cut_after = False, [300_000]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_partial_file_longer_than_the_file_starts_over(server: FileServer, target: Path) -> None:
    """HTTP 416: what was kept cannot be a part."""
    server.etag = None
    with pytest.raises(StopError):
        download(server.url, target, progress=stop_at(400_000))
    server.content = b"short"
    download(server.url, target)
    assert target.read_bytes() == b"short"


def test_a_whole_part_is_not_downloaded_again(server: FileServer, target: Path) -> None:
    """The last check was interrupted: the next call only checks."""

    def interrupted(path: Path) -> NoReturn:
        raise StopError

    with pytest.raises(StopError):
        download(server.url, target, check=interrupted)
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_refused_file_is_deleted(server: FileServer, target: Path) -> None:
    """The next call must not go on from a file that is wrong."""

    def refuse(path: Path) -> NoReturn:
        assert path.read_bytes() == CONTENT
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        download(server.url, target, check=refuse)
    assert list(target.parent.iterdir()) == []


def test_a_passing_server_fault_is_tried_again(server: FileServer, target: Path) -> None:
    server.status = [503, 429]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_lasting_server_fault_ends_and_keeps_what_came(server: FileServer, target: Path) -> None:
    server.cut_after, server.status = [300_000], [None] + [503] * 20
    with pytest.raises(ConnectionError, match=r"HTTP 503.*0\.3 MB are kept, run the same command again"):
        download(server.url, target)
    assert part_of(target).stat().st_size == 300_000
    assert len(server.requests) == module.ATTEMPTS


@pytest.mark.parametrize("lasting", [False, True])
def test_a_line_that_is_away_in_the_middle(
    lasting: bool, server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment names cannot be looked up: what has come is gone on from, or kept."""
    server.cut_after = [300_000]
    plain, asked = urllib.request.OpenerDirector.open, []

    def looked_up(*arguments: Any, **options: Any) -> Any:
        asked.append(None)
        if 2 <= len(asked) <= (99 if lasting else 3):
            raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))
        return plain(*arguments, **options)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", looked_up)
    if lasting:
        with pytest.raises(ConnectionError, match=r"cannot be reached .*0\.3 MB are kept, run the same comm"):
            download(server.url, target)
    else:
        download(server.url, target)
        assert target.read_bytes() == CONTENT
        assert server.asked("Range") == [None, "bytes=300000-"]


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(404, "not there"), (403, "refuses"), (401, "login"), (407, "HTTPS_PROXY"), (418, "")],
)
def test_a_refusal_is_explained_at_once(status: int, meaning: str, server: FileServer, target: Path) -> None:
    server.status = [status]
    with pytest.raises(ConnectionError, match=rf"HTTP {status}: .*{meaning}"):
        download(server.url, target)
    assert len(server.requests) == 1
    assert list(target.parent.iterdir()) == []


def test_an_unreachable_host(target: Path) -> None:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=r"cannot be reached without a proxy .set HTTPS_PROXY"):
            download(f"http://127.0.0.1:{port}/w", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("no_names")
def test_an_unknown_host(target: Path) -> None:
    with pytest.raises(ConnectionError, match=r"weights\.invalid cannot be reached.*check the network"):
        download("https://weights.invalid/w", target)


def test_a_silent_server_times_out(target: Path) -> None:
    """It accepts the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w"
        with pytest.raises(ConnectionError, match="timed out"):
            download(url, target, timeout_s=0.05)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/w", "weights.pt", ""])
def test_other_addresses_are_refused(url: str, target: Path) -> None:
    with pytest.raises(ValueError, match="https://"):
        download(url, target)


def test_a_redirect_is_followed_with_the_range(server: FileServer, target: Path) -> None:
    """As model hubs send one on to their storage."""
    server.cut_after = [300_000]
    with serve(FileServer(redirect_to=server.url)) as hub:
        download(hub.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=300000-"]


def test_the_proxy_is_used(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY gets the whole address; the host itself need not be known here."""
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/weights"))
    download("http://weights.invalid/w", target)
    assert target.read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["http://weights.invalid/w"]


def test_no_proxy_goes_around_the_proxy(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download(server.url, target)
    assert [path for path, _ in server.requests] == ["/weights"]


def test_the_proxy_is_asked_to_connect_for_https(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", server.url.removesuffix("/weights"))
    with pytest.raises(ConnectionError, match=r"through the proxy http://127\.0\.0\.1:\d+: .*502"):
        download("https://weights.invalid/w", target)
    assert [path for path, _ in server.requests] == ["weights.invalid:443"]


@pytest.mark.usefixtures("no_names")
def test_a_broken_proxy_is_named_without_its_password(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.invalid:3128")
    with pytest.raises(ConnectionError, match=r"through the proxy proxy\.invalid:3128") as caught:
        download("https://weights.invalid/w", target)
    assert "secret" not in str(caught.value)


def test_a_full_disk_is_noticed_before(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    with pytest.raises(OSError, match=r"needs 1 MB, the disk has 0 MB free.*GSMEDSEG_HOME") as caught:
        download(server.url, target)
    assert caught.value.errno == errno.ENOSPC
    assert list(target.parent.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_part(server: FileServer, target: Path) -> None:
    """A limit on the file size stands in for a full disk; with room again, the download goes on."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            download(server.url, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.exists()
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.asked("Range")[1] is not None
