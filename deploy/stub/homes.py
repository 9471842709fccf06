"""Where everything of a boot stub is on the disk.

    <folder>/                      locked while the boot stub lives
        journal/
        bmp.sock                   see deploy.stub.bmp_server
        managents/site+rack3+node7/    MANAGENT_DIR: the code, and all that it makes of it
        logs/site+rack3+node7.log      the program's output; beside it `.install` of its installation

A managent's path is one folder name, with "+" for "/", as a parent and its child may live in the same boot stub and are
removed one without the other. A name that would be too long for a file system is cut, with a fingerprint of the whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import blake3

from fabric.images.archive import remove_tree

MAX_NAME_CHARS = 200
REMOVE_TRIES = 5


def folder_name(path: str) -> str:
    """Different for different managents: neither "+" nor "~" is in a path."""
    name = path[1:].replace("/", "+")
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[:MAX_NAME_CHARS]}~{blake3.blake3(path.encode()).hexdigest(8)}"


class Homes:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.managents = folder / "managents"
        self._logs = folder / "logs"
        self._works = f"{self.managents}/"

    def make(self) -> None:
        """Raises OSError."""
        for folder in (self.managents, self._logs):
            folder.mkdir(mode=0o700, exist_ok=True)

    def work(self, path: str) -> Path:
        """The managent's own folder."""
        return Path(self.work_name(path))

    def work_name(self, path: str) -> str:
        """The same, as text: a Path costs more than opening what it names."""
        return self._works + folder_name(path)

    def is_there(self, path: str) -> bool:
        """Its folder, or what a managent put in its place."""
        return os.path.lexists(self.work_name(path))

    def log(self, path: str) -> Path:
        return self._logs / f"{folder_name(path)}.log"

    def install_log(self, path: str) -> Path:
        return self._logs / f"{folder_name(path)}.install"

    def strangers(self, known: Iterable[str]) -> list[str]:
        """Folder names here of managents that are not `known` (paths)."""
        names = {folder_name(path) for path in known}
        return sorted(name for name in os.listdir(self.managents) if name not in names)

    def remove(self, path: str) -> None:
        """All of the managent. Blocks. Raises OSError."""
        self.remove_folder(folder_name(path))
        for log in (self.log(path), self.install_log(path), old_of(self.log(path))):
            log.unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Raises OSError. A process that was killed may still be making a file: then once more."""
        folder = self.managents / name
        for tries_left in reversed(range(REMOVE_TRIES)):
            try:
                if folder.is_symlink():  # the managent put it there; where it leads to is nothing of ours
                    folder.unlink()
                remove_tree(folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or not tries_left:
                    raise


def old_of(log: Path) -> Path:
    """Where the older part of a log that grew too long is kept."""
    return log.with_suffix(".old")


def bound_log(log: Path, most_bytes: int) -> None:
    """Keep the last part of a log that is longer than `most_bytes` as its `old_of`, and begin anew: whoever writes to
    it appends, so goes on at the start. On a disk that takes no copy, it begins anew without one."""
    with contextlib.suppress(OSError):
        if os.stat(log).st_size <= most_bytes:
            return
        with contextlib.suppress(OSError), log.open("rb") as source, old_of(log).open("wb") as old:
            source.seek(-most_bytes // 2, os.SEEK_END)
            shutil.copyfileobj(source, old, 1 << 16)
        os.truncate(log, 0)


def tail_of(log: Path, lines: int, read_bytes: int = 16 * 1024) -> tuple[str, ...]:
    """The last lines of a log that are not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - read_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-lines:]
