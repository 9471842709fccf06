"""`fabric repository serve`: one repository in one process, until SIGTERM or SIGINT.

The port is bound before the directory is read, so that one in use is told at once, and so that port 0 works: the URLs
in replies begin with where it listens, or with `url` where others reach it by another name. A description that is
broken at the start is an error; later it is a line in the log, and the last good one stays.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from deploy.repository.folder import Folder
from deploy.repository.server import ADDRESS, Repository, refuse
from deploy.repository.serving import HttpServer, Limits

FILES_BESIDE = 1_200
"""File descriptors for all that is no connection; documents that are held open are most of them."""
_URL = re.compile(r"https?://[A-Za-z0-9._~\[\]:-]+(?:/[A-Za-z0-9._~-]+)*/?", re.ASCII)

log = logging.getLogger(__name__)


class CannotServe(Exception):
    """What was expected, what was found."""


def base_of(url: str) -> str:
    """With a slash at its end. Raises CannotServe."""
    if not _URL.fullmatch(url):
        raise CannotServe(f"expected a URL such as http://192.0.2.1:8430, found {url[:100]!r}")
    return url if url.endswith("/") else f"{url}/"


def bind(host: str, port: int) -> socket.socket:
    """Raises CannotServe."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise CannotServe(f"expected an address of this host to listen on, found {host!r} ({error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        hint = "; is another one running?" if error.errno == errno.EADDRINUSE else ""
        raise CannotServe(f"can't listen on {host}:{port}: {error.strerror}{hint}") from None
    return listener


def own_url(listener: socket.socket) -> str:
    """Where it listens. Raises CannotServe for a wildcard, which is no address that others can connect to."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        raise CannotServe(f"listens on {host}: expected also a URL at which others reach it (--url), found none")
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


async def start(root: Path, listener: socket.socket, url: str, limits: Limits | None = None) -> HttpServer:
    """Serves on `listener`. `url`: the base, with a slash at its end. Raises BadFolder."""
    folder = Folder(root, url)
    await asyncio.to_thread(folder.look)
    server = HttpServer(Repository(folder).handle, refuse, limits)
    await server.listen(listener)
    return server


async def run(root: Path, host: str, port: int, url: str, on_ready: Callable[[str], None]) -> None:
    """Until a signal. `on_ready` is told the repository's URL. Raises CannotServe, BadFolder."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listener = bind(host, port)
    try:
        base = base_of(url) if url else own_url(listener)
        limits = Limits(connections=min(Limits().connections, _raise_file_limit() - FILES_BESIDE))
        server = await start(root, listener, base, limits)
    except BaseException:
        listener.close()
        raise
    log.info("serving %s at %s%s", root, base, ADDRESS)
    on_ready(f"{base}{ADDRESS}")
    await stop.wait()
    log.info("told to stop, after %d requests", server.requests)
    await server.close()


def _raise_file_limit() -> int:
    """The limit of file descriptors, raised as far as it goes. Raises CannotServe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if limit < 2 * FILES_BESIDE:
        raise CannotServe(
            f"expected a limit of at least {2 * FILES_BESIDE} file descriptors, found {limit}: raise it (ulimit -Hn)"
        )
    return limit
