"""An image that an engine elsewhere segments: sent once, and sent again when the engine was lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import ArrayLike, NDArray

from GSMedSegLib.geometry import as_ijk_to_ras
from GSMedSegLib.service.client import EngineClient
from GSMedSegLib.service.engines import EngineSource
from GSMedSegLib.service.errors import (
    Cancelled,
    EngineError,
    EngineLost,
    NoSession,
    ShuttingDown,
    Unreachable,
)
from GSMedSegLib.service.wire import Answer, ImageBytes, Question

Result = TypeVar("Result")

ATTEMPTS = 3
"""How often a click is tried on an engine that gets lost."""

CANCELLED = "the click was cancelled; the mask before it stays"
"""What is told of a question that was broken off."""

Progress = Callable[[str, int, int], None]
"""Told what is being done ("engine", "image", "recovering" or "clicks"), and how many steps of how many."""


class RemoteImage:
    """One image and the engine that segments it. A mask needs the prompts alone, so nothing is lost with it.

    One call at a time; `cancel` may come from another thread.

    Args:
        source: of engines.
        image: (K, J, I) real numbers; must not change while it is in use.
        ijk_to_ras: (4, 4), mm.

    Raises:
        ValueError: not such an image, or a bad matrix.
    """

    def __init__(self, source: EngineSource, image: NDArray[Any], ijk_to_ras: ArrayLike) -> None:
        self._source = source
        self._image = ImageBytes(image)
        self._ijk_to_ras = as_ijk_to_ras(ijk_to_ras)
        self._client: EngineClient | None = None
        self._session: str | None = None
        self._cancelled = threading.Event()
        self._closed = threading.Event()

    @property
    def sent(self) -> bool:
        """Whether the engine had the image when it last answered."""
        return self._session is not None

    def prepare(self, progress: Progress | None = None) -> None:
        """Send the image, as the first call of `segment` does otherwise.

        Raises:
            EngineError: see `EngineClient`.
            InvalidRequest: the image cannot be segmented.
        """
        self._attempt(lambda client, session: None, progress or _silent)

    def segment(self, question: Question, progress: Progress | None = None) -> Answer:
        """The mask of an object.

        Args:
            question: what is asked.
            progress: told how far it is.

        Raises:
            EngineError: of which `Cancelled` after `cancel`.
            InvalidRequest: the image or the prompts cannot be used.
        """
        told = progress or _silent

        def ask(client: EngineClient, session: str) -> Answer:
            self._check()
            told("clicks", 0, 1)  # may raise: the question may have been dropped while the image was sent
            return client.segment(
                session, question, self._image.shape, lambda done, total: told("clicks", done, total)
            )

        return self._attempt(ask, told)

    def cancel(self) -> None:
        """End the call that is going on, if there is one; from any thread, and before the next call begins.

        Returns after the client's timeout at the latest, whether the engine answers or not.
        """
        self._cancelled.set()
        client, session = self._client, self._session
        if client is not None and session is not None:
            try:
                client.cancel(session)
            except EngineError:
                # No engine, nothing to end; or it arrives late: then it finds a session not in use.
                self._leave(client, session)

    def close(self) -> None:
        """Let the engine forget the image, for good; one that is being sent is sent no further."""
        self._closed.set()
        client, session, self._session = self._client, self._session, None
        if client is not None and session is not None:
            client.close_session(session)

    def _attempt(self, ask: Callable[[EngineClient, str], Result], told: Progress) -> Result:
        self._cancelled.clear()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return ask(*self._open(told))
            except NoSession:
                self._session = None
                last = attempt == ATTEMPTS
            except (EngineLost, Unreachable, ShuttingDown):
                if self._client is not None and self._session is not None:
                    self._leave(self._client, self._session)
                self._source.lost()
                last = attempt == ATTEMPTS
                if last:
                    raise
            if last:
                raise EngineError("the engine forgets its sessions at once; start it with more --idle-s")
            self._check()
            told("recovering", attempt, ATTEMPTS)
        raise AssertionError("unreachable")

    def _open(self, told: Progress) -> tuple[EngineClient, str]:
        client, session = self._client, self._session
        if client is not None and session is not None:
            return client, session
        told("engine", 0, 1)
        self._client = client = self._source.connect(self._check)

        def report(done: int, total: int) -> None:
            self._check()
            told("image", done, total)

        self._check()
        self._session = session = client.open(self._image, self._ijk_to_ras, report)
        if self._closed.is_set():  # `close` may have come too early to see the session
            self._session = None
            client.close_session(session)
            self._check()
        return client, session

    def _leave(self, client: EngineClient, session: str) -> None:
        client.leave(session)
        if self._session == session:
            self._session = None

    def _check(self) -> None:
        if self._cancelled.is_set() or self._closed.is_set():
            raise Cancelled(CANCELLED)


def _silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""
