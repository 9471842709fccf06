"""Messages of this protocol over ZeroMQ sockets: some small frames, and perhaps a large one behind them.

Small frames are copied, the large one is not. What pyzmq offers for messages of several frames costs more than the
sending: a tracker for each frame, and arithmetic on its enums; here are plain integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from fabric.images.manifest import Buffer

_NOBLOCK, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_RCVMORE, _EVENTS, _POLLIN = int(zmq.RCVMORE), int(zmq.EVENTS), int(zmq.POLLIN)


def send(
    socket: zmq.Socket[bytes], small: Sequence[bytes], large: Buffer | None = None, *, track: bool = False
) -> zmq.MessageTracker | None:
    """Raises `zmq.ZMQError` if nothing was sent. `large` is not copied: leave it as it is. `track`: the tracker of when
    it was given to the kernel."""
    last = len(small) - 1 if large is None else len(small)
    for number, frame in enumerate(small):
        socket.send(frame, _MORE if number < last else _NOBLOCK)
    return None if large is None else socket.send(large, _NOBLOCK, copy=False, track=track)


def receive(socket: zmq.Socket[bytes], small: int) -> tuple[list[bytes], list[memoryview]] | None:
    """A message, if there is one: its first frames, `small` of them if it has so many, and those behind them."""
    if not int(socket.getsockopt(_EVENTS)) & _POLLIN:
        return None
    first = [socket.recv(_NOBLOCK)]
    rest: list[memoryview] = []
    while socket.getsockopt(_RCVMORE):  # a message arrives whole
        if len(first) < small:
            first.append(socket.recv(_NOBLOCK))
        else:
            rest.append(socket.recv(_NOBLOCK, copy=False).buffer)
    return first, rest
