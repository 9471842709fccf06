"""From the name of a server to its addresses, without holding up the loop or its end.

Theory of operation. An address in numbers is its own answer. A name is looked up on a thread, as the C library offers
no other way, and on a daemon thread of its own: the loop's executor would hold up the end of the program until a name
server has answered. All who ask for a name while it is being looked up share that one thread's answer, so the threads
are as many as the names; nothing is kept after that.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

_Found = asyncio.Future[list["Address"]]
_looking: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], _Found]] = WeakKeyDictionary()


class Address(NamedTuple):
    """What a socket needs to connect."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]


async def addresses(host: str, port: int, wait_s: float) -> list[Address]:
    """All addresses of `host`, in no special order. Raises OSError: there are none, or nobody said so in `wait_s`."""
    with suppress(socket.gaierror):
        return _ask(host, port, socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    looking = _looking.setdefault(loop, {})
    found = looking.get((host, port))
    if found is None:
        found = loop.create_future()
        try:
            threading.Thread(target=_look_up, args=(host, port, loop, found), name="zk-name", daemon=True).start()
        except RuntimeError as error:  # of threads this process may have no more: as if nobody had answered
            raise OSError(f"the name {host} can't be looked up ({error})") from None
        looking[host, port] = found
        found.add_done_callback(lambda _: looking.pop((host, port)))
    try:
        return await asyncio.wait_for(asyncio.shield(found), wait_s)
    except TimeoutError:
        raise TimeoutError(f"the name {host} was not resolved within {wait_s:.1f} s") from None


def _look_up(host: str, port: int, loop: asyncio.AbstractEventLoop, found: _Found) -> None:
    answer: list[Address] | OSError
    try:
        answer = _ask(host, port)
    except OSError as error:
        answer = OSError(f"the name {host} can't be resolved ({error.strerror or error})")
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_tell, found, answer)


def _ask(host: str, port: int, flags: int = 0) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:
        raise OSError(f"{host} can't be the name of a machine ({error})") from None
    return list(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))  # type: ignore[arg-type]


def _tell(found: _Found, answer: list[Address] | OSError) -> None:
    if isinstance(answer, OSError):
        found.set_exception(answer)
        found.exception()  # who asked may have given up: then nobody will look at it
    else:
        found.set_result(answer)
