"""Files between the browser and this computer: images that come in, segmentations that go out."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from aiohttp import StreamReader, web

from GSMedSegLib.console import reason

_BATCH = re.compile(r"[0-9a-f]{16}")
_CHUNK_BYTES = 2**20

UPLOAD_BYTES = 16 * 2**30
"""What the files sent together may hold."""

IDLE_S = 300.0
"""Files that are not opened, and of which nothing more has come for so long, are deleted."""

_BAD_NAME = {
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST),  # a file and a folder of one name
}

Save = Callable[[str, Path], Awaitable[Path]]
"""Writes what is before the user in a format into a folder; the file."""


@dataclass
class _Sending:
    """Files on their way: how much has come, and when the last of it."""

    moved_s: float
    nbytes: int = 0


class Transfers:
    """Takes uploads, a folder for each, and hands out what is saved.

    Args:
        save: writes a file for a download.
        clock: seconds, for tests.
    """

    def __init__(self, save: Save, clock: Callable[[], float] = time.monotonic) -> None:
        self._save, self._clock = save, clock
        self._folder = Path(tempfile.mkdtemp(prefix="gsmedseg-"))
        self._sending: dict[str, _Sending] = {}

    def routes(self) -> list[web.RouteDef]:
        """What the server is to answer by this."""
        return [
            web.put("/upload/{batch}/{path:.+}", self._upload),
            web.get("/save/{format}", self._download),
        ]

    def take(self, batch: str) -> Path:
        """The folder of an upload, which is kept until `forget`.

        Raises:
            ValueError: there is no such upload.
        """
        folder = self._folder / batch
        if not _BATCH.fullmatch(batch) or not folder.is_dir():
            raise ValueError("nothing was sent; choose a file again")
        self._sending.pop(batch, None)
        return folder

    def forget(self, batch: str) -> None:
        """Delete an upload."""
        self._sending.pop(batch, None)
        if _BATCH.fullmatch(batch):
            shutil.rmtree(self._folder / batch, ignore_errors=True)

    def forget_idle(self) -> None:
        """Delete what was sent by pages that went away before it was opened."""
        oldest = self._clock() - IDLE_S
        for batch, sending in list(self._sending.items()):
            if sending.moved_s < oldest:
                self.forget(batch)

    def close(self) -> None:
        """Delete all that was sent."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _own_folder(self) -> Path:
        """Where files go; made anew, for its owner alone, when somebody has tidied temporary files."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder

    async def _upload(self, request: web.Request) -> web.Response:
        batch, path = request.match_info["batch"], PurePosixPath(request.match_info["path"])
        unsafe = any(part in ("..", ".") or ":" in part or "\\" in part for part in path.parts)
        bad_name = web.HTTPBadRequest(text=f"{_shown(path)}: a name that cannot be kept; rename the file")
        if not _BATCH.fullmatch(batch) or path.is_absolute() or unsafe:
            raise bad_name
        whole = False
        try:
            await self._receive(batch, self._own_folder() / batch / Path(*path.parts), request.content)
            whole = True
        except ValueError as error:  # NUL
            raise bad_name from error
        except OSError as error:
            if error.errno in _BAD_NAME:
                raise bad_name from error
            why = error.strerror or type(error).__name__
            raise web.HTTPInsufficientStorage(text=f"{_shown(path)} cannot be kept: {why}") from error
        finally:
            if not whole:  # also when the page has gone
                self.forget(batch)
        return web.Response()

    async def _receive(self, batch: str, target: Path, content: StreamReader) -> None:
        sending = self._sending.setdefault(batch, _Sending(self._clock()))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            async for chunk in content.iter_chunked(_CHUNK_BYTES):
                if self._sending.get(batch) is not sending:
                    raise web.HTTPConflict(text="the sending broke off; choose the files again")
                sending.moved_s = self._clock()
                sending.nbytes += len(chunk)
                if sending.nbytes > UPLOAD_BYTES:
                    raise web.HTTPRequestEntityTooLarge(
                        UPLOAD_BYTES,
                        text=f"more than {UPLOAD_BYTES / 2**30:.3g} GiB at once; open a part of it",
                    )
                file.write(chunk)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self._own_folder()))
                file = await self._save(request.match_info["format"], Path(folder))
            except (ValueError, RuntimeError, OSError) as error:
                raise web.HTTPConflict(text=reason(error)) from error
            response = web.StreamResponse(
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(file.stat().st_size),
                    "X-Name": quote(file.name),  # of a header only ASCII arrives
                    "Cache-Control": "no-store",
                }
            )
            await response.prepare(request)
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    await response.write(chunk)
        return response


def _shown(path: PurePosixPath) -> str:
    """A file's name, as far as it can be shown."""
    return "".join(sign for sign in path.name if sign.isprintable())[:60]
