"""Who is let in, what may be sent, and what is handed out; by a real server on this computer."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

web = pytest.importorskip("aiohttp.web", reason="pip install 'gsmedseg[web]'")
from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

from GSMedSegLib.web.address import Address  # noqa: E402
from GSMedSegLib.web.gate import cookie_name, make_gate  # noqa: E402
from GSMedSegLib.web.transfers import IDLE_S, Transfers  # noqa: E402

TOKEN = "token-token-token-token"
BATCH = "0123456789abcdef"


def serve(ask: Callable[[Any, Transfers], Awaitable[None]], save: Any = None) -> None:
    """Ask a server with gate and transfers something."""

    async def run() -> None:
        transfers = Transfers(save or nothing_to_save)
        app = web.Application(middlewares=[make_gate(TOKEN)])
        app.add_routes([*transfers.routes(), web.get("/", lambda _: web.Response(text="page"))])
        async with TestClient(TestServer(app)) as client:
            try:
                await ask(client, transfers)
            finally:
                transfers.close()

    asyncio.run(run())


async def nothing_to_save(kind: str, folder: Path) -> Path:
    raise ValueError(f"nothing to save as {kind}")


def test_the_token_opens_the_page_once_and_the_cookie_after_that():
    async def ask(client: Any, _: Transfers) -> None:
        for url in ("/", "/?token=", "/?token=wrong-wrong-wrong-wrong", "/save/json"):
            refused = await client.get(url)
            assert refused.status == 403
            assert TOKEN not in await refused.text()
        page = await client.get(f"/?token={TOKEN}")
        assert await page.text() == "page"
        cookie = page.cookies[cookie_name(TOKEN)]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Strict"
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert (await client.get("/")).status == 200  # the client kept the cookie

    serve(ask)


def test_other_pages_are_kept_out_even_with_the_cookie():
    async def ask(client: Any, _: Transfers) -> None:
        await client.get(f"/?token={TOKEN}")
        refused = await client.get("/", headers={"Origin": "http://elsewhere.example"})
        assert refused.status == 403
        own = f"http://{client.host}:{client.port}"
        assert (await client.get("/", headers={"Origin": own})).status == 200

    serve(ask)


def test_other_ports_have_other_cookies():
    assert cookie_name(TOKEN) != cookie_name(TOKEN + "1")
    assert TOKEN not in cookie_name(TOKEN)


def test_files_arrive_in_their_folders_and_go_when_forgotten():
    async def ask(client: Any, transfers: Transfers) -> None:
        sent = await client.put(f"/upload/{BATCH}/study/a%20b.dcm?token={TOKEN}", data=b"voxels")
        assert sent.status == 200
        folder = transfers.take(BATCH)
        assert (folder / "study" / "a b.dcm").read_bytes() == b"voxels"
        transfers.forget(BATCH)
        with pytest.raises(ValueError, match="nothing was sent"):
            transfers.take(BATCH)

    serve(ask)


@pytest.mark.parametrize(
    "path",
    [
        f"/upload/{BATCH}/%2e%2e/%2e%2e/evil",
        f"/upload/{BATCH}/..%2f..%2fevil",
        f"/upload/{BATCH}/%2fetc%2fevil",
        f"/upload/{BATCH}/C:%5cevil",
        f"/upload/{BATCH}/a%5c..%5cevil",
        "/upload/short/evil",
        "/upload/%2e%2e/evil",
    ],
)
def test_names_that_lead_elsewhere_are_refused(path: str, tmp_path: Path):
    from yarl import URL

    async def ask(client: Any, transfers: Transfers) -> None:
        await client.get(f"/?token={TOKEN}")
        answer = await client.put(URL(path, encoded=True), data=b"x")
        assert answer.status in (400, 404, 405)
        assert not list(transfers._folder.rglob("evil*"))
        assert not list(transfers._folder.parent.glob("evil*"))

    serve(ask)


@pytest.mark.parametrize(
    "path",
    ["a%00b.nii.gz", f"{'n' * 300}.nii.gz", f"{'n' * 300}/a.dcm", "/".join(["n" * 200] * 30), "study"],
)
def test_names_that_cannot_be_kept_are_refused_without_a_path(path: str):
    from yarl import URL

    async def ask(client: Any, transfers: Transfers) -> None:
        await client.put(f"/upload/{BATCH}/study/a.dcm?token={TOKEN}", data=b"x")
        answer = await client.put(URL(f"/upload/{BATCH}/{path}", encoded=True), data=b"x")
        assert answer.status == 400
        text = await answer.text()
        assert "rename the file" in text
        assert str(transfers._folder) not in text
        assert len(text) < 120

    serve(ask)


def test_a_full_disk_is_told_without_a_path(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/secret")

    async def ask(client: Any, transfers: Transfers) -> None:
        monkeypatch.setattr(Path, "open", full)
        answer = await client.put(f"/upload/{BATCH}/a.dcm?token={TOKEN}", data=b"x")
        assert answer.status == 507
        assert await answer.text() == "a.dcm cannot be kept: No space left on device"

    serve(ask)


def test_an_upload_that_breaks_off_is_not_kept():
    async def ask(client: Any, transfers: Transfers) -> None:
        await client.put(f"/upload/{BATCH}/a.dcm?token={TOKEN}", data=b"x")
        _, writer = await asyncio.open_connection(client.host, client.port)
        head = f"PUT /upload/{BATCH}/b.dcm?token={TOKEN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100"
        writer.write(f"{head}\r\n\r\nhalf".encode())
        file = transfers._folder / BATCH / "b.dcm"
        while not file.exists():
            await asyncio.sleep(0.01)
        writer.close()
        while file.parent.exists():
            await asyncio.sleep(0.01)

    serve(ask)


def test_what_was_sent_but_never_opened_goes_after_a_while():
    now = [0.0]

    async def ask(client: Any, transfers: Transfers) -> None:
        transfers._clock = lambda: now[0]
        other = "f" * 16
        await client.put(f"/upload/{BATCH}/a.dcm?token={TOKEN}", data=b"x")
        await client.put(f"/upload/{other}/a.dcm?token={TOKEN}", data=b"x")
        opened = transfers.take(other)
        now[0] = IDLE_S - 1
        await client.put(f"/upload/{BATCH}/b.dcm?token={TOKEN}", data=b"x")
        now[0] = 2 * IDLE_S - 2
        transfers.forget_idle()
        assert len(list((transfers._folder / BATCH).iterdir())) == 2
        now[0] = 2 * IDLE_S
        transfers.forget_idle()
        with pytest.raises(ValueError, match="nothing was sent"):
            transfers.take(BATCH)
        assert opened.is_dir()

    serve(ask)


def test_a_save_is_a_download_and_leaves_nothing_behind():
    async def save(kind: str, folder: Path) -> Path:
        path = folder / f"Müller.{kind}"
        path.write_bytes(b"1234")
        return path

    async def ask(client: Any, transfers: Transfers) -> None:
        answer = await client.get(f"/save/json?token={TOKEN}")
        assert await answer.read() == b"1234"
        assert unquote(answer.headers["X-Name"]) == "Müller.json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert list(transfers._folder.iterdir()) == []

    serve(ask, save)


def test_what_cannot_be_saved_says_why():
    async def ask(client: Any, _: Transfers) -> None:
        answer = await client.get(f"/save/dcm?token={TOKEN}")
        assert answer.status == 409
        assert await answer.text() == "nothing to save as dcm"

    serve(ask)


def test_addresses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu1")
    for full, name in (
        ("gpu1.clinic.org", "gpu1.clinic.org"),
        ("1.0.ip6.arpa", "gpu1"),
        ("localhost", "gpu1"),
    ):
        monkeypatch.setattr("socket.getfqdn", lambda full=full: full)
        assert Address("0.0.0.0", 0, TOKEN).url(81) == f"http://{name}:81/?token={TOKEN}"
    assert Address("127.0.0.1", 0, TOKEN).url(81) == f"http://127.0.0.1:81/?token={TOKEN}"
    tls = (Path("c.pem"), Path("k.pem"))
    assert Address("::1", 0, TOKEN, tls).url(82) == f"https://[::1]:82/?token={TOKEN}"


def test_more_than_fits_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch):
    """The files of a batch count together."""
    monkeypatch.setattr("GSMedSegLib.web.transfers.UPLOAD_BYTES", 1000)

    async def ask(client: Any, transfers: Transfers) -> None:
        first = await client.put(f"/upload/{BATCH}/a.dcm?token={TOKEN}", data=bytes(600))
        assert first.status == 200
        second = await client.put(f"/upload/{BATCH}/b.dcm?token={TOKEN}", data=bytes(600))
        assert second.status == 413
        assert "open a part of it" in await second.text()
        with pytest.raises(ValueError, match="nothing was sent"):
            transfers.take(BATCH)

    serve(ask)
