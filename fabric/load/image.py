"""The images that a run's load deploys: a shell script that waits, and random bytes beside it.

An instance is one process that costs next to nothing. With STUBBORN in its environment it ignores TERM, so that it must
be killed to be stopped.
"""

from __future__ import annotations

import io
import random
import tarfile

ENTRYPOINT = b"""#!/bin/sh
[ -z "$STUBBORN" ] || trap '' TERM
exec sleep 1000000
"""


def build(size: int, rng: random.Random) -> bytes:
    """A tar archive of at least `size` bytes, different in every chunk."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, mode, content in (("entrypoint", 0o755, ENTRYPOINT), ("content.bin", 0o644, rng.randbytes(size))):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()
