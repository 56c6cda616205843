"""Who is let in: who has the token, from the address once, from a cookie after that."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of every answer: the address, which has the token, is told to nobody else."""

REFUSED = (
    "This page is opened with the whole address that `gsmedseg web` printed, with ?token=… at its end. "
    "Copy it from there."
)


def cookie_name(token: str) -> str:
    """Servers on other ports of the same computer have other tokens, hence other cookies."""
    return f"gsmedseg-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def make_gate(token: str) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """A middleware that refuses every request without the token, files and web sockets alike.

    Args:
        token: that is asked for.
    """
    name = cookie_name(token)

    def knows(given: str) -> bool:
        return hmac.compare_digest(given.encode(), token.encode())

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="another page may not use this one")
        given = request.query.get("token", "")
        by_address = bool(given) and knows(given)
        if not by_address and not knows(request.cookies.get(name, "")):
            raise web.HTTPForbidden(text=REFUSED, headers=HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:  # a redirection, such as from / to the page
            _admit(error, request, name, token if by_address else None)
            raise
        _admit(response, request, name, token if by_address else None)
        return response

    return gate


def _admit(response: web.StreamResponse, request: web.Request, name: str, token: str | None) -> None:
    """Adds the headers, and the cookie for one who came with the token."""
    if response.prepared:
        return
    for header, value in HEADERS.items():
        response.headers.setdefault(header, value)
    if token is not None:
        response.set_cookie(name, token, httponly=True, samesite="Strict", secure=request.secure, path="/")
