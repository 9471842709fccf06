"""One request: attempts until it is answered, then a long poll until its deployment is at rest.

An attempt that got 503 or no answer says nothing about the request: it is made again after what Retry-After says, or
RETRY_S, always with the same idempotency key. Everything is noted in the history. What follows an accepted request is a
long poll for the end of it, so that nobody asks again and again, and the end is known when the API knows it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from fabric.load.history import NO_ANSWER, Attempt, Clock, End, History, Kind
from fabric.load.http import Answer, Connections, NoAnswer

RETRY_S = 0.5
RETRY_MOST_S = 2.0
POLL_S = 10.0
POLL_MARGIN_S = 10.0
"""The API answers a long poll at its end; so much later it is given up."""
MAX_DETAIL = 200
GOOD = {"create": "running", "scale": "running", "delete": "deleted"}
"""How a request ends that did what it was for."""
GONE = "gone"
"""The record vanished, and this request was no delete."""


class PlanShare(msgspec.Struct, frozen=True):
    node: str
    count: int


class View(msgspec.Struct, frozen=True):
    """Of the API's answer."""

    id: str
    state: str
    final: bool
    generation: int
    settled: int
    placed: int
    index: int
    reason: str = ""
    plan: tuple[PlanShare, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: `number` is its own in the run. `due_s`: when it should be sent; None: now. `body`: None of a
    delete."""

    number: int
    kind: Kind
    deployment: str
    count: int
    body: dict[str, object] | None
    due_s: float | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """`run`: a text that no other run has, for idempotency keys."""

    connections: Connections
    history: History
    clock: Clock
    run: str
    _read: ClassVar[msgspec.json.Decoder[View]] = msgspec.json.Decoder(View)

    async def ask(self, asked: Asked) -> tuple[Attempt, View | None]:
        """The last attempt, which was answered; and the deployment when it was accepted."""
        due_s = asked.due_s
        while True:
            sent_s = self.clock.now()
            answer, detail = await self._send(asked)
            view = self.view(answer)
            attempt = Attempt(
                asked.number,
                asked.kind,
                asked.deployment or (view.id if view else ""),
                asked.count,
                sent_s,
                self.clock.now(),
                answer.status if answer is not None else NO_ANSWER,
                answer is not None and "retry-after" in answer.headers,
                view.generation if view else 0,
                detail,
                due_s,
            )
            self.history.note(attempt)
            if not attempt.again:
                return attempt, view if attempt.accepted else None
            await asyncio.sleep(pause_s(answer))

    async def follow(self, asked: Asked, view: View) -> tuple[End, View]:
        """Until its deployment is at rest at the generation that was answered with, or a later one; and the last that
        was seen of it."""
        generation = view.generation
        while not (view.final and view.settled >= generation):
            target = f"/v1/deployments/{view.id}?wait={POLL_S:g}s&index={view.index}&until=rest"
            try:
                answer = await self.connections.ask("GET", target, answer_s=POLL_S + POLL_MARGIN_S)
            except NoAnswer:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.status == 404:  # deleted, and its record forgotten
                return self._end(asked, "deleted" if asked.kind == "delete" else GONE, view), view
            fresh = self.view(answer)
            if fresh is None:
                await asyncio.sleep(pause_s(answer))
            else:
                view = fresh
        return self._end(asked, view.state, view), view

    def view(self, answer: Answer | None) -> View | None:
        if answer is None or not answer.good:
            return None
        try:
            return self._read.decode(answer.content)
        except msgspec.DecodeError:
            return None

    async def _send(self, asked: Asked) -> tuple[Answer | None, str]:
        """The answer, or None; and what to say about it when it is no success."""
        where = f"/v1/deployments/{asked.deployment}"
        try:
            if asked.kind == "create":
                key = {"idempotency-key": f"{self.run}-{asked.number}"}
                answer = await self.connections.ask("POST", "/v1/deployments", asked.body, key)
            elif asked.kind == "scale":
                answer = await self.connections.ask("PATCH", where, asked.body)
            else:
                answer = await self.connections.ask("DELETE", where)
        except NoAnswer as error:
            return None, str(error)[:MAX_DETAIL]
        return answer, "" if answer.good else said(answer)[:MAX_DETAIL]

    def _end(self, asked: Asked, state: str, view: View) -> End:
        end = End(asked.number, asked.kind, view.id, self.clock.now(), state, view.placed, view.reason[:MAX_DETAIL])
        self.history.note(end)
        return end


class _Problem(msgspec.Struct, frozen=True):
    title: str = ""
    detail: str = ""


def said(answer: Answer) -> str:
    """What an answer that is no success says, in one line: the words of its problem details, or what else it is."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    kind = answer.headers.get("content-type", "unknown type")
    return " ".join((problem.detail or problem.title or f"and {kind}, no problem details").split())


def pause_s(answer: Answer | None) -> float:
    said = answer.headers.get("retry-after", "") if answer is not None else ""
    return min(float(said), RETRY_MOST_S) if said.isdecimal() else RETRY_S
