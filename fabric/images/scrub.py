"""The scrubber of a storage node: reads what the store holds again and again, slowly, so that what has rotted is found
before the last good copy has rotted too.

    open -> FIRST_AFTER_S -> a pass: every chunk once, at `mib_s` -> until `every_s` after its beginning -> a pass …

A thread of its own calls `ChunkStore.read_chunk`, which hashes, and forgets what fails its hash: the images that name
the chunk stop being held, the agent hears of it by `found` (which the thread calls), and the storage leaders have the
chunk replaced from another holder (`fabric.roles.repair`). As files are not read at opening, the first pass begins soon
after it: a disk that came back with old or torn bytes is found out then, if nobody reads them sooner.

The pace is kept by a wait after each chunk, so a pass takes (bytes / `mib_s`) at least, and a disk that others keep
busy is asked for no more than that. It begins anywhere, so that a node that is often started anew gets round in the
end. Chunks are read from the disk and not from the kernel's memory of them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from fabric.images.errors import ChunkCorrupt, NotHeld
from fabric.images.store import ChunkStore

FIRST_AFTER_S = 1.0
ERROR_PAUSE_S = 10.0
"""After an error that says nothing about the chunk, such as too many open files."""
MIB = 1 << 20
_STOP_WAIT_S = 5.0

log = logging.getLogger(__name__)


class Scrubber:
    """`found` is called on the scrubber's thread when a chunk was forgotten."""

    def __init__(
        self,
        store: ChunkStore,
        mib_s: float,
        every_s: float,
        found: Callable[[], None],
        first_after_s: float = FIRST_AFTER_S,
    ) -> None:
        self.passes = 0
        self._store = store
        self._mib_s = mib_s
        self._every_s = every_s
        self._found = found
        self._first_after_s = first_after_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="images-scrub", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Before the store is closed. Blocks for as long as a chunk takes to be read."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)

    def _run(self) -> None:
        wait_s = self._first_after_s
        while not self._stopping.wait(wait_s):
            began = time.monotonic()
            self._pass()
            wait_s = max(0.0, began + self._every_s - time.monotonic())

    def _pass(self) -> None:
        read, lost, size = 0, 0, 0
        chunks = self._store.chunks()
        first = random.randrange(len(chunks)) if chunks else 0
        for chunk in chunks[first:] + chunks[:first]:
            began = time.monotonic()
            try:
                data = self._store.read_chunk(chunk, from_disk=True)
            except NotHeld:
                continue  # dropped since the pass began
            except ChunkCorrupt as error:
                log.warning("scrubbing: %s", error)
                lost += 1
                self._found()
                continue
            except Exception:
                log.exception("scrubbing chunk %s", chunk.hex())
                if self._stopping.wait(ERROR_PAUSE_S):
                    return
                continue
            read, size = read + 1, size + len(data)
            due = began + len(data) / (self._mib_s * MIB)
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
        self.passes += 1
        log.log(logging.WARNING if lost else logging.DEBUG, "scrubbed %d chunks, %d MiB: %d were lost", read + lost,
                size // MIB, lost)  # fmt: skip
