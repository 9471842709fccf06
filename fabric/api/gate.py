"""What every request passes first: a bound on requests, a bound on bodies, and the counters.

Plain ASGI, so that streams pass through it piece by piece. The order is fixed by this one class: count, refuse, limit.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fabric.api.problems import TOO_LARGE, ProblemError, respond, unavailable
from fabric.api.services import Services
from fabric.api.settings import ApiLimits

IMAGES = "/v1/images/"


class Gate:
    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._metrics = services.metrics
        self._limits = services.control.limits
        self._serving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # the client went away before there was an answer

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = perf_counter()
        self._serving += 1
        self._metrics.in_flight.inc()
        try:
            await self._pass(scope, receive, counted_send)
        except Exception:
            status = 500  # what is around this gate answers it
            raise
        finally:
            self._serving -= 1
            self._metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if route != "unmatched" else "any"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._serving > self._limits.max_requests:
            await self._refuse(unavailable(f"{self._serving - 1} requests are being served already.", 1), scope, send)
            return
        if scope["method"] == "PUT" and scope["path"].startswith(IMAGES):
            await self._app(scope, receive, send)
            return
        announced = _content_length(scope)
        if announced > self._limits.body_bytes:
            whole = await _drain(receive, self._limits)
            error = _too_large(self._limits, announced)
            await self._refuse(error if whole else error.closing(), scope, send)
            return
        await self._app(scope, _limited(receive, self._limits), send)

    async def _refuse(self, error: ProblemError, scope: Scope, send: Send) -> None:
        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        await respond(Request(scope), error)(scope, nothing, send)


def _limited(receive: Receive, limits: ApiLimits) -> Receive:
    """A body that was announced too small, or not at all, is cut off where it becomes too large."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limits.body_bytes:
                whole = not message.get("more_body") or await _drain(receive, limits)
                error = _too_large(limits, received)
                raise error if whole else error.closing()
        return message

    return limited


async def _drain(receive: Receive, limits: ApiLimits) -> bool:
    """So that a client that is still sending gets to read the answer. False when it goes on for too long."""
    try:
        async with asyncio.timeout(limits.upload_drain_s):
            while True:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return bool(message["type"] == "http.request")
    except TimeoutError:
        return False


def _too_large(limits: ApiLimits, found: int) -> ProblemError:
    return ProblemError(TOO_LARGE, f"body: expected at most {limits.body_bytes} bytes, found {found} or more")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:19])
    return 0
