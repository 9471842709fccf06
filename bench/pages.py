"""Writing files, to know what that takes, and to have pages at hand.

Memory that a virtual machine touches for the first time, or for the first time since it was given back to the host,
costs some microseconds a page here, ten times what writing into it does; and it is given back two seconds after it was
freed. So whoever writes soon after something was removed is quicker than who comes, or still writes, a few seconds
later. What is compared therefore begins alike, and goes on alike: as many bytes of files have just been written, and
they are removed while the others are written, somewhat faster than these come.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from fabric.load.machine import cores

PIECE_BYTES = 1 << 20
FILE_BYTES = 64 << 20
AHEAD_BYTES = 512 << 20
"""So much is removed at once; the rest at `BYTES_S`."""
BYTES_S = 2 << 30


@contextmanager
def at_hand(folder: Path, size: int, bytes_s: int = BYTES_S) -> Iterator[float]:
    """Writes `size` random bytes to files in a new folder, one thread for each core; they are removed while the block
    runs. Answers with the seconds that the writing took."""
    content = memoryview(os.urandom(PIECE_BYTES))
    sizes = [FILE_BYTES] * (size // FILE_BYTES) + [size % FILE_BYTES] * bool(size % FILE_BYTES)

    def write(number: int) -> None:
        with open(folder / str(number), "xb", buffering=0) as file:
            left = sizes[number]
            while left:
                left -= file.write(content[:left])

    over = threading.Event()

    def remove() -> None:
        began = perf_counter()
        for number in range(len(sizes)):
            due = began + max(0, number * FILE_BYTES - AHEAD_BYTES) / bytes_s
            over.wait(max(0.0, due - perf_counter()))
            (folder / str(number)).unlink()

    folder.mkdir()
    try:
        with ThreadPoolExecutor(cores()) as pool:
            began = perf_counter()
            list(pool.map(write, range(len(sizes))))
            took_s = perf_counter() - began
        removing = threading.Thread(target=remove, name="pages")
        removing.start()
        try:
            yield took_s
        finally:
            over.set()
            removing.join()
    finally:
        shutil.rmtree(folder)
