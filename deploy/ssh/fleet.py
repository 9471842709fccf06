"""All hosts of a file: so many at once, each with a time limit, connections tried again, and exact sets in the end.

The outcomes partition the hosts: every host has exactly one, also after Ctrl-C (then "interrupted": begun or not, the
next run finds out). Only failures of the connection are tried again, with growing waits; what a host itself could not
do will not go better a second later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from deploy.ssh.bundle import Bundle
from deploy.ssh.command import SshSettings
from deploy.ssh.host.orders import Order, Said
from deploy.ssh.hosts import BadHosts, Host, check_name
from deploy.ssh.talk import NotReached, talk

Result = Literal["installed", "unchanged", "differs", "removed", "absent", "failed", "unreachable", "interrupted"]
RESULTS: tuple[Result, ...] = get_args(Result)
BAD: frozenset[Result] = frozenset(("failed", "unreachable", "interrupted"))
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 15.0

Registered = Callable[[str, int], Awaitable[str]]
"""Called with a stub's name and pid after it was found running; answers why the directory does not have it, "" when it
has."""
Unregistered = Callable[[str, str], Awaitable[str]]
"""Called with a stub's name and its host's, after it was uninstalled; takes it out of the directory, and answers what
was done, "" for nothing. Raises NotForgotten."""


class NotForgotten(Exception):
    """The directory may still have a boot stub that was uninstalled: why, what to do."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """`parallel`: hosts at once. `limit_s`: for one host, with all tries. `retries`: of a connection."""

    parallel: int = 32
    limit_s: float = 600.0
    retries: int = 2


@dataclass(frozen=True, slots=True)
class Step:
    """`done`: what was done, or in a check would be; "" when there was nothing to do."""

    name: str
    done: str
    ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """`tail`: the last lines of the program that failed. `name`, `pid`, `supervisor`: of the boot stub, where known.
    `node`: what the host calls itself."""

    host: Host
    result: Result
    reason: str = ""
    tail: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    took_s: float = 0.0
    tries: int = 0
    name: str = ""
    pid: int = 0
    supervisor: str = ""
    node: str = ""


class Fleet:
    """One order for all hosts. `opening` and `bundle`: see deploy.ssh.command and deploy.ssh.bundle. `now` is called
    with a host and the step that begins there; `ended` with each outcome."""

    def __init__(
        self,
        hosts: Sequence[Host],
        order: Order,
        opening: bytes,
        bundle: Bundle | None,
        settings: FleetSettings,
        ssh: SshSettings,
        registered: Registered | None = None,
        now: Callable[[Host, str], None] = lambda host, step: None,
        ended: Callable[[Outcome], None] = lambda outcome: None,
        unregistered: Unregistered | None = None,
    ) -> None:
        self._unregistered = unregistered
        self._hosts, self._order, self._opening, self._bundle = hosts, order, opening, bundle
        self._settings, self._ssh, self._registered, self._now, self._ended = settings, ssh, registered, now, ended
        self._outcomes: dict[Host, Outcome] = {}

    async def run(self) -> tuple[Outcome, ...]:
        """One for each host, in order. Cancelled, it ends all connections and returns."""
        waiting = iter(self._hosts)
        workers = [
            asyncio.create_task(self._work(waiting)) for _ in range(min(self._settings.parallel, len(self._hosts)))
        ]
        try:
            await asyncio.gather(*workers)
        except asyncio.CancelledError:
            pass
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        interrupted = "was not done when the command was interrupted"
        return tuple(self._outcomes.get(host) or Outcome(host, "interrupted", interrupted) for host in self._hosts)

    async def _work(self, waiting: Iterator[Host]) -> None:
        for host in waiting:
            outcome = await _Visit(host, self._settings, self._now).make(self._once, self._confirm)
            outcome = await self._forgotten(outcome)
            self._outcomes[host] = outcome
            self._ended(outcome)

    async def _once(self, host: Host, heard: Callable[[Said], None]) -> Said:
        order = replace(
            self._order, name=host.name, domain=host.domain or self._order.domain, limit_s=self._settings.limit_s
        )
        return await talk(host, order, self._opening, self._bundle, self._ssh, heard)

    async def _forgotten(self, outcome: Outcome) -> Outcome:
        if self._unregistered is None or outcome.result != "removed":
            return outcome
        try:
            said = await self._unregistered(check_name(outcome.name), outcome.node)
        except (NotForgotten, BadHosts) as error:
            return replace(outcome, result="failed", reason=str(error))
        return replace(outcome, reason="; ".join(filter(None, (outcome.reason, said))))

    async def _confirm(self, end: Said) -> str:
        if self._registered is None or not end.pid:
            return ""
        try:
            return await self._registered(check_name(end.name), end.pid)
        except BadHosts as error:
            return str(error)


class _Visit:
    """One host, with its tries."""

    def __init__(self, host: Host, settings: FleetSettings, now: Callable[[Host, str], None]) -> None:
        self._host, self._settings, self._now = host, settings, now
        self._steps: list[Step] = []
        self._step = ""
        self._tries = 0
        self._node = ""
        self._began = time.monotonic()

    async def make(
        self,
        once: Callable[[Host, Callable[[Said], None]], Awaitable[Said]],
        confirm: Callable[[Said], Awaitable[str]],
    ) -> Outcome:
        try:
            async with asyncio.timeout(self._settings.limit_s):
                end = await self._end(once)
                if end.outcome not in ("failed", ""):
                    self._begin("directory" if end.pid else "")
                    if reason := await confirm(end):
                        end = replace(end, outcome="failed", text=reason)
        except NotReached as error:
            return self._outcome("unreachable", str(error))
        except TimeoutError:  # before OSError, of which it is one
            reason = f"expected it to be done within {self._settings.limit_s:g} s, and it was not"
            if self._step:
                return self._outcome("failed", f"{reason}, at: {self._step}")
            return self._outcome("unreachable", reason)
        except OSError as error:
            return self._outcome("unreachable", f"no ssh could be started here: {error.strerror or error}")
        return replace(
            self._outcome(end.outcome or "failed", end.text),
            tail=end.tail,
            name=end.name or self._host.name,
            pid=end.pid,
            supervisor=end.supervisor,
        )

    async def _end(self, once: Callable[[Host, Callable[[Said], None]], Awaitable[Said]]) -> Said:
        wait_s = RETRY_FIRST_S
        while True:
            self._tries += 1
            self._steps.clear()
            self._now(self._host, "connecting")
            try:
                return await once(self._host, self._heard)
            except NotReached as error:
                if not error.again or self._tries > self._settings.retries:
                    raise
            self._now(self._host, "waiting to connect again")
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # so that a jump host is not hit by all at once
            wait_s = min(2 * wait_s, RETRY_MAX_S)

    def _heard(self, said: Said) -> None:
        if said.kind == "hello":
            self._node = said.text.partition(",")[0]
        elif said.kind == "step":
            self._steps.append(Step(said.step, said.text, said.ms))
        elif said.kind == "begin":
            self._begin(said.step)

    def _begin(self, step: str) -> None:
        self._step = step
        if step:
            self._now(self._host, step)

    def _outcome(self, result: Result, reason: str) -> Outcome:
        took_s = time.monotonic() - self._began
        return Outcome(
            self._host,
            result,
            reason,
            (),
            tuple(self._steps),
            took_s,
            self._tries,
            self._host.name,
            node=self._node,
        )
