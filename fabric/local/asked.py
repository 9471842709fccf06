"""What the control socket asks of the keeper (control.py), done."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from fabric.local import nursery
from fabric.local.control import ControlError, Request
from fabric.local.crew import Order
from fabric.local.network import NetworkError
from fabric.local.state import process
from zk.server import ServerFailed

if TYPE_CHECKING:
    from fabric.local.jobs import Job
    from fabric.local.keeper import Keeper
    from fabric.local.zookeepers import Member

KILL_AFTER_S = 5.0
OPS = ("status", "kill", "restart", "start", "stop", "network", "slow_disk")


def answer(keeper: Keeper, request: Request) -> object:
    """What "ok" is to be. Raises ControlError."""
    if request.op == "status":
        return keeper.state()
    if request.op == "stop":
        keeper.phase = "leaving"
        return None
    if request.op == "network":
        _network(keeper, request)
        return None
    if request.op not in OPS:
        raise ControlError(f"expected one of {', '.join(OPS)}, found {request.op[:20]!r}")
    if server := keeper.crew.zookeepers.named(request.who):
        return _to_zookeeper(keeper, server, request)
    job = next((job for job in keeper.jobs.values() if request.who in job.expected), None)
    if job is None:
        raise ControlError(f"expected {_known(keeper)}, found {request.who[:80]!r}")
    if request.op == "slow_disk":
        raise ControlError(f"expected a ZooKeeper server for slow_disk, found {job.name}")
    if request.op == "restart":
        return _restart(keeper, job)
    if request.op == "start":
        return _start(keeper, job, Order(request.argv, request.environment, request.cwd))
    if not job.running:
        raise ControlError(f"{request.who} has no process: {job.ended or 'it was not started yet'}")
    os.kill(job.pid, _signal(request))
    job.paused = request.signal == signal.SIGSTOP or (job.paused and request.signal != signal.SIGCONT)
    return job.pid


def _start(keeper: Keeper, job: Job, order: Order) -> int:
    """At once, since the asker wants the pid; how many start together is the asker's care."""
    if not keeper.crew.agents_wait or not job.nodes:
        raise ControlError(f"{job.name} is started by the keeper itself")
    if job.running:
        raise ControlError(f"{job.name} runs already, as pid {job.pid}")
    body = partial(keeper.crew.run_ordered, keeper.placed, order)
    try:
        with keeper.crew.network.inside(job.name):
            pid = nursery.fork(body, name=job.name, log=keeper.folder.log(job.name), keep=(keeper.lifeline,))
    except OSError as error:
        raise ControlError(f"{job.name} could not be started: {error}") from None
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.setpgid(pid, pid)  # before the asker knows it, who signals it and all that it started by group
    if not any(other.starting for other in keeper.jobs.values() if other.nodes):
        keeper.sight.soon()  # with the first of many: a look at all of them is not cheap
    job.forked(process(pid), time.monotonic())
    keeper.crew.network.forked(job.name, pid)
    keeper.dirty = True
    return pid


def _restart(keeper: Keeper, job: Job) -> int:
    if job.nodes and keeper.crew.agents_wait:
        raise ControlError(f"{job.name} is a managent: its boot stub starts it again (fabric managent restart)")
    now = time.monotonic()
    old = job.pid
    if job.running:
        job.again, job.kill_at = True, now + KILL_AFTER_S
        os.kill(old, signal.SIGTERM)
        os.kill(old, signal.SIGCONT)
    else:
        job.due = now
    keeper.sight.soon()
    return old


def _to_zookeeper(keeper: Keeper, server: Member, request: Request) -> int | None:
    if request.op == "restart":
        try:
            pid: int | None = server.restart()
        except (OSError, ServerFailed) as error:
            raise ControlError(f"{server.name} could not be started: {error}") from None
    elif request.op not in ("kill", "slow_disk"):
        raise ControlError(f"expected kill, restart or slow_disk for {server.name}, found {request.op}")
    elif not server.running:
        raise ControlError(f"{server.name} has no process: {server.ended}")
    elif request.op == "slow_disk":
        pid = None
        try:
            server.slow_disk(request.delay_ms)
        except OSError as error:
            raise ControlError(f"the disk of {server.name} can't be slowed down: {error}") from None
    else:
        pid = server.signal(_signal(request))
    keeper.sight.soon()
    keeper.dirty = True
    return pid


def _network(keeper: Keeper, request: Request) -> None:
    try:
        keeper.crew.network.replace(request.rules)
    except NetworkError as error:
        raise ControlError(str(error)) from None
    keeper.dirty = True


def _signal(request: Request) -> int:
    if request.signal not in signal.valid_signals():
        raise ControlError(f"expected a signal's number, found {request.signal}")
    return request.signal


def _known(keeper: Keeper) -> str:
    servers = [server.name for server in keeper.crew.zookeepers]
    return f"a node of this fabric, {', '.join(['api', *servers][:-1])} or {servers[-1]}" if servers else (
        "a node of this fabric or api (its ZooKeeper is not its own)"
    )
