"""Following one deployment: the long-poll and the event stream, both from watches on its record.

The index of both is the record's mzxid, which ZooKeeper hands out and which only grows, so a client that comes back
with the last one it saw misses no state that lasted, whichever API process it comes back to. States that were there
only between two looks may be skipped: what is told is always the newest.

A long-poll that has just been preceded by a request of its own hears from the coordinator what became of it (`latest`),
and reads nothing while it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fabric.api import views
from fabric.api.control import ControlPlane
from fabric.api.problems import ProblemError
from fabric.api.store import Versioned
from fabric.api.watches import wait_signal
from fabric.records import BadRecord, Deployment
from zk import paths
from zk.tree import ConnectionLost, Overloaded, SessionExpired

RETRY_MS = 2000
"""What clients are told to wait before they come back after the stream has ended."""
_TROUBLE = (ConnectionLost, SessionExpired, Overloaded, TimeoutError)


async def next_change(
    control: ControlPlane, deployment_id: str, index: int, wait_s: float, rest: bool = False
) -> Versioned[Deployment]:
    """The record as soon as its index is another than `index`, or, with `rest`, as soon as it is at rest under such an
    index; after `wait_s`, as it is. 404 when there is none."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + wait_s
    with control.watches.following(paths.deployment(deployment_id)) as signal:
        while True:
            found = control.latest.known(clock.time(), deployment_id)
            until = min(deadline, control.latest.trusted_until(deployment_id))
            if found is None or found.stat.mzxid < index:
                found, until = await control.store.deployment(deployment_id, watch=True), deadline
            changed = found.stat.mzxid != index and (found.record.final or not rest)
            if changed or control.watches.closing or clock.time() >= deadline:
                return found
            await wait_signal(signal, until - clock.time())


async def stream(control: ControlPlane, deployment_id: str, last: int, follow: bool) -> AsyncIterator[str]:
    """Server-sent events: one with the record now, unless its index is `last`, then one a change. Ends when the
    deployment is at rest (`follow`: goes on), is gone, or the stream has lasted `stream_most_s`."""
    limits = control.limits
    clock = asyncio.get_running_loop()
    end = clock.time() + limits.stream_most_s
    yield f"retry: {RETRY_MS}\n\n"
    with control.watches.following(paths.deployment(deployment_id)) as signal:
        while not control.watches.closing and clock.time() < end:
            try:
                found = await control.store.deployment(deployment_id, watch=True)
            except ProblemError:
                yield "event: gone\ndata: {}\n\n"
                return
            except BadRecord as error:
                yield f": {error}\n\n"
                return
            except _TROUBLE:
                yield ": ZooKeeper does not answer; waiting\n\n"  # the signal comes when it is connected again
            else:
                if found.stat.mzxid != last:
                    last = found.stat.mzxid
                    yield f"id: {last}\nevent: deployment\ndata: {views.deployment(found).model_dump_json()}\n\n"
                if found.record.final and not follow:
                    return
            while not await wait_signal(signal, min(limits.stream_beat_s, end - clock.time())):
                if control.watches.closing or clock.time() >= end:
                    return
                yield ": still here\n\n"
