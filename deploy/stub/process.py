"""The process: one event loop that hosts one boot stub (production) or many (load tests).

    code = run_stubs([StubConfig("r1c01", Path("/var/lib/stub"))], compose)

Theory of operation. What a process has once is in `Shared`; what boot stubs get from other parts of deployment (a
resolver, initiators, the directory) is made by `compose`, an asynchronous context manager, around their whole life.
SIGTERM and SIGINT end them all; a second one cuts that short. The process ends when all have, with the worst of their
exit codes.

Deploying ten thousand managents makes millions of objects, few of them in cycles. So the garbage collector looks less
often than it would by itself, and never at the modules.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from deploy.hosting import NewInitiator
from deploy.resolved import Resolver
from deploy.stub.host import StubHost
from deploy.stub.launcher import Launcher
from deploy.stub.settings import Register, StubConfig
from deploy.stub.shared import Shared
from fabric.runtime.settings import EXIT_FAILED

FILES_FOR_PROCESS = 256
FILES_PER_STUB = 16
"""Its sockets, journal and lock, some peers; each program that runs takes one or two more."""

COLLECT_AFTER = (100_000, 20, 20)
"""Objects made, and collections of each younger generation, before the next one (Python's own: 700, 10, 10)."""

log = logging.getLogger("deploy.stub")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the boot stubs of a process get. `listening` is told of each one that takes commands."""

    resolver: Resolver
    new_initiator: NewInitiator | None = None
    register: Register | None = None
    launcher: Launcher | None = None
    listening: Callable[[StubHost], None] = lambda host: None


Compose = Callable[[Shared], AbstractAsyncContextManager[Parts]]


def run_stubs(configs: Sequence[StubConfig], compose: Compose) -> int:
    """In the foreground, until they are told to end or can't go on; returns the exit code."""
    problem = raise_file_limit(len(configs))
    if problem:
        log.error("%s", problem)
        return EXIT_FAILED
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    return asyncio.run(host_stubs(configs, compose))


async def host_stubs(configs: Sequence[StubConfig], compose: Compose) -> int:
    """Host these until all have ended; the worst of their exit codes. Takes SIGTERM and SIGINT over. Raises what
    `compose` raises."""
    loop = asyncio.get_running_loop()
    shared = Shared(configs[0].settings, len(configs))
    try:
        async with compose(shared) as parts:
            hosts = [
                StubHost(
                    config,
                    shared,
                    parts.resolver,
                    new_initiator=parts.new_initiator,
                    register=parts.register,
                    launcher=parts.launcher,
                )
                for config in configs
            ]
            runs = [loop.create_task(_run(host, parts)) for host in hosts]
            ending = _Ending(hosts, runs)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, ending.signalled, number)
            try:
                codes = await asyncio.gather(*runs, return_exceptions=True)
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
    finally:
        await shared.close()
    for host, code in zip(hosts, codes, strict=True):
        if isinstance(code, BaseException):
            log.error("boot stub %s did not end in time: %r", host.config.name, code)
    return max(code if isinstance(code, int) else EXIT_FAILED for code in codes)


async def _run(host: StubHost, parts: Parts) -> int:
    run = asyncio.ensure_future(host.run())
    try:
        await host.listening()
    except asyncio.CancelledError:
        if not run.done():
            run.cancel()
    else:
        parts.listening(host)
    return await run


class _Ending:
    def __init__(self, hosts: Sequence[StubHost], runs: Sequence[asyncio.Task[int]]) -> None:
        self._hosts, self._runs = hosts, runs
        self._asked = False

    def signalled(self, number: signal.Signals) -> None:
        if self._asked:
            log.warning("%s again: ending at once", number.name)
            for run in self._runs:
                run.cancel()
            return
        self._asked = True
        log.info("%s: ending", number.name)
        for host in self._hosts:
            host.leave()


def raise_file_limit(stubs: int) -> str:
    """Raise the soft limit of file descriptors to the hard one. Returns what is wrong, or ""."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    need = FILES_FOR_PROCESS + FILES_PER_STUB * stubs
    if hard != resource.RLIM_INFINITY and hard < need:
        return (
            f"expected a limit of at least {need} file descriptors for {stubs} boot stubs in this process, found "
            f"{hard}: raise it (ulimit -Hn, systemd: LimitNOFILE=), or host fewer in one process"
        )
    return ""
