"""The API process: from its configuration to its end.

The port is bound first, so that one in use is told at once; then ZooKeeper is waited for, with a message, for a bounded
time; then requests are served until SIGTERM or SIGINT. At the end followers are sent home, what is being answered gets
`stop_wait_s`, and the session is closed so that nothing of it lingers in ZooKeeper. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop

from fabric.api.app import create_app
from fabric.api.control import ControlPlane
from fabric.api.settings import ApiConfig
from fabric.logs import set_up_log
from fabric.runtime.bus import BindFailed
from fabric.runtime.process import EXIT_LIFELINE
from zk.connect import Unreachable
from zk.tree import TreeError

EXIT_OK = 0
EXIT_FAILED = 1
BACKLOG = 1024
KEEP_ALIVE_S = 30
_log = logging.getLogger("fabric.api")


class CannotStart(Exception):
    """What was expected, what was found, and what to do."""


class ApiServer:
    """One API on the running loop: `start`, then `wait`, or `stop` from anywhere on the loop."""

    def __init__(self, config: ApiConfig) -> None:
        self.config = config
        self.control = ControlPlane(config)
        self.url = ""
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Raises CannotStart. When it returns, requests are served at `url`."""
        listener = bind(self.config.host, self.config.port)
        try:
            await self.control.open(lambda text: _log.warning("%s", text))
        except (Unreachable, BindFailed, TreeError, ValueError) as error:
            listener.close()
            raise CannotStart(str(error)) from error
        except BaseException:
            listener.close()
            raise
        started = asyncio.Event()
        self._server = _Server(
            uvicorn.Config(
                create_app(self.control),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(self.config.limits.stop_wait_s)),
            ),
            started,
        )
        self._serving = asyncio.create_task(self._server.serve([listener]))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait((self._serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not started.is_set():
            listener.close()
            await self.control.close()
            trouble = self._serving.exception()
            if isinstance(trouble, OSError):  # somebody else has begun to listen since it was bound
                raise _cannot_listen(self.config.host, self.config.port, trouble) from trouble
            raise CannotStart(f"the HTTP server ended before it served: {trouble}")
        port = listener.getsockname()[1]
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        self.url = f"http://{host}:{port}"

    def stop(self) -> None:
        """Begin to end; the second call does not wait for requests."""
        self.control.watches.close()
        if self._server is not None:
            self._server.should_exit = True
            self._server.force_exit = self._stopping
        self._stopping = True

    async def wait(self) -> None:
        """Until it has ended; then everything is closed."""
        assert self._serving is not None, "not started"
        try:
            await self._serving
        finally:
            await self.control.close()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, that says when it serves."""

    def __init__(self, config: uvicorn.Config, begun: asyncio.Event) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_api(config: ApiConfig) -> int:
    """Serve until told to stop; returns the exit code. Errors are one line on standard error."""
    set_up_log(config.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # the rest we say ourselves
    try:
        return uvloop.run(_run(config))
    except CannotStart as error:
        print(f"fabric api: {error}", file=sys.stderr)
        return EXIT_FAILED


async def _run(config: ApiConfig) -> int:
    server = ApiServer(config)
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    serving = False

    def stop() -> None:
        if serving:
            server.stop()
        else:
            this.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if config.lifeline_fd is not None:
        _hold(loop, config.lifeline_fd)
    try:
        await server.start()
    except asyncio.CancelledError:
        _log.info("told to stop before it served")
        return EXIT_OK
    serving = True
    _log.info("serving at %s, with documentation at %s/docs", server.url, server.url)
    if config.ready_file is not None:
        _write_whole(config.ready_file, server.url + "\n")
    if config.on_ready is not None:
        config.on_ready(server.url)
    await server.wait()
    return EXIT_OK


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; it listens only when requests can be served. Raises CannotStart."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise CannotStart(f"listen: expected an address of this host, found {host!r} ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> CannotStart:
    if error.errno == errno.EADDRINUSE:
        return CannotStart(
            f"port {port} of {host} is in use: another process listens there ('ss -ltnp' names it); stop it or choose "
            "another port"
        )
    return CannotStart(f"can't listen at {host}, port {port}: {error.strerror}")


def _hold(loop: asyncio.AbstractEventLoop, lifeline_fd: int) -> None:
    """End at once with the lifeline, as agents do: whoever held it is gone, and ZooKeeper with it."""

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(lifeline_fd, 1024):
                os._exit(EXIT_LIFELINE)

    os.set_blocking(lifeline_fd, False)
    loop.add_reader(lifeline_fd, readable)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
