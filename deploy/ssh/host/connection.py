"""The operator, as the host sees it: standard input and output of the connection.

The operator holds the input open. Its end, once there is nothing more to read, means that the operator is gone (Ctrl-C,
a time limit, a broken network): what runs here for it is ended, and so is this process.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from deploy.ssh.host.files import UNFINISHED, Refused
from deploy.ssh.host.orders import MARK, Order, Said

MAX_ORDER_BYTES = 64 << 10
BLOCK_BYTES = 256 << 10


class Gone(Exception):
    """The operator is."""


class Operator:
    """`end`: called when the operator is gone, before this process exits."""

    def __init__(self, source: BinaryIO, out: BinaryIO, end: Callable[[], None]) -> None:
        self._source, self._out, self._end = source, out, end
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def order(self) -> Order:
        """Raises Gone."""
        line = self._source.readline(MAX_ORDER_BYTES)
        if not line.endswith(b"\n"):
            raise Gone
        told = json.loads(line)
        return Order(**told | {name: tuple(told[name]) for name in ("roots", "more")})

    def say(self, said: Said) -> None:
        self._out.write(f"{MARK}{json.dumps(asdict(said))}\n".encode())
        self._out.flush()

    def receive(self, order: Order, folder: Path) -> Path:
        """Ask for the bundle, and have it as a verified file in `folder`. Raises Gone, Refused."""
        self.say(Said("need", step="bundle"))
        digest, left = hashlib.sha256(), order.bundle_bytes
        descriptor, name = tempfile.mkstemp(prefix="bundle.", suffix=UNFINISHED, dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            while left:
                data = self._source.read(min(left, BLOCK_BYTES))
                if not data:
                    raise Gone
                digest.update(data)
                file.write(data)
                left -= len(data)
        if digest.hexdigest() != order.bundle:
            raise Refused("bundle: expected what was announced, found another digest")
        return Path(name)

    def watch(self) -> None:
        """There is nothing more to read but the end."""
        if self._watcher.ident is None:
            self._watcher.start()

    def _watch(self) -> None:
        self._source.read(1)
        self._end()
        os._exit(1)
