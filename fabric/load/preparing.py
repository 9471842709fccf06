"""Before a run: what the fabric is, and an image to deploy. After it: that nothing is left, and the audit."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec

from fabric.load.asking import Asked, Asker, View, said
from fabric.load.history import Clock, History
from fabric.load.http import Connections, NoAnswer
from fabric.load.image import build
from fabric.load.plan import Plan
from fabric.load.results import Check
from fabric.resources import Resources

PAGE = 1000
MAX_PAGES = 1000
READY_WAIT_S = 30.0
PUSH_WAIT_S = 120.0
LEFT_WAIT_S = 20.0
PRIME_WAIT_S = 300.0
PRIME_AT_ONCE = 250
AUDIT_WAIT_S = 300.0
LOOK_EVERY_S = 0.25
SHOWN = 3
T = TypeVar("T")


class CannotRun(Exception):
    """The fabric is not one that this load could be run against: what was expected, what was found."""


class _Health(msgspec.Struct, frozen=True):
    version: str = "unknown"


class _Flavor(msgspec.Struct, frozen=True):
    name: str
    resources: Resources


class _Node(msgspec.Struct, frozen=True):
    node: str
    layer: str
    total: Resources


class _Instance(msgspec.Struct, frozen=True):
    id: str


class _Finding(msgspec.Struct, frozen=True):
    kind: str
    subject: str
    detail: str = ""


class _Audit(msgspec.Struct, frozen=True):
    clean: bool
    complete: bool
    findings: tuple[_Finding, ...] = ()


class Known(msgspec.Struct, frozen=True):
    """`need`: of one instance. `smallest`: the flavor that needs least. `nodes`: compute node -> what it has. `agents`:
    of both layers."""

    version: str
    need: Resources
    smallest: str
    nodes: dict[str, Resources]
    agents: int


async def prepared(api: Connections, plan: Plan, image: str) -> Known:
    """Raises CannotRun."""
    try:
        health = await _read(api, "/healthz", _Health)
        flavors = {one.name: one.resources async for one in _items(api, "/v1/flavors", _Flavor)}
        if plan.flavor not in flavors:
            raise CannotRun(f"--flavor: expected one of {', '.join(flavors)}, found {plan.flavor!r}")
        nodes = [one async for one in _items(api, "/v1/nodes", _Node)]
        compute = {one.node: one.total for one in nodes if one.layer == "compute"}
        room = sum(total.holds(flavors[plan.flavor]) for total in compute.values())
        if room < plan.count:
            raise CannotRun(
                f"--count: expected at most the {room} instances of {plan.flavor} that {len(compute)} compute nodes "
                f"hold, found {plan.count}"
            )
        if plan.image:
            await _read(api, f"/v1/images/{quote(image)}", msgspec.Raw)
        else:
            await _push(api, image, plan.image_bytes)
    except NoAnswer as error:
        raise CannotRun(str(error)) from None
    smallest = next(iter(flavors))
    return Known(health.version, flavors[plan.flavor], smallest, compute, len(nodes))


async def primed(api: Connections, known: Known, image: str, run: str, tell: Callable[[int], None]) -> None:
    """Have every compute node fetch the image once: one instance on each, and away with it. In portions, as users would
    come: what stands of those before makes the next go to other nodes. Nodes that take no part (cordoned, full) are
    left out. `tell`: how many have it. Cancelled, it deletes what it made. Raises CannotRun."""
    asker = Asker(api, History(), Clock(), f"prime-{run}")
    made: list[View] = []
    done = 0
    try:
        async with asyncio.timeout(PRIME_WAIT_S):
            while done < len(known.nodes):
                count = min(PRIME_AT_ONCE, len(known.nodes) - done)
                body: dict[str, object] = {
                    "image": image, "flavor": known.smallest, "count": count, "min_count": 1, "max_per_node": 1,
                }  # fmt: skip
                create = Asked(len(made), "create", "", count, body)
                attempt, view = await asker.ask(create)
                if view is None:
                    raise CannotRun(f"the image could not be given to the nodes: {attempt.status} {attempt.detail}")
                made.append(view)
                end, _ = await asker.follow(create, view)
                if end.state != "running":
                    raise CannotRun(f"the image could not be given to the nodes: {end.state}: {end.reason}")
                done += count
                tell(done)
    except TimeoutError:
        expected = f"expected {len(known.nodes)} nodes to have the image within {PRIME_WAIT_S:g} s"
        raise CannotRun(f"{expected}, found {done} that had it") from None
    finally:
        await _delete(asker, made)


async def _delete(asker: Asker, made: Sequence[View]) -> None:
    """As far as the API answers in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEFT_WAIT_S):
            for number, view in enumerate(made):
                delete = Asked(len(made) + number, "delete", view.id, 0, None)
                _, gone = await asker.ask(delete)
                if gone is not None:
                    await asker.follow(delete, gone)


