"""/v1/brake: whether lost nodes are replaced. /v1/audit: whether all fits together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from fabric.api.operator_schemas import AuditStep, AuditView, BrakeView, ReleaseView
from fabric.api.problems import CONFLICT, INVALID, UNAVAILABLE, ProblemError, documented
from fabric.api.services import Services, ServicesDep
from zk.tree import TreeError

router = APIRouter(prefix="/v1", tags=["operating"])
LINES = "application/x-ndjson"
_log = logging.getLogger("fabric.api")
_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report; with progress=true a line of JSON for each step, the report in the last one.",
        "content": {LINES: {"schema": {"type": "string"}}},
    }
}
Progress = Annotated[bool, Query(description="Tell each step, a line of JSON each.")]


@router.get(
    "/brake",
    response_model=BrakeView,
    responses=documented(UNAVAILABLE),
    summary="Whether so many nodes vanished at once that none is replaced",
)
async def brake(services: ServicesDep) -> BrakeView:
    return await services.fleet.brake(fresh=True)


@router.post(
    "/brake/release",
    response_model=ReleaseView,
    responses=documented(UNAVAILABLE),
    summary="Replace the nodes that are lost now, however many they are",
)
async def release(services: ServicesDep) -> ReleaseView:
    """What vanishes later is looked at anew."""
    return await services.fleet.release()


@router.get(
    "/audit",
    response_model=AuditView,
    responses={**documented(CONFLICT, INVALID, UNAVAILABLE), **_LINES},
    summary="Compare records, nodes, reservations and image holders over the whole fabric",
)
async def audit(services: ServicesDep, progress: Progress = False) -> Response:
    """What does not fit together in two looks some seconds apart. Changes nothing."""
    return await _audit(services, False, progress)


@router.post(
    "/audit",
    response_model=AuditView,
    responses={**documented(CONFLICT, INVALID, UNAVAILABLE), **_LINES},
    summary="The same, and repair what is found",
)
async def repair(services: ServicesDep, progress: Progress = False) -> Response:
    """Answers when what was found is repaired, or a bounded time later."""
    return await _audit(services, True, progress)


async def _audit(services: Services, repairing: bool, progress: bool) -> Response:
    if progress:
        services.auditing.require_idle()  # while there still is a status line to tell it by
        return StreamingResponse(_steps(services, repairing), media_type=LINES)
    report = await services.auditing.run(repairing, lambda stage, done, total: None)
    return Response(report.model_dump_json(), media_type="application/json")


async def _steps(services: Services, repairing: bool) -> AsyncIterator[str]:
    """A line of JSON for each step, the report in the last one. A step that was not fetched yet is replaced by the
    next: who reads slowly sees fewer."""
    news = asyncio.Event()
    latest = AuditStep(stage="beginning")

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal latest
        latest = AuditStep(stage=stage, done=done, total=total)
        news.set()

    task = asyncio.create_task(services.auditing.run(repairing, tell))
    task.add_done_callback(lambda _: news.set())
    try:
        while not task.done():
            try:
                async with asyncio.timeout(services.control.limits.stream_beat_s):
                    await news.wait()
            except TimeoutError:
                pass  # the same line again: it is still at it
            news.clear()
            if not task.done():
                yield f"{latest.model_dump_json()}\n"
        yield f"{_last(task).model_dump_json()}\n"
    finally:
        task.cancel()


def _last(task: asyncio.Task[AuditView]) -> AuditStep:
    """The status line is gone by now: what went wrong is told in the last line."""
    error = task.exception()
    if error is None:
        return AuditStep(stage="done", report=task.result())
    if not isinstance(error, ProblemError | TreeError | TimeoutError):
        _log.error("audit", exc_info=error)
    return AuditStep(stage="failed", problem=str(getattr(error, "detail", "")) or f"{type(error).__name__}: {error}")
