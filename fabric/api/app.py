"""The application: routes, the one form of errors, documents.

    gate.py         every request: bounds and counters
    routes/         one module a noun: paths, parameters, what is answered
    deploying.py, instances.py, inventory.py, planning.py, events.py, pushing.py, contents.py     what is done
    fleet.py        lost nodes, drains, the brake;  auditing.py, looking.py   the audit
    store.py, noting.py, mending.py   the znodes, typed;  control.py  the peers;  watches.py  changes
    schemas.py, operator_schemas.py, views.py, problems.py, paging.py, docs.py     the interface
"""

from __future__ import annotations

import logging
from typing import cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from fabric import __version__
from fabric.api.control import ControlPlane
from fabric.api.docs import add_docs
from fabric.api.gate import Gate
from fabric.api.problems import (
    BROKEN,
    MEDIA,
    NOT_JSON,
    ProblemError,
    from_status,
    from_validation,
    respond,
    unavailable,
)
from fabric.api.routes import deployments, fabric, health, images, instances, nodes, operating
from fabric.api.services import Services
from fabric.records import BadRecord
from zk.tree import ConnectionLost, Overloaded, SessionExpired, TreeError

ROUTERS = tuple(module.router for module in (deployments, instances, nodes, fabric, images, operating, health))
_log = logging.getLogger("fabric.api")


def create_app(control: ControlPlane) -> FastAPI:
    """The ASGI application over an open control plane."""
    services = Services.over(control)
    app = FastAPI(title="Provisioning fabric", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router)
    add_docs(app)
    app.add_middleware(Gate, services=services)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(TreeError, _on_tree)
    app.add_exception_handler(TimeoutError, _on_timeout)
    app.add_exception_handler(BadRecord, _on_bad_record)
    app.add_exception_handler(Exception, _on_bug)
    return app


async def _on_validation(request: Request, error: Exception) -> Response:
    errors = cast(RequestValidationError, error).errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        context = first.get("ctx") or {}
        where = f"{context.get('error', 'an error')} at character {first['loc'][-1]}"
        return respond(request, ProblemError(NOT_JSON, f"body: expected JSON, found: {where}"))
    if first["loc"] == ("body",):
        if first["type"] == "missing":
            return respond(request, ProblemError(NOT_JSON, "body: expected JSON, found nothing"))
        media = request.headers.get("content-type", "no Content-Type")
        if "json" not in media:
            return respond(
                request, ProblemError(MEDIA, f"Content-Type: expected application/json, found {media[:80]}")
            )
    return respond(request, from_validation(errors))


async def _on_http(request: Request, error: Exception) -> Response:
    if isinstance(error, ProblemError):
        return respond(request, error)
    assert isinstance(error, HTTPException)
    detail = error.detail
    headers = error.headers
    match error.status_code:
        case 404:
            detail = f"There is nothing at {request.url.path[:200]}; GET /docs shows what there is."
        case 405:
            headers = {"Allow": ", ".join(_methods_at(request))}
            detail = f"{request.url.path[:200]}: expected {headers['Allow']}, found {request.method}"
        case 400:
            detail = "body: expected JSON in UTF-8, found something that can't be read as such"
    return respond(request, from_status(error.status_code, detail, headers))


def _methods_at(request: Request) -> list[str]:
    """All that may be done at this path, over all of its routes."""
    found: set[str] = set()
    for router in ROUTERS:
        for route in router.routes:
            if route.matches(request.scope)[0] is not Match.NONE:
                found |= getattr(route, "methods", None) or set()
    return sorted(found or {"GET"})


async def _on_tree(request: Request, error: Exception) -> Response:
    if isinstance(error, ConnectionLost | SessionExpired | Overloaded):
        return respond(request, _no_answer(str(error)))
    return await _on_bug(request, error)


async def _on_timeout(request: Request, error: Exception) -> Response:
    return respond(request, _no_answer("an answer did not come in time"))


async def _on_bad_record(request: Request, error: Exception) -> Response:
    _log.error("%s", error)
    return respond(request, ProblemError(BROKEN, str(error)))


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s", request.method, request.url.path, exc_info=error)
    return respond(request, ProblemError(BROKEN, "This is a fault of the API; its log says more."))


def _no_answer(what: str) -> ProblemError:
    return unavailable(
        f"ZooKeeper or the fabric gave no answer: {what}. A change may have been made; repeat it with the same "
        "Idempotency-Key, or look."
    )
