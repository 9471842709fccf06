"""The images that a run's load deploys: a shell script that waits, and random bytes beside it.

An instance is one process that costs next to nothing. With STUBBORN in its environment it ignores TERM, so that it must
be killed to be stopped.
"""

from __future__ import annotations

import io
import random
import tarfile

PIECE_BYTES = 1 << 20
"""Drawn at a time: `randbytes` can't make more than 256 MiB in one go."""
ENTRYPOINT = b"""#!/bin/sh
[ -z "$STUBBORN" ] || trap '' TERM
exec sleep 1000000
"""


def build(size: int, rng: random.Random) -> bytes:
    """A tar archive of at least `size` bytes, different in every chunk."""
    archive = io.BytesIO()
    content = b"".join(rng.randbytes(min(PIECE_BYTES, size - at)) for at in range(0, size, PIECE_BYTES))
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, mode, data in (("entrypoint", 0o755, ENTRYPOINT), ("content.bin", 0o644, content)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()
