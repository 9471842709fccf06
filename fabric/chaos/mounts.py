"""Small disks of its own for each node: a tmpfs over its folder, in a mount namespace that only this fabric sees.

Theory of operation. The run's process leaves the machine's mount namespace before it starts the keeper, so every
process of the fabric is in the new one, nobody else sees the mounts, and they are gone when the last process is. A node
gets its tmpfs while its agent is down and it runs no instance yet: what is in the folder is copied. Needs the right to
mount (root); without it the faults that need it are skipped, and say so.

A folder that is mounted on can't be removed, and the keeper removes the fabric's when it takes it down. So a process of
its own (`guarded`) takes the mounts away as soon as the run ends, also when that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 0x4000, 1 << 18
MNT_DETACH = 2
GUARD_WAIT_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


def leave() -> str:
    """Into a mount namespace of our own. By a process with one thread. "" when done, else why not."""
    if _libc.unshare(CLONE_NEWNS) != 0:
        return f"no right to a mount namespace of its own ({os.strerror(ctypes.get_errno())}): run it as root"
    try:
        _mount(None, Path("/"), None, MS_REC | MS_PRIVATE, None)
    except OSError as error:
        return f"mounts can't be made private here ({error.strerror})"
    return ""


def small(folder: Path, size_bytes: int) -> None:
    """A tmpfs of this size over `folder`, with a copy of what is in it. Raises OSError."""
    aside = folder.with_name(folder.name + ".aside")
    shutil.copytree(folder, aside, symlinks=True)
    try:
        _mount("tmpfs", folder, "tmpfs", 0, f"size={size_bytes},mode=700")
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_only(folder: Path, on: bool) -> None:
    """Raises OSError: busy when somebody has a file in there open for writing."""
    _mount("tmpfs", folder, "tmpfs", MS_REMOUNT | (MS_RDONLY if on else 0), None)


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """After the block, or the end of this process, nothing is mounted below `folder` any more."""
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)], stdin=subprocess.PIPE, start_new_session=True
    )
    assert guard.stdin
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait(GUARD_WAIT_S)


def below(folder: Path, mountinfo: str) -> list[str]:
    """The mount points below `folder`, the innermost first. `mountinfo`: as the kernel has it."""
    found = [line.split(" ")[4].replace("\\040", " ") for line in mountinfo.splitlines()]
    return sorted((one for one in found if one.startswith(f"{folder}/")), reverse=True)


def main() -> int:
    """Wait for the end of standard input, then take the mounts away."""
    folder = Path(os.path.realpath(sys.argv[1]))
    sys.stdin.read()
    for one in below(folder, Path("/proc/self/mountinfo").read_text()):
        _libc.umount2(os.fsencode(one), MNT_DETACH)
    return 0


def _mount(source: str | None, target: Path, kind: str | None, flags: int, data: str | None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return text.encode() if text is not None else None

    if _libc.mount(encoded(source), os.fsencode(target), encoded(kind), ctypes.c_ulong(flags), encoded(data)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


if __name__ == "__main__":
    sys.exit(main())
