"""What runs the network: one job at a time, in the order in which they came."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from GSMedSegLib.service.errors import Cancelled, ShuttingDown

Report = Callable[[int, int], None]
"""Told how many steps are done, of how many."""


_LOOK_UP_S = 0.5


class Job:
    """Something to be done for an owner, who may cancel it.

    Args:
        owner: whose job it is.
        run: does it, telling a `Report` how far it is, and returns the answer.
        tell: called from the worker's thread with ("progress", (done, total)), and at the end once with
            ("answer", what `run` returned) or ("error", the exception).
    """

    def __init__(
        self, owner: Hashable, run: Callable[[Report], Any], tell: Callable[[str, Any], None]
    ) -> None:
        self.owner = owner
        self._run, self._tell = run, tell
        self._why: Exception | None = None
        self.seconds = 0.0
        """How long it ran."""

    def cancel(self, why: Exception | None = None) -> None:
        """Ends the job at the next chance; it answers with the error given."""
        self._why = why or Cancelled("the click was cancelled; the mask before it stays")

    def check(self) -> None:
        """Raises when the job was cancelled."""
        if self._why is not None:
            raise self._why

    def perform(self) -> Exception | None:
        """Does it; returns what went wrong."""
        began = time.monotonic()
        try:
            self.check()
            answer = self._run(lambda done, total: self._tell("progress", (done, total)))
        except Exception as error:  # noqa: BLE001 - whatever it is, its owner is told and the next job goes on
            self.seconds = time.monotonic() - began
            self._tell("error", error)
            return error
        self.seconds = time.monotonic() - began
        self._tell("answer", answer)
        return None


class Worker:
    """Runs jobs in the thread that calls `work`. An owner has one job at a time: a newer one replaces it.

    Args:
        most_waiting: jobs that may wait.
        done: called after every job with it and what went wrong, from that thread.
    """

    def __init__(self, most_waiting: int, done: Callable[[Job, Exception | None], None]) -> None:
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._most_waiting = most_waiting
        self._done = done
        self._jobs: dict[Hashable, Job] = {}
        self._now: Job | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._waiting.qsize()

    @property
    def full(self) -> bool:
        """Whether no more jobs are taken."""
        return self.waiting >= self._most_waiting

    def add(self, job: Job) -> None:
        """Queues a job; the one its owner has is cancelled.

        Raises:
            ShuttingDown: the worker is ending.
        """
        with self._lock:
            if self._closing:
                raise ShuttingDown("the engine is shutting down; start it again")
            before = self._jobs.get(job.owner)
            if before is not None:
                before.cancel(Cancelled("a newer click took the place of this one"))
            self._jobs[job.owner] = job
        self._waiting.put(job)

    def cancel(self, owner: Hashable) -> bool:
        """Cancels the job of an owner; False when there is none."""
        with self._lock:
            job = self._jobs.get(owner)
        if job is not None:
            job.cancel()
        return job is not None

    def busy(self, owner: Hashable) -> bool:
        """Whether an owner has a job that waits or runs."""
        with self._lock:
            return owner in self._jobs

    def check(self) -> None:
        """Raises when the running job was cancelled; for the engine to call."""
        if self._now is not None and threading.current_thread() is self._thread:
            self._now.check()

    def close(self, timeout_s: float = 30.0) -> None:
        """Cancels all jobs, lets `work` return and waits for it."""
        with self._lock:
            self._closing = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel(ShuttingDown("the engine is shutting down; start it again"))
        self._waiting.put(None)
        if self._thread is not None:
            self._ended.wait(timeout_s)

    def work(self) -> None:
        """Runs jobs until the worker is closed. The process's first thread computes fastest: 10 % here."""
        self._thread = threading.current_thread()
        while (job := self._next()) is not None:
            self._now = job
            error = job.perform()
            self._now = None
            with self._lock:
                if self._jobs.get(job.owner) is job:
                    del self._jobs[job.owner]
            self._done(job, error)
            del job, error  # an idle worker keeps nobody's image
        self._ended.set()

    def _next(self) -> Job | None:
        while True:
            with suppress(queue.Empty):
                return self._waiting.get(timeout=_LOOK_UP_S)  # on Windows, Ctrl+C does not end a longer wait
