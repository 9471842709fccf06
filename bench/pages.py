"""Writing files, to know what that takes, and to have pages at hand.

Memory that a virtual machine touches for the first time, or for the first time since it was given back to the host,
costs some microseconds a page here, ten times what writing into it does. So whoever writes next after something else
was removed is quicker than who comes a few seconds later. What is compared therefore begins alike: as many bytes of
files have just been written, and removed.
"""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fabric.load.machine import cores

PIECE_BYTES = 1 << 20


def write_files(folder: Path, files: int, size: int) -> float:
    """New files of random bytes in a new folder, which are removed; one thread for each core writes its share of them.
    Answers with the seconds it took."""
    content = memoryview(os.urandom(PIECE_BYTES))

    def write(path: Path) -> None:
        with open(path, "xb", buffering=0) as file:
            left = size
            while left:
                left -= file.write(content[:left])

    folder.mkdir()
    try:
        with ThreadPoolExecutor(cores()) as pool:
            began = time.perf_counter()
            for one in [pool.submit(write, folder / str(number)) for number in range(files)]:
                one.result()
            return time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
