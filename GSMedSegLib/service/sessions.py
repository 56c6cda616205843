"""The images that clients are working on, and how much of the machine they may take."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import prod

from GSMedSegLib.cropped import Voxel, crop
from GSMedSegLib.engine import Engine
from GSMedSegLib.geometry import FloatArray, spacing_kji_mm
from GSMedSegLib.hint import next_click
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.segment import smoothed
from GSMedSegLib.service.errors import EngineBusy, NoSession, TooLarge, WrongState
from GSMedSegLib.service.wire import Answer, ImageBuffer, Question, image_bytes
from GSMedSegLib.service.worker import Report

PYRAMID_BYTES = 4.6
"""What a predictor keeps of a voxel: float32, and its half, quarter, … resolutions."""

REMEMBERED_BYTES = 2**25
"""Memory for a session's earlier masks, for clicks after an undo; the client keeps its answers itself."""


@dataclass(frozen=True)
class Limits:
    """What a service takes on.

    Attributes:
        image_voxels: of one image.
        sessions: at a time.
        memory_gb: of all sessions together, the network aside.
        idle_s: after so long without a request a session is forgotten.
        waiting: clicks that wait for the network.
        request_bytes: of one request.
        receive_s: a request that stands still for so long is given up.
    """

    image_voxels: int = 2**30
    sessions: int = 32
    memory_gb: float = 8.0
    idle_s: float = 3600.0
    waiting: int = 64
    request_bytes: int = 64 * 2**20
    receive_s: float = 30.0


class Session:
    """One client's work on one image.

    Args:
        shape: (K, J, I) of the image.
        dtype: as `wire` names it.
        sha256: of its bytes.
        ijk_to_ras: (4, 4), mm.
    """

    def __init__(self, shape: Voxel, dtype: str, sha256: str, ijk_to_ras: FloatArray) -> None:
        self.id = secrets.token_urlsafe(16)
        self.shape = shape
        self.buffer: ImageBuffer | None = ImageBuffer(shape, dtype, sha256)
        self.used_s = time.monotonic()
        self._sent_bytes = image_bytes(shape, dtype)
        self.nbytes = self._sent_bytes + round(PYRAMID_BYTES * prod(shape)) + REMEMBERED_BYTES
        self._ijk_to_ras = ijk_to_ras
        self._predictor: Predictor | None = None

    @property
    def ready(self) -> bool:
        """Whether the image is there and understood."""
        return self._predictor is not None

    def prepare(self, engine: Engine) -> None:
        """Make the image ready for clicks; run by the worker.

        Raises:
            ValueError: a damaged or constant image, or one with NaN.
        """
        buffer = self.buffer
        assert buffer is not None
        self.buffer = None  # damaged or not, it is of no more use
        predictor = Predictor(engine, remembered_bytes=REMEMBERED_BYTES)
        predictor.set_image(buffer.take(), self._ijk_to_ras)
        self._predictor = predictor
        self.nbytes -= self._sent_bytes

    def segment(self, question: Question, report: Report) -> Answer:
        """The mask of an object; run by the worker.

        Raises:
            WrongState: the image is not complete, or there is no foreground click yet.
        """
        if self._predictor is None:
            raise WrongState("the image is not complete; send all of it first")
        try:
            segment = self._predictor.segment_from(question.prompts, report)
        except RuntimeError as error:
            if type(error) is RuntimeError and "foreground" in str(error):
                raise WrongState(str(error)) from error
            raise
        clicks, spacing = question.prompts.clicks, spacing_kji_mm(self._ijk_to_ras)
        hint = next_click(segment, clicks, spacing) if question.hint else None
        segment = smoothed(segment, question.smoothing_mm, spacing, clicks)
        k, j, i = (s.start for s in segment.box)
        mask = crop((segment.logits > 0).numpy(), self.shape, (k, j, i))
        return Answer(mask) if hint is None else Answer(mask, hint.kji, hint.positive)


class Sessions:
    """All sessions of a service; safe to use from several threads.

    Args:
        limits: of the service.
        busy: whether a session, by its id, has something to do: it does not expire then.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        limits: Limits,
        busy: Callable[[Hashable], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._busy, self._clock = limits, busy, clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Memory that the sessions may take."""
        with self._lock:
            return sum(session.nbytes for session in self._sessions.values())

    def open(self, shape: Voxel, dtype: str, sha256: str, ijk_to_ras: FloatArray) -> Session:
        """A new session.

        Raises:
            TooLarge: the image is larger than one may be, or than all the memory.
            EngineBusy: there are too many sessions, or too little memory is left beside them.
        """
        voxels, memory = prod(shape), self._limits.memory_gb * 2**30
        if voxels > self._limits.image_voxels:
            raise TooLarge(
                f"this engine takes up to {self._limits.image_voxels / 1e6:.0f} million voxels, "
                f"got {voxels / 1e6:.0f} million; crop the image, or start it with more --image-voxels"
            )
        needed = image_bytes(shape, dtype) + PYRAMID_BYTES * voxels + REMEMBERED_BYTES
        if needed > memory:
            raise TooLarge(
                f"this image takes {needed / 2**30:.1f} GiB, the engine has {self._limits.memory_gb:.1f} for "
                "images; crop the image, or start the engine with more --memory-gb"
            )
        self.expire()
        with self._lock:
            if len(self._sessions) >= self._limits.sessions:
                raise EngineBusy(
                    f"this engine serves {self._limits.sessions} sessions and has as many; try again later, "
                    "or start it with more --sessions"
                )
            taken = sum(session.nbytes for session in self._sessions.values())
            if taken + needed > memory:
                raise EngineBusy(
                    f"images take {taken / 2**30:.1f} of {self._limits.memory_gb:.1f} GiB, this one needs "
                    f"{needed / 2**30:.1f}; try again later, or start the engine with more --memory-gb"
                )
            session = Session(shape, dtype, sha256, ijk_to_ras)
            session.used_s = self._clock()
            self._sessions[session.id] = session
        return session

    def get(self, session_id: str) -> Session:
        """A session, which counts as used now.

        Raises:
            NoSession: there is none; it expired, or the engine was started anew.
        """
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                raise NoSession("there is no such session; it expired, or the engine was started anew")
            session.used_s = self._clock()
            return session

    def close(self, session_id: str) -> None:
        """Forgets a session; nothing happens when there is none."""
        with self._lock:
            self._sessions.pop(session_id, None)

    def expire(self) -> int:
        """Forgets sessions that were idle for too long; returns how many."""
        now = self._clock()
        with self._lock:
            old = [
                name
                for name, session in self._sessions.items()
                if now - session.used_s > self._limits.idle_s and not self._busy(name)
            ]
            for name in old:
                del self._sessions[name]
        return len(old)
