"""Who is let in, what may be sent, and what is handed out; by a real server on this computer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

web = pytest.importorskip("aiohttp.web", reason="pip install 'gsmedseg[web]'")
from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

from GSMedSegLib.web.address import Address  # noqa: E402
from GSMedSegLib.web.gate import cookie_name, make_gate  # noqa: E402
from GSMedSegLib.web.transfers import Transfers  # noqa: E402

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


def test_a_save_is_a_download_and_leaves_nothing_behind():
    async def save(kind: str, folder: Path) -> Path:
        path = folder / f"Müller.{kind}"
        path.write_bytes(b"1234")
        return path

    async def ask(client: Any, transfers: Transfers) -> None:
        answer = await client.get(f"/save/json?token={TOKEN}")
        assert await answer.read() == b"1234"
        assert answer.headers["X-Name"] == "M_ller.json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert list(transfers._folder.iterdir()) == []

    serve(ask, save)


def test_what_cannot_be_saved_says_why():
    async def ask(client: Any, _: Transfers) -> None:
        answer = await client.get(f"/save/dcm?token={TOKEN}")
        assert answer.status == 409
        assert await answer.text() == "nothing to save as dcm"

    serve(ask)


def test_addresses():
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
