"""One request after the other, from outside, as a user would see it: deploy, wait until it runs, look, delete."""

from __future__ import annotations

import io
import os
import random
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fabric.cli import views
from fabric.cli.client import Api
from fabric.load import image as small
from fabric.load.preparing import PRIME_AT_ONCE
from fabric.roles.trace import Run, Trace

REQUEST_WAIT_S = 300
ENTRYPOINT = b"#!/bin/sh\nexec sleep 1000000\n"
SMALL_BYTES = 64 << 10


class Unwell(SystemExit):
    """What was measured is not what it should be, so there is no figure."""


@dataclass(frozen=True, slots=True)
class Once:
    """`wall_s`: from just before the POST until the answer that says it runs. `away_s`: the same of its delete."""

    wall_s: float
    away_s: float
    run: Run


def write_image(path: Path, size: int) -> None:
    """A tar with an entry point and random bytes: nothing to compress, nothing that two of them share."""
    with tarfile.open(path, "w") as tar:
        for name, content, mode in (("entrypoint", ENTRYPOINT, 0o755), ("data", os.urandom(size), 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))


def push(api: Api, name: str, path: Path) -> float:
    """Seconds."""
    began = time.perf_counter()
    with path.open("rb") as source:
        api.upload(name, iter(lambda: source.read(1 << 20), b""), path.stat().st_size, None)
    return time.perf_counter() - began


def push_small(api: Api, name: str) -> None:
    content = small.build(SMALL_BYTES, random.Random(name))
    api.upload(name, iter((content,)), len(content), None)


def until_rest(api: Api, one: views.Deployment) -> views.Deployment:
    """Raises Unwell."""
    deadline = time.monotonic() + REQUEST_WAIT_S
    while not one.final:
        if time.monotonic() > deadline:
            raise Unwell(f"expected {one.id} at rest after {REQUEST_WAIT_S} s, found it {one.state}")
        query: dict[str, str | int] = {"wait": "10s", "index": one.index, "until": "rest"}
        one = api.get(f"/v1/deployments/{one.id}", query).read(views.Deployment)
    return one


@contextmanager
def deployed(api: Api, image: str, count: int, **more: object) -> Iterator[tuple[float, views.Deployment]]:
    """In the block they run: seconds from the POST on, and the record. `more`: of the request. Raises Unwell."""
    body = {"image": image, "flavor": "Large", "count": count, **more}
    began = time.perf_counter()
    ended = until_rest(api, api.deploy(body, None).read(views.Deployment))
    wall_s = time.perf_counter() - began
    if ended.state != "running" or ended.placed != count:
        raise Unwell(f"expected {count} running, found {ended.state}, {ended.placed} placed: {ended.reason}")
    try:
        yield wall_s, ended
    finally:
        until_rest(api, api.delete(f"/v1/deployments/{ended.id}").read(views.Deployment))


def once(api: Api, image: str, count: int, seen: bool = False, **more: object) -> Once:
    """`seen`: its processes are looked for, so it is a driver that starts some. Raises Unwell."""
    with deployed(api, image, count, **more) as (wall_s, ended):
        if seen:
            see_processes(api, ended)
        run = last_run(api, ended)
        began = time.perf_counter()
    return Once(wall_s, time.perf_counter() - began, run)


def see_processes(api: Api, one: views.Deployment) -> None:
    """From outside: there is one for each instance, on this machine. Raises Unwell."""
    page = api.get("/v1/instances", {"deployment": one.id, "limit": 1000}).read(views.Page[views.Instance])
    running = sum(each.state == "running" and os.path.exists(f"/proc/{each.pid}") for each in page.items)
    if running != one.count:
        raise Unwell(f"expected {one.count} processes of {one.id}, found {running}")


def last_run(api: Api, one: views.Deployment) -> Run:
    return api.get(f"/v1/deployments/{one.id}/trace").read(Trace).runs[-1]


def prime(api: Api, image: str, nodes: int) -> None:
    """Every compute node fetches the image, in portions: what stands makes the next go to other nodes. Raises
    Unwell."""
    with ExitStack() as standing:
        for done in range(0, nodes, PRIME_AT_ONCE):
            count = min(PRIME_AT_ONCE, nodes - done)
            standing.enter_context(deployed(api, image, count, flavor="Tiny", max_per_node=1))