async def _push(api: Connections, name: str, size: int) -> None:
    """Again while the fabric is not ready for it. Raises CannotRun, NoAnswer."""
    content = build(size, random.Random(name))
    deadline = time.monotonic() + READY_WAIT_S
    headers = {"content-type": "application/octet-stream"}
    while True:
        answer = await api.ask("PUT", f"/v1/images/{quote(name)}", content, headers, PUSH_WAIT_S)
        if answer.good:
            return
        if answer.status < 500 or time.monotonic() > deadline:
            raise CannotRun(f"the image {name} could not be pushed: {answer.status} {said(answer)[:300]}")
        await asyncio.sleep(LOOK_EVERY_S)


async def remove(api: Connections, image: str) -> None:
    """As far as the API answers."""
    with contextlib.suppress(NoAnswer):
        await api.ask("DELETE", f"/v1/images/{quote(image)}?force=true")


async def nothing_left(api: Connections, made: Collection[str]) -> Check:
    """Of the deployments of a run, when all of them are deleted."""
    name = "no instance is left when all is deleted"
    deadline = time.monotonic() + LEFT_WAIT_S
    while True:
        try:
            items = [one.id async for one in _items(api, "/v1/instances", _Instance)]
        except (NoAnswer, CannotRun) as error:
            return Check(name, False, f"not known: {error}")
        left = [one for one in items if one.rpartition(".")[0] in made]
        if not left:
            return Check(name, True, "0 left")
        if time.monotonic() > deadline:
            return Check(name, False, f"{len(left)} left after {LEFT_WAIT_S:g} s: {', '.join(left[:SHOWN])}")
        await asyncio.sleep(LOOK_EVERY_S)


async def audited(api: Connections) -> Check:
    name = "the audit finds nothing"
    try:
        found = await _read(api, "/v1/audit", _Audit, AUDIT_WAIT_S)
    except (NoAnswer, CannotRun) as error:
        return Check(name, False, f"no audit: {error}")
    if found.findings:
        told = ", ".join(f"{one.kind} {one.subject}" for one in found.findings[:SHOWN])
        return Check(name, False, f"{len(found.findings)} found: {told}")
    return Check(name, found.complete, "all fits together" if found.complete else "it is not of the whole fabric")


async def metrics(api: Connections) -> str:
    """ "" when they are not to be had."""
    try:
        answer = await api.ask("GET", "/metrics")
    except NoAnswer:
        return ""
    return answer.content.decode("utf-8", "replace") if answer.good else ""


async def _read(api: Connections, target: str, kind: type[T], answer_s: float = 60.0) -> T:
    """Raises NoAnswer, CannotRun."""
    answer = await api.ask("GET", target, answer_s=answer_s)
    if not answer.good:
        raise CannotRun(f"GET {target}: expected an answer, found {answer.status} {said(answer)[:300]}")
    return _decoded(target, answer.content, kind)


def _decoded(target: str, content: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Raises CannotRun."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CannotRun(f"GET {target}: expected an answer of a fabric's API, found {error}") from None


async def _items(api: Connections, target: str, kind: type[T]) -> AsyncIterator[T]:
    """Of all pages of a list. Raises NoAnswer, CannotRun."""
    after, pages = "", 0
    while pages < MAX_PAGES:
        page = await _read(api, f"{target}?limit={PAGE}{f'&after={quote(after)}' if after else ''}", _Page)
        for one in _decoded(target, page.items, list[kind]):  # type: ignore[valid-type]
            yield one
        if page.next is None:
            return
        after, pages = page.next, pages + 1


class _Page(msgspec.Struct, frozen=True):
    items: msgspec.Raw
    next: str | None = None
