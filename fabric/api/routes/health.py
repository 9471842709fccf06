"""/healthz, /readyz, /metrics: for those who watch over this process."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from fabric import __version__
from fabric.api.problems import UNAVAILABLE, documented, unavailable
from fabric.api.schemas import HealthView, ReadyView
from fabric.api.services import ServicesDep
from zk.tree import SessionState

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthView, summary="This process answers")
async def health() -> HealthView:
    return HealthView(status="ok", version=__version__)


@router.get(
    "/readyz",
    response_model=ReadyView,
    responses=documented(UNAVAILABLE),
    summary="ZooKeeper is connected and a rack has a leader",
)
async def ready(services: ServicesDep) -> ReadyView:
    control = services.control
    compute, storage = len(control.leaders("compute")), len(control.leaders("storage"))
    if control.state is not SessionState.CONNECTED or not compute:
        raise unavailable(f"ZooKeeper: {control.state.value}; leaders: {compute} compute, {storage} storage.")
    return ReadyView(
        ready=True,
        zookeeper=control.state.value,
        compute_leaders=compute,
        storage_leaders=storage,
        detail=f"{compute} compute racks and {storage} storage racks have leaders",
    )


@router.get("/metrics", response_class=Response, summary="For Prometheus")
async def metrics(services: ServicesDep) -> Response:
    storage = None
    if services.control.leaders("storage"):
        with suppress(TimeoutError):  # then what they would have said is missing
            storage = await services.inventory.statuses("storage")
    return Response(services.metrics.text(storage), media_type=CONTENT_TYPE_LATEST)
