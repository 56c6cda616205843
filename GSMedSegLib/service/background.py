"""Questions answered in a thread, for programs whose window must not wait.

The window's own thread asks, and polls for what was answered: nothing is called from the other thread. Of
several questions with one tag only the last is answered.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from GSMedSegLib.service.engines import EngineSource
from GSMedSegLib.service.errors import Cancelled, EngineBusy, EngineError
from GSMedSegLib.service.remote_image import CANCELLED, Progress, RemoteImage
from GSMedSegLib.service.wire import Answer, Question

REMEMBERED_BYTES = 64 * 2**20
"""Memory for earlier answers, so that undo and redo need no engine."""

MOST_IMAGES = 4
"""Images that the engine is asked to keep; the first of more is sent again when it is clicked on."""

CLOSE_S = 2.0
"""How long the end waits until an engine elsewhere has forgotten the images; else it keeps them an hour."""

MakeImage = Callable[[EngineSource], RemoteImage]


@dataclass(frozen=True)
class Told:
    """What became of a question, or how far it is.

    Attributes:
        tag: of the question.
        question: what was asked.
        answer: when it was answered.
        error: when it cannot be.
        doing: otherwise, what is being done: "engine", "image", "recovering" or "clicks".
        done, total: steps of that.
    """

    tag: Hashable
    question: Question
    answer: Answer | None = None
    error: Exception | None = None
    doing: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class _Asked:
    tag: Hashable
    image: Hashable
    make_image: MakeImage
    question: Question


class Background:
    """Asks an engine, one question at a time, in a thread of its own.

    Args:
        source: where the engine comes from.
    """

    def __init__(self, source: EngineSource) -> None:
        self._source = source
        self._lock = threading.Condition()
        self._waiting: OrderedDict[Hashable, _Asked] = OrderedDict()
        self._now: _Asked | None = None
        self._told: deque[Told] = deque()
        self._images: OrderedDict[Hashable, RemoteImage] = OrderedDict()
        self._answers: OrderedDict[tuple[Hashable, Question], Answer] = OrderedDict()
        self._dropped: set[int] = set()
        self._cancelling: threading.Thread | None = None
        self._forgotten = False
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="gsmedseg-questions", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a question waits or is being answered."""
        with self._lock:
            return self._now is not None or bool(self._waiting)

    def ask(self, tag: Hashable, image: Hashable, make_image: MakeImage, question: Question) -> None:
        """Ask; what was asked before with the same tag is dropped.

        Args:
            tag: whose question it is.
            image: names the image; another one is sent when the name changes.
            make_image: makes it for the engine; called in the other thread, when it is needed first.
            question: what is asked.
        """
        asked = _Asked(tag, image, make_image, question)
        known = self._answers.get((image, question))
        with self._lock:
            self._drop(tag)
            if known is not None:
                self._told.append(Told(tag, question, known))
                return
            self._waiting[tag] = asked
            self._make_way()
            self._lock.notify_all()

    def cancel(self, tag: Hashable) -> None:
        """Drop what was asked with a tag; nothing more is told of it."""
        with self._lock:
            self._drop(tag)

    def poll(self, wait_s: float = 0.0) -> list[Told]:
        """What was told since the last call.

        Args:
            wait_s: how long to let the thread work when there is nothing: Slicer's event loop gives Python's
                other threads no time of their own.
        """
        with self._lock:
            if not self._told and wait_s > 0:
                self._lock.wait(wait_s)
            told = list(self._told)
            self._told.clear()
        return told

    def forget(self, image: Hashable) -> None:
        """Let go of an image that is not needed any more."""
        with self._lock:
            remote = self._images.pop(image, None)
            if self._now is not None and self._now.image == image:
                self._forgotten = True
            for key in [key for key in self._answers if key[0] == image]:
                del self._answers[key]
        if remote is not None:
            threading.Thread(target=remote.close, daemon=True).start()

    def close(self) -> None:
        """End, and let the engine forget all images; what is being answered is dropped."""
        with self._lock:
            self._closing = True
            self._waiting.clear()
            if self._now is not None:
                self._drop(self._now.tag)
            ending = [threading.Thread(target=remote.close, daemon=True) for remote in self._images.values()]
            self._images.clear()
            self._lock.notify_all()
        for thread in ending:
            thread.start()
        until = time.monotonic() + CLOSE_S
        for thread in (*ending, self._thread):
            thread.join(max(0.0, until - time.monotonic()))

    def _drop(self, tag: Hashable) -> None:
        """With the lock held."""
        self._waiting.pop(tag, None)
        self._told = deque(told for told in self._told if told.tag != tag)
        if self._now is not None and self._now.tag == tag and id(self._now) not in self._dropped:
            self._dropped.add(id(self._now))
            remote = self._images.get(self._now.image)
            if remote is not None and remote.sent:  # an image on its way is for the next question, too
                self._cancel(remote)

    def _make_way(self) -> None:
        """With the lock held: an image is sent no further for nobody while another one is waited for."""
        now = self._now
        if now is None or id(now) not in self._dropped or self._cancelling is not None:
            return
        remote = self._images.get(now.image)
        if remote is not None and not any(asked.image == now.image for asked in self._waiting.values()):
            self._cancel(remote)

    def _cancel(self, remote: RemoteImage) -> None:
        self._cancelling = threading.Thread(target=remote.cancel, daemon=True)
        self._cancelling.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closing:
                    self._lock.wait()
                if self._closing:
                    return
                _, asked = self._waiting.popitem(last=False)
                self._now, self._forgotten = asked, False
            told = self._answer(asked)
            with self._lock:
                self._now = None
                if id(asked) not in self._dropped:
                    self._told.append(told)
                self._dropped.discard(id(asked))
                cancelling, self._cancelling = self._cancelling, None
                self._lock.notify_all()
            if cancelling is not None:
                cancelling.join()  # what arrives late would end the next question in place of this one

    def _answer(self, asked: _Asked) -> Told:
        def progress(doing: str, done: int, total: int) -> None:
            with self._lock:
                heirs = [asked]
                if id(asked) in self._dropped:
                    if doing == "clicks":
                        raise Cancelled(CANCELLED)
                    heirs = [other for other in self._waiting.values() if other.image == asked.image]
                for heir in heirs:
                    self._told.append(Told(heir.tag, heir.question, doing=doing, done=done, total=total))
                self._lock.notify_all()

        try:
            remote = self._images.get(asked.image)
            if remote is None:
                remote = asked.make_image(self._source)
                with self._lock:
                    if self._forgotten or self._closing:
                        raise Cancelled(CANCELLED)
                    self._images[asked.image] = remote
                    oldest = next(iter(self._images)) if len(self._images) > MOST_IMAGES else None
                if oldest is not None:
                    self.forget(oldest)
            answer = self._segment(remote, asked, progress)
        except (EngineError, ValueError, OSError, MemoryError) as error:
            return Told(asked.tag, asked.question, error=error)
        with self._lock:
            if not self._forgotten:
                self._answers[asked.image, asked.question] = answer
            while len(self._answers) > 1 and self._remembered() > REMEMBERED_BYTES:
                self._answers.popitem(last=False)
        return Told(asked.tag, asked.question, answer)

    def _segment(self, remote: RemoteImage, asked: _Asked, progress: Progress) -> Answer:
        """Asks; while the engine has no room for the image, it forgets others, the oldest first."""
        while True:
            try:
                return remote.segment(asked.question, progress)
            except EngineBusy:
                with self._lock:
                    oldest = next((image for image in self._images if image != asked.image), None)
                    if remote.sent or oldest is None:
                        raise
                    other = self._images.pop(oldest)
                other.close()

    def _remembered(self) -> int:
        return sum(answer.mask.array.nbytes for answer in self._answers.values())
