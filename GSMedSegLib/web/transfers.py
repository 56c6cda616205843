"""Files between the browser and this computer: images that come in, segmentations that go out."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath

from aiohttp import web

from GSMedSegLib.console import reason

_BATCH = re.compile(r"[0-9a-f]{16}")
_CHUNK_BYTES = 2**20

UPLOAD_BYTES = 16 * 2**30
"""What the files sent together may hold."""

Save = Callable[[str, Path], Awaitable[Path]]
"""Writes what is before the user in a format into a folder; the file."""


class Transfers:
    """Takes uploads, a folder for each, and hands out what is saved.

    Args:
        save: writes a file for a download.
    """

    def __init__(self, save: Save) -> None:
        self._save = save
        self._folder = Path(tempfile.mkdtemp(prefix="gsmedseg-"))
        self._sizes: dict[str, int] = {}

    def routes(self) -> list[web.RouteDef]:
        """What the server is to answer by this."""
        return [
            web.put("/upload/{batch}/{path:.+}", self._upload),
            web.get("/save/{format}", self._download),
        ]

    def take(self, batch: str) -> Path:
        """The folder of an upload.

        Raises:
            ValueError: there is no such upload.
        """
        folder = self._folder / batch
        if not _BATCH.fullmatch(batch) or not folder.is_dir():
            raise ValueError("nothing was sent; choose a file again")
        return folder

    def forget(self, batch: str) -> None:
        """Delete an upload."""
        self._sizes.pop(batch, None)
        if _BATCH.fullmatch(batch):
            shutil.rmtree(self._folder / batch, ignore_errors=True)

    def close(self) -> None:
        """Delete all that was sent."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _upload(self, request: web.Request) -> web.Response:
        batch, path = request.match_info["batch"], PurePosixPath(request.match_info["path"])
        unsafe = any(part in ("..", ".") or ":" in part or "\\" in part for part in path.parts)
        if not _BATCH.fullmatch(batch) or path.is_absolute() or unsafe:
            raise web.HTTPBadRequest(text=f"{path.name}: a name that cannot be kept; rename the file")
        target = self._folder / batch / Path(*path.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
                    self._sizes[batch] = self._sizes.get(batch, 0) + len(chunk)
                    if self._sizes[batch] > UPLOAD_BYTES:
                        break
                    file.write(chunk)
        except OSError as error:
            self.forget(batch)
            raise web.HTTPInsufficientStorage(text=reason(error)) from error
        if self._sizes.get(batch, 0) > UPLOAD_BYTES:
            self.forget(batch)
            raise web.HTTPRequestEntityTooLarge(
                UPLOAD_BYTES, text=f"more than {UPLOAD_BYTES / 2**30:.3g} GiB at once; open a part of it"
            )
        return web.Response()

    async def _download(self, request: web.Request) -> web.StreamResponse:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            try:
                file = await self._save(request.match_info["format"], Path(folder))
            except (ValueError, RuntimeError, OSError) as error:
                raise web.HTTPConflict(text=reason(error)) from error
            response = web.StreamResponse(
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(file.stat().st_size),
                    "X-Name": file.name.encode("ascii", "replace").decode().replace("?", "_"),
                    "Cache-Control": "no-store",
                }
            )
            await response.prepare(request)
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    await response.write(chunk)
        return response
