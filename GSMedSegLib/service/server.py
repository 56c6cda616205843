"""The service's requests: sessions, chunks of images, clicks, and how it is doing.

Made with `make_app` and run by `gsmedseg serve`. It keeps nothing on disk, and its log has neither images nor
clicks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from GSMedSegLib import __version__
from GSMedSegLib.cropped import Voxel
from GSMedSegLib.engine import Engine
from GSMedSegLib.geometry import as_ijk_to_ras
from GSMedSegLib.service.errors import (
    Damaged,
    EngineBusy,
    EngineError,
    InvalidRequest,
    NoSession,
    WrongState,
)
from GSMedSegLib.service.guard import Guard
from GSMedSegLib.service.sessions import Limits, Session, Sessions
from GSMedSegLib.service.wire import (
    CHUNK_BYTES,
    DTYPES,
    HEARTBEAT_S,
    LOCAL_HOSTS,
    PROTOCOL,
    answer_to_event,
    event,
    question_from_json,
)
from GSMedSegLib.service.worker import Job, Report, Worker

LOGGER = logging.getLogger("gsmedseg.service")

LOOPBACK = frozenset(f"[{host}]" if ":" in host else host for host in LOCAL_HOSTS)
"""The same as a request's Host has them."""

EXPIRY_S = 60.0
"""How often sessions are looked over at most."""


class NewSession(BaseModel):
    """An image that is to be sent."""

    model_config = ConfigDict(extra="forbid")

    shape: tuple[int, int, int] = Field(description="(K, J, I) voxels")
    dtype: str = Field(description=f"one of {', '.join(DTYPES)}; little-endian")
    ijk_to_ras: list[list[float]] = Field(description="4x4, voxel (i, j, k, 1) to mm (r, a, s, 1)")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of all bytes of the image in C order")


class NewQuestion(BaseModel):
    """What was said of one object, and what is asked."""

    model_config = ConfigDict(extra="forbid")

    clicks: list[Any] = Field(default=[], description="[k, j, i, positive], oldest first")
    box: dict[str, Any] | None = Field(default=None, description="min_kji, max_kji, mid_k")
    mask: dict[str, Any] | None = Field(default=None, description="to start from: a cropped, packed mask")
    smoothing_mm: float = Field(default=0.0, description="of the border, a standard deviation")
    hint: bool = Field(default=False, description="whether to say where a next click would help")


class Service:
    """The state behind the requests. Nothing is answered before some thread runs `worker.work`.

    Args:
        engine: runs the network; the service takes it over.
        limits: what is taken on.
        about: more to tell clients of the engine.
    """

    def __init__(self, engine: Engine, limits: Limits, about: Mapping[str, Any] | None = None) -> None:
        self.engine, self.limits = engine, limits
        self.about = {
            "version": __version__,
            "protocol": PROTOCOL,
            "device": str(engine.device),
            "precision": str(engine.precision).removeprefix("torch."),
            "limits": {"image_voxels": limits.image_voxels, "sessions": limits.sessions},
            **(about or {}),
        }
        self.registry = CollectorRegistry()
        self._jobs = Counter("gsmedseg_jobs", "Jobs by how they ended", ["end"], registry=self.registry)
        self._seconds = Histogram("gsmedseg_job_seconds", "How long jobs ran", registry=self.registry)
        self._refused = Counter("gsmedseg_refused", "Requests refused", ["why"], registry=self.registry)
        self.worker = Worker(limits.waiting, self._done)
        self.sessions = Sessions(limits, self.worker.busy)
        engine.interrupt = self.worker.check
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "gsmedseg_sessions": ("Open sessions", lambda: len(self.sessions)),
            "gsmedseg_session_bytes": ("Memory that sessions may take", lambda: self.sessions.nbytes),
            "gsmedseg_waiting": ("Jobs that wait", lambda: self.worker.waiting),
            "gsmedseg_encoded": ("Regions encoded", lambda: engine.encoded),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(value)

    def refused(self, error: EngineError | InvalidRequest) -> None:
        """Counts a refusal."""
        self._refused.labels(error.code).inc()

    def _done(self, job: Job, error: Exception | None) -> None:
        end = "answered" if error is None else getattr(error, "code", None)
        if isinstance(error, ValueError):
            end = InvalidRequest.code
        elif end is None:
            end = EngineError.code
            # The kind and the place alone: a message might say something of the image.
            LOGGER.error("a job failed: %s at %s", type(error).__name__, _places(error))
        self._jobs.labels(end).inc()
        self._seconds.observe(job.seconds)

    def start(
        self, session: Session, run: Callable[[Report], Any]
    ) -> tuple[Job, asyncio.Queue[tuple[str, Any]]]:
        """Queues a job of a session; what it tells arrives in the queue.

        Raises:
            EngineBusy: too much is waiting.
            ShuttingDown: the service is ending.
        """
        if self.worker.full and not self.worker.busy(session.id):
            raise EngineBusy(f"{self.worker.waiting} clicks are waiting for this engine; try again later")
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def tell(kind: str, value: Any) -> None:
            try:
                loop.call_soon_threadsafe(told.put_nowait, (kind, value))
            except RuntimeError:  # the loop has ended, and with it whoever would have listened
                return

        job = Job(session.id, run, tell)
        self.worker.add(job)
        return job, told


