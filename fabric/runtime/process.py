"""The process: one event loop that hosts one agent (production) or many (load tests).

Theory of operation. Everything that a process has once is made here, after a possible fork: the ZeroMQ context, the
journal's writer thread, the log, the limit of file descriptors. SIGTERM and SIGINT make every agent leave; a second
one, or `STOP_WAIT_S`, cuts the leaving short. When all agents have ended, the process does, with the worst of their
exit codes; as long as one runs, the others' ends are lines in the log.

A *lifeline* is the reading end of a pipe whose writing end somebody holds open. When it closes, for whatever reason,
the process ends at once and kills nothing: what it started (supervisors) has the same lifeline.

File descriptors: libzmq aborts the process when it gets none, so the soft limit is raised to the hard one at start, too
little is refused, and a process that comes near its limit says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import threading
from collections.abc import Sequence

import uvloop

from fabric.logs import set_up_log
from fabric.runtime.bus import SocketContext, new_context
from fabric.runtime.host import AgentHost
from fabric.runtime.journal import Writer
from fabric.runtime.settings import EXIT_FAILED, AgentConfig

STOP_WAIT_S = 15.0
"""For leaving, closing the session (3 s), the store and its transfers; then what still runs is cut off."""
EXIT_WAIT_S = 30.0
"""From the signal to the end, whatever hangs."""
FILES_FOR_PROCESS = 128
FILES_PER_AGENT = 64
"""Two sockets, a session, journal, locks, and some peers; a rack leader needs one more for each agent of its rack."""
FILES_LOOK_S = 60.0
FILES_NEAR = 0.8
CONTEXT_WAIT_S = 2.0
EXIT_LIFELINE = 74

log = logging.getLogger("fabric.process")


def run_agent(config: AgentConfig) -> int:
    """One agent in the foreground, until it is told to stop or can't go on; returns the exit code."""
    return run_agents([config])


def run_agents(configs: Sequence[AgentConfig]) -> int:
    """Several in one process. The log level is that of the first."""
    set_up_log(configs[0].log_level)
    problem = raise_file_limit(len(configs))
    if problem:
        log.error("%s", problem)
        return EXIT_FAILED
    return uvloop.run(serve(configs))


async def serve(configs: Sequence[AgentConfig]) -> int:
    """Host these agents until all have ended; the worst of their exit codes. Takes SIGTERM and SIGINT over."""
    loop = asyncio.get_running_loop()
    context = new_context(max_sockets=256 + 16 * len(configs))
    writer = Writer()
    hosts = [AgentHost(config, context, writer) for config in configs]
    runs = [loop.create_task(host.run(), name=f"agent {host.config.node}") for host in hosts]
    stopping = _Stopping(hosts, runs)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.signalled, number)
    for fd in {config.lifeline_fd for config in configs} - {None}:
        assert fd is not None
        _hold(loop, fd)
    watch = loop.create_task(_watch_files(), name="file descriptors")
    try:
        codes = await asyncio.gather(*runs, return_exceptions=True)
    finally:
        watch.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        await asyncio.to_thread(writer.close)
        await _term(context)
    for host, code in zip(hosts, codes, strict=True):
        if isinstance(code, asyncio.CancelledError):
            log.error("agent of node %s did not leave in time", host.config.node)
        elif isinstance(code, BaseException):
            log.error("agent of node %s ended by a bug", host.config.node, exc_info=code)
    return max(code if isinstance(code, int) else EXIT_FAILED for code in codes)


class _Stopping:
    def __init__(self, hosts: Sequence[AgentHost], runs: Sequence[asyncio.Task[int]]) -> None:
        self._hosts = hosts
        self._runs = runs
        self._asked = False

    def signalled(self, number: signal.Signals) -> None:
        if self._asked:
            log.warning("%s again: ending without leaving", number.name)
            self._cut()
            return
        self._asked = True
        log.info("%s: leaving", number.name)
        for host in self._hosts:
            host.leave()
        asyncio.get_running_loop().call_later(STOP_WAIT_S, self._cut)
        last = threading.Timer(EXIT_WAIT_S, os._exit, (EXIT_FAILED,))
        last.daemon = True
        last.start()

    def _cut(self) -> None:
        for run in self._runs:
            run.cancel()


def _hold(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """End with the lifeline. Raises OSError for a descriptor that can't be one."""

    def readable() -> None:
        if not os.read(fd, 1024):  # nobody writes to it, so this is its end; it stays blocking, for others read it too
            os._exit(EXIT_LIFELINE)

    loop.add_reader(fd, readable)


async def _term(context: SocketContext) -> None:
    """Bounded: a fetch that did not end in time may still have a socket open."""
    thread = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, CONTEXT_WAIT_S)


def raise_file_limit(agents: int) -> str:
    """Raise the soft limit of file descriptors to the hard one. Returns what is wrong, or ""."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    need = FILES_FOR_PROCESS + FILES_PER_AGENT * agents
    if hard != resource.RLIM_INFINITY and hard < need:
        return (
            f"expected a limit of at least {need} file descriptors for {agents} agents in this process, found {hard}: "
            "raise it (ulimit -Hn, systemd: LimitNOFILE=), or host fewer agents in one process"
        )
    return ""


async def _watch_files() -> None:
    """Say so, once for each time, when the process comes near its limit of file descriptors."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    near = False
    while True:
        open_now = len(os.listdir("/proc/self/fd"))
        was, near = near, open_now > FILES_NEAR * limit
        if near and not was:
            log.warning("%d of %d file descriptors are in use: raise the limit (LimitNOFILE=)", open_now, limit)
        await asyncio.sleep(FILES_LOOK_S)
