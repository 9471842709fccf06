"""What is no message of the fabric, sent to the ports that its agents listen at: noise, and half of a greeting.

Where they listen is in ZooKeeper (the member records), which is where a stranger would have it from, too. It is sent
over plain TCP; whoever is hit has to drop it, count it, and go on.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from fabric.chaos import eye
from fabric.chaos.script import Act
from fabric.chaos.stage import Skipped, Stage, Undo
from fabric.chaos.watch import CannotLook
from fabric.net import namespaces

ASK_WAIT_S = 1.0
"""Other faults are due meanwhile."""
CONNECT_S = 1.0
NOISE_BYTES = 64 * 1024
GREETING = bytes.fromhex("ff00000000000000017f0301") + b"NULL" + bytes(48)
"""The beginning of ZMTP 3.1, by which it gets further in than mere noise."""


def strangers(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """To every port of each of them."""
    try:
        addresses = stage.watcher.ask(lambda client: eye.addresses(client, stage.watcher.racks), ASK_WAIT_S)
    except CannotLook as error:
        raise Skipped(str(error)) from None
    sent = 0
    for name in names:
        with _near(stage, name):
            for host, port in addresses.get(name, ()):
                for said in (stage.rng.randbytes(NOISE_BYTES), GREETING, GREETING + stage.rng.randbytes(NOISE_BYTES)):
                    sent += _say(host, port, said)
    if not sent:
        raise Skipped(f"{', '.join(names)}: no port could be reached")
    return None


@contextlib.contextmanager
def _near(stage: Stage, name: str) -> Iterator[None]:
    """Where the node's addresses are reached: in its own network, if it has one. Raises Skipped."""
    process = next(view.process for view in stage.control.status().nodes if view.node.name == name)
    if stage.state.spec.network != "namespaces" or process is None:
        yield
        return
    try:
        place = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Skipped(f"the network of {name} can't be entered: {error.strerror}") from None
    try:
        with namespaces.entered(place):
            yield
    finally:
        os.close(place)


def _say(host: str, port: int, said: bytes) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), CONNECT_S) as connection:
        with contextlib.suppress(OSError):  # it may hang up in the middle: that is its right
            connection.sendall(said)
        return True
    return False