def _places(error: BaseException | None) -> str:
    """Where an error was raised, with the calls that led there."""
    frames = [] if error is None else list(traceback.walk_tb(error.__traceback__))
    return " > ".join(
        f"{PurePath(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}" for frame, line in frames
    )


def make_app(service: Service, token: str | None = None, hosts: frozenset[str] = LOOPBACK) -> Guard:
    """The service as an ASGI application.

    Args:
        service: the state behind it; its worker is closed when the application ends.
        token: that every request must have; None for a random one, which nobody knows but `Guard`.
        hosts: names by which the service may be called; empty for any.
    """
    limits = service.limits

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def look_over() -> None:
            while True:
                await asyncio.sleep(min(EXPIRY_S, limits.idle_s / 2))
                service.sessions.expire()

        task = asyncio.create_task(look_over())
        yield
        task.cancel()
        await asyncio.to_thread(service.worker.close)

    # The usual page of documentation takes its scripts from the internet: openapi.json alone is served.
    app = FastAPI(
        title="GSMedSeg engine",
        version=__version__,
        summary="Interactive 3D segmentation: an image once, then clicks in and masks out",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(app, service)
    _add_requests(app, service)
    return Guard(app, secrets.token_urlsafe(32) if token is None else token, hosts, limits)


def _add_errors(app: FastAPI, service: Service) -> None:
    def answer(error: EngineError | InvalidRequest) -> JSONResponse:
        service.refused(error)
        return JSONResponse({"error": error.code, "message": str(error)}, error.status)

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, (EngineError, InvalidRequest))
        return answer(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(InvalidRequest(f"{where or 'the request'}: {first['msg']}; see /openapi.json"))

    async def no_such_request(request: Request, _: Exception) -> Response:
        return answer(InvalidRequest(f"there is no {request.method} {request.url.path}; see /openapi.json"))

    async def unreadable(_: Request, error: Exception) -> Response:
        return answer(
            InvalidRequest(f"the request cannot be read ({getattr(error, 'detail', '')}); it is JSON")
        )

    async def value(_: Request, error: Exception) -> Response:
        return answer(InvalidRequest(str(error)))

    app.add_exception_handler(EngineError, known)
    app.add_exception_handler(InvalidRequest, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(400, unreadable)
    app.add_exception_handler(404, no_such_request)
    app.add_exception_handler(405, no_such_request)
    app.add_exception_handler(ValueError, value)


def _add_requests(app: FastAPI, service: Service) -> None:
    sessions = service.sessions

    @app.get("/health", summary="Whether the engine answers; needs no token")
    async def health() -> dict[str, Any]:
        return {"status": "ready", "version": __version__, "protocol": PROTOCOL}

    @app.get("/metrics", summary="Figures in Prometheus' format")
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/engine", summary="What the engine is and takes")
    async def about() -> dict[str, Any]:
        return {**service.about, "sessions": len(sessions), "waiting": service.worker.waiting}

    @app.post("/v1/sessions", summary="Announce an image", status_code=201)
    async def open_session(new: NewSession) -> dict[str, Any]:
        shape = _shape(new.shape)
        if new.dtype not in DTYPES:
            raise InvalidRequest(f"dtype is one of {', '.join(DTYPES)}, got {new.dtype!r:.20}")
        session = sessions.open(shape, new.dtype, new.sha256, as_ijk_to_ras(new.ijk_to_ras))
        assert session.buffer is not None
        return {"session": session.id, "chunk_bytes": CHUNK_BYTES, "chunks": session.buffer.missing}

    @app.put("/v1/sessions/{session}/chunks/{number}", summary="Send a part of the image")
    async def put_chunk(session: str, number: int, request: Request) -> dict[str, int]:
        buffer = sessions.get(session).buffer
        if buffer is None:
            raise WrongState("the image is complete; open a new session for another one")
        encoding = request.headers.get("content-encoding", "identity")
        if encoding not in ("deflate", "identity"):
            raise InvalidRequest(f"content-encoding is deflate or identity, got {encoding!r:.20}")
        data = await request.body()
        try:
            await asyncio.to_thread(buffer.put, number, data, encoding == "deflate")
        except ValueError as error:
            raise Damaged(str(error)) from error
        return {"missing": buffer.missing}

    @app.post("/v1/sessions/{session}/ready", summary="Make the complete image ready for clicks")
    async def ready(session: str) -> StreamingResponse:
        opened = sessions.get(session)
        if opened.buffer is None or opened.buffer.missing:
            missing = 0 if opened.buffer is None else opened.buffer.missing
            raise WrongState(f"{missing} chunks of the image are missing; send them first, and all once")

        def run(_: Report) -> dict[str, Any]:
            try:
                opened.prepare(service.engine)
            except BaseException:
                sessions.close(session)
                raise
            LOGGER.info("an image of %d x %d x %d voxels", *opened.shape)
            return {"event": "ready"}

        return StreamingResponse(_events(service, opened, *service.start(opened, run)), media_type=_EVENTS)

    @app.post("/v1/sessions/{session}/segment", summary="The mask of an object")
    async def segment(session: str, question: NewQuestion) -> StreamingResponse:
        opened = sessions.get(session)
        if not opened.ready:
            raise WrongState("the image is not ready for clicks; send all of it first")
        asked = question_from_json(question.model_dump(), opened.shape)

        def run(report: Report) -> tuple[dict[str, Any], bytes]:
            return answer_to_event(opened.segment(asked, report))

        return StreamingResponse(_events(service, opened, *service.start(opened, run)), media_type=_EVENTS)

    @app.delete("/v1/sessions/{session}/job", summary="Cancel what the session is waiting for")
    async def cancel(session: str) -> dict[str, bool]:
        return {"cancelled": service.worker.cancel(sessions.get(session).id)}

    @app.delete("/v1/sessions/{session}", summary="Forget an image")
    async def close(session: str) -> dict[str, bool]:
        service.worker.cancel(session)
        sessions.close(session)
        return {"closed": True}


_EVENTS = "application/vnd.gsmedseg.events"


async def _events(
    service: Service, session: Session, job: Job, told: asyncio.Queue[tuple[str, Any]]
) -> AsyncIterator[bytes]:
    """What a job tells, with a sign of life at least every `HEARTBEAT_S`."""
    ended = False
    try:
        while not ended:
            try:
                kind, value = await asyncio.wait_for(told.get(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                yield event({"event": "working"})
                continue
            if kind == "progress":
                yield event({"event": "progress", "done": value[0], "total": value[1]})
                continue
            ended = True
            if kind == "error":
                yield event(_error_event(value))
            else:
                header, payload = value if isinstance(value, tuple) else (value, b"")
                yield event(header, payload)
    finally:
        if not ended:  # the client went away; a newer job of its session goes on
            job.cancel()
        with suppress(NoSession):
            service.sessions.get(session.id)  # its time without use begins now


def _error_event(error: Exception) -> dict[str, Any]:
    if isinstance(error, (EngineError, InvalidRequest)):
        return {"event": "error", "error": error.code, "message": str(error)}
    if isinstance(error, ValueError):
        return {"event": "error", "error": InvalidRequest.code, "message": str(error)}
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        text = "the engine ran out of memory; close other sessions, or crop the image"
        return {"event": "error", "error": EngineBusy.code, "message": text}
    text = f"the engine failed ({type(error).__name__}); its log says more"
    return {"event": "error", "error": EngineError.code, "message": text}


def _shape(values: tuple[int, int, int]) -> Voxel:
    if min(values) < 1 or max(values) >= 2**31:
        raise InvalidRequest(f"an image has at least one voxel along each axis, got shape {values}")
    return values
