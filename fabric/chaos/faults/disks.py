"""Faults on disks: rotten bytes in a chunk store, a journal that lost its end, a disk that is full, read-only, or slow
under a ZooKeeper server."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from fabric.chaos import mounts
from fabric.chaos.script import Act
from fabric.chaos.stage import Skipped, Stage, Undo
from fabric.local.control import ControlError

ROT_BYTES = 16
SLOW_S = 0.2
TORN_BYTES = 9
"""In the middle of the last frame, whatever its size."""
FILLER = "filler"
PIECE_BYTES = 1 << 20
JOURNAL = Path("journal") / "log"


def rot(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """A chunk of an image changes on the disk. The store finds it out when the chunk is read next: by who fetches it,
    or by the scrubber, which begins anew with each start of the agent. So in the end the agent is started again."""
    hit: list[str] = []
    for name in names:
        chunks = stage.folder.node(name) / "store" / "chunks"
        with contextlib.suppress(OSError):
            files = sorted(chunks.iterdir())
            path = stage.rng.choice(files) if files else None
            if path is not None and (size := path.stat().st_size) > ROT_BYTES:
                with path.open("r+b") as file:
                    file.seek(stage.rng.randrange(size - ROT_BYTES))
                    file.write(stage.rng.randbytes(ROT_BYTES))
                hit.append(name)
    if not hit:
        raise Skipped(f"{', '.join(names)}: there is no chunk that could rot")

    def undo() -> None:
        for name in hit:
            if name not in stage.held:
                stage.start_again(name)

    return undo


def tear(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """As after a power failure: the agent is dead, the last write is not whole."""
    for name in names:
        _down(stage, name)
        path = stage.folder.node(name) / JOURNAL
        with contextlib.suppress(OSError):
            cut = int(act.option("bytes", TORN_BYTES))
            os.truncate(path, max(0, path.stat().st_size - cut))
        stage.start_again(name)
    return None


def slow_disk(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """It is the keeper that does it: whose server is not of the fabric's own has none to slow down."""
    delay_ms = int(1000 * act.option("delay", SLOW_S))
    done: list[str] = []

    def undo() -> None:
        for name in done:
            with contextlib.suppress(ControlError):  # it has died meanwhile, and so has what slowed it down
                stage.control.slow_disk(name, 0)

    for name in names:
        try:
            stage.control.slow_disk(name, delay_ms)
        except ControlError as error:
            undo()
            raise Skipped(str(error)) from None
        done.append(name)
    return undo


def fill(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """Not a byte is free; undone by giving the room back. An agent whose journal finds no room leaves, as it must."""
    folders = {name: _mounted(stage, name) for name in names}
    for name, folder in folders.items():
        stage.hit(name)
        _fill(folder / FILLER)

    def undo() -> None:
        for name, folder in folders.items():
            (folder / FILLER).unlink(missing_ok=True)
            stage.start_dead(name)

    return undo


def read_only(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """The agent is started on a disk that can't be written. Not where instances run: they write their logs."""
    folders = {name: _mounted(stage, name) for name in names}
    hit: list[str] = []
    why = ""
    for name, folder in folders.items():
        _down(stage, name)
        try:
            mounts.read_only(folder, True)
            hit.append(name)
        except OSError as error:
            why = f"the disk of {name} can't be made read-only: {error.strerror}; do instances run there?"
            stage.start_again(name)
            continue
        with contextlib.suppress(Skipped):
            stage.control.restart(name)  # it ends again by itself; so it stays among those that are held
    if not hit:
        raise Skipped(why)

    def undo() -> None:
        for name in hit:
            with contextlib.suppress(OSError):
                mounts.read_only(folders[name], False)
            stage.start_again(name)

    return undo


def _down(stage: Stage, name: str) -> None:
    """Its agent is dead when this returns."""
    stage.send(name, signal.SIGKILL)
    stage.hit(name)
    stage.wait_dead(name)


def _mounted(stage: Stage, name: str) -> Path:
    if stage.disks:
        raise Skipped(stage.disks)
    folder = stage.folder.node(name)
    if not os.path.ismount(folder):
        raise Skipped(f"{name} has no disk of its own")
    return folder


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        piece = bytes(PIECE_BYTES)
        while piece:
            try:
                file.write(piece)
            except OSError:
                piece = piece[: len(piece) // 2]
