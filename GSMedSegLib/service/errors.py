"""What can go wrong between a client and an engine: the same exception at both ends.

The engine raises one and answers with its code; the client raises the exception of that code.
"""

# ruff: noqa: N818 - they are named after what happened; "…Error" would say no more

from __future__ import annotations

from typing import ClassVar


class EngineError(RuntimeError):
    """Something went wrong in the engine that the request was not to blame for.

    Attributes:
        code: how it is called in answers.
        status: of HTTP.
    """

    code: ClassVar[str] = "failed"
    status: ClassVar[int] = 500


class InvalidRequest(ValueError):
    """What was sent makes no sense: a click outside the image, a constant image, a malformed request."""

    code: ClassVar[str] = "invalid"
    status: ClassVar[int] = 400


class WrongState(EngineError):
    """The request comes too early: the image is not complete, or there is no foreground click yet."""

    code, status = "wrong_state", 409


class WrongToken(EngineError):
    """The engine wants another token."""

    code, status = "wrong_token", 401


class Forbidden(EngineError):
    """The engine serves no web pages' scripts, and none that call it by a foreign name."""

    code, status = "forbidden", 403


class VersionMismatch(EngineError):
    """Client and engine speak different versions of the protocol."""

    code, status = "version", 400


class NoSession(EngineError):
    """The engine does not know the session: it expired, or the engine is a new one."""

    code, status = "no_session", 404


class TooLarge(EngineError):
    """The image or the request is larger than this engine takes."""

    code, status = "too_large", 413


class Damaged(EngineError):
    """What arrived is not what was sent."""

    code, status = "damaged", 422


class TooSlow(EngineError):
    """The request did not arrive in time."""

    code, status = "too_slow", 408


class EngineBusy(EngineError):
    """The engine has as many sessions, as much in memory or as much to do as it may."""

    code, status = "busy", 429


class ShuttingDown(EngineError):
    """The engine is about to end."""

    code, status = "shutting_down", 503


class Cancelled(EngineError):
    """The job was cancelled."""

    code, status = "cancelled", 409


class Unreachable(EngineError):
    """Nothing answers at the address."""

    code = "unreachable"


class NotGSMedSeg(EngineError):
    """Something else than a GSMedSeg engine answers at the address."""

    code = "not_gsmedseg"


class TLSFailed(EngineError):
    """No encrypted connection: an unknown certificate, or one end that does not encrypt."""

    code = "tls"


class EngineLost(EngineError):
    """The engine ended, or the connection to it broke."""

    code = "lost"


BY_CODE: dict[str, type[EngineError | InvalidRequest]] = {
    kind.code: kind
    for kind in (
        EngineError,
        InvalidRequest,
        WrongState,
        WrongToken,
        Forbidden,
        VersionMismatch,
        NoSession,
        TooLarge,
        Damaged,
        TooSlow,
        EngineBusy,
        ShuttingDown,
        Cancelled,
    )
}
"""What an engine may answer with."""


def error_of(code: object, message: object) -> EngineError | InvalidRequest:
    """The exception of an answer; a code of a newer engine becomes an `EngineError`."""
    kind = BY_CODE.get(code, EngineError) if isinstance(code, str) else EngineError
    return kind(str(message))
