"""A tiny HTTP server that speaks the API's schemas: what the commands say to it, and what they make of its answers.

A route is (method, path without the query) -> a list of answers; each request takes the next, the last one stays. The
bodies are the API's own pydantic models, so an answer that the API could not give can't be given here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel

from fabric.api.operator_schemas import BrakeView, CrowdView, LostView
from fabric.api.schemas import DeploymentView, FieldError, Problem, ResourcesView, ShareView
from fabric.roles.trace import Run

THEN = "2026-01-02T03:04:05.678Z"
LARGE = ResourcesView(vcpus=4, memory_mib=8192, disk_mib=20480)


@dataclass(frozen=True, slots=True)
class Reply:
    body: BaseModel | bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    read_body: bool = True
    """False: answer without reading what is sent, and close, as a server that refuses an upload does."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class ApiServer:
    url: str
    routes: dict[tuple[str, str], list[Reply | None]] = field(default_factory=dict)
    """None as an answer: the connection is closed without one."""
    requests: list[Request] = field(default_factory=list)

    def on(self, method: str, path: str, *replies: Reply | BaseModel | None) -> None:
        self.routes[method, path] = [Reply(reply) if isinstance(reply, BaseModel) else reply for reply in replies]


@contextmanager
def serve() -> Iterator[ApiServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            replies = api.routes.get((self.command, parts.path))
            reply = replies.pop(0) if replies and len(replies) > 1 else replies[0] if replies else not_found(self.path)
            body = self._body() if reply is None or reply.read_body else b""
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            api.requests.append(Request(self.command, parts.path, query, dict(self.headers.items()), body))
            if reply is None:
                self.close_connection = True
                return
            content = reply.body if isinstance(reply.body, bytes) else reply.body.model_dump_json().encode()
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = not reply.read_body

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api = ApiServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def not_found(path: str) -> Reply:
    return problem(404, "not-found", f"There is no such thing at {path}.")


def problem(
    status: int, slug: str, detail: str, errors: list[FieldError] | None = None, reasons: list[str] | None = None
) -> Reply:
    return Reply(
        Problem(
            type=f"urn:fabric:problem:{slug}",
            title=slug,
            status=status,
            detail=detail,
            instance="/v1/x",
            errors=errors or [],
            reasons=reasons or [],
        ),
        status,
    )


def deployment(**changes: Any) -> DeploymentView:
    values: dict[str, Any] = {
        "id": "d-1r2k0q9x4ab",
        "name": "web",
        "image": "web",
        "digest": "b3:" + "0" * 64,
        "flavor": "Large",
        "resources": LARGE,
        "count": 50,
        "min_count": 50,
        "policy": "spread",
        "max_per_node": 0,
        "max_per_rack": 0,
        "restart": "always",
        "labels": {},
        "environment": {},
        "state": "accepted",
        "final": False,
        "gone": False,
        "lost_after_s": 10,
        "stop_after_s": 0,
        "exclusive": False,
        "placed": 0,
        "lacking": 0,
        "plan": [],
        "leaving": [],
        "reason": "",
        "reasons": [],
        "generation": 1,
        "settled": 0,
        "epoch": 0,
        "created": "2026-01-02T03:04:05.678Z",
        "updated": "2026-01-02T03:04:05.678Z",
        "index": 7,
    }
    return DeploymentView(**{**values, **changes})


def run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "generation": 1,
        "coordinator": "r2c01",
        "rack": "r2",
        "epoch": 57,
        "at_ms": 1767323045678,
        "took_ms": 1234,
        "considered": 3,
        "load": 0,
        "outcome": "running",
        "reasons": (),
        "spans": (),
        "racks": (),
        "searches": (),
        "searches_omitted": 0,
        "rounds": (),
        "nodes": (),
        "nodes_omitted": 0,
        "messages": 184,
        "zookeeper_writes": 4,
        "zookeeper_reads": 12,
    }
    return Run(**{**values, **changes})


def brake(*lost: str, on: bool = False) -> BrakeView:
    """Of the nodes that are lost, all or none are counted."""
    return BrakeView(
        on=on,
        since=THEN if on else None,
        detail=f"the brake is {'on: so many vanished' if on else 'off'}",
        racks=[],
        fabric=CrowdView(rack="", lost=len(lost), of=40),
        nodes=list(lost) if on else [],
        lost=[LostView(node=node, rack="r1", since=THEN, accepted=None, by="") for node in lost],
        rack_share=0.5,
        fabric_share=0.2,
        least=3,
        window_s=60.0,
    )


RUNNING = deployment(
    state="running",
    final=True,
    placed=50,
    settled=1,
    plan=[
        ShareView(node="r1c01", rack="r1", ordinals="0-24", count=25),
        ShareView(node="r2c01", rack="r2", ordinals="25-49", count=25),
    ],
)
FAILED = deployment(
    state="failed",
    final=True,
    settled=1,
    reason="50 asked, 30 fit",
    reasons=["rack r1: 10 of Large fit, vcpus run out first", "rack r2: 20 of Large fit, vcpus run out first"],
)
