"""The journal: what an agent must not forget, as an append-only key/value log.

Theory of operation. A journal is one file, `log`, in a directory of its own: a row of frames (frames.py), each with
keys to put and keys to forget. A frame is written and fsynced before the next one is begun, and only then the caller
hears that it is durable. So after a crash at most the *last* frame can be incomplete, and nobody was told of it: `load`
cuts it off and says so in `cut_bytes`. A frame that is wrong while a later one is whole is something else: a damaged
disk, or a foreign hand. That is `JournalCorrupt`, and a matter for a person, because going on would forget what the
agent had promised.

Group commit: all journals of a process share one `Writer`, a thread that takes everything that waits, writes it as one
frame a journal, fsyncs, and calls the `done` callbacks on the loop. While the disk works, the next group gathers. The
thread is woken when the loop has done what it has to do now, not for each append: it and the loop would only take
Python's lock from each other.

A write that failed (disk full, input/output error) is final: what is on the disk is not known any more, so each later
append of that journal fails as well, and the agent has to leave.

When the log has grown to more than 4 times what lives in it, and 1 MiB, it is *compacted*: the live keys are written to
`log.new`, fsynced, and renamed over `log`. A crash on the way leaves one of the two whole, and a compaction that fails
for want of room leaves the old log in use.

The directory is locked (flock) while the journal is open, so that two agents never share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.runtime.frames import HEADER_BYTES, Put, cost, decode_payload, frame_of, next_frame, payload_at

MAX_KEY_CHARS = 256
MAX_VALUE_BYTES = 1024 * 1024
MAX_FRAME_BYTES = 8 * 1024 * 1024
"""One group is cut into frames of about this size; one append is never cut, so a frame may be larger by one append."""
MAX_APPEND_BYTES = 8 * 1024 * 1024
MAX_WAITING = 10_000
"""Appends waiting for the disk, in one process."""
REPORT_S = 0.002
"""Journals written within so long are told to the loop together."""
COMPACT_FACTOR = 4
COMPACT_MIN_BYTES = 1024 * 1024

LOG = "log"
NEW_LOG = "log.new"


class JournalError(Exception):
    """The journal can't keep its promise: where, why, and what to do."""


class JournalInUse(JournalError):
    """Another agent has this directory open."""


class JournalCorrupt(JournalError):
    """A frame in the middle of the log is damaged."""


Done = Callable[[JournalError | None], None]
_Written = tuple[Done, JournalError | None]


@dataclass(frozen=True, slots=True)
class _Append:
    journal: Journal
    puts: tuple[Put, ...]
    deletes: tuple[str, ...]
    size: int
    done: Done


@dataclass(frozen=True, slots=True)
class _Close:
    journal: Journal


class Writer:
    """The thread that writes for all journals of a process. Made on the loop's thread; the thread itself starts with
    the first append. `done` callbacks run on that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._waiting: list[_Append | _Close] = []
        self._waking = False
        self._thread: threading.Thread | None = None
        self._closing = False
        self.groups = 0
        """Frames written and fsynced so far."""
        self.appends = 0
        """Appends that they held."""

    def submit(self, work: _Append | _Close) -> None:
        """On the loop."""
        with self._wake:
            if self._closing:
                raise RuntimeError("the journal writer is closed")
            self._waiting.append(work)
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake_up)

    def _wake_up(self) -> None:
        self._waking = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        with self._wake:
            self._wake.notify()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, then end the thread; their callbacks are still called if the loop goes on. Blocks, at most
        `timeout_s`. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        else:
            self._run()  # it was not woken yet

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                work, self._waiting = self._waiting, []
            if not work:
                return
            told = time.monotonic()
            written: list[_Written] = []
            for group in _groups(work):
                written += self._write(group)
                if time.monotonic() - told > REPORT_S:
                    self._tell(written)
                    written, told = [], time.monotonic()
            self._tell(written)

    def _tell(self, written: list[_Written]) -> None:
        if written:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for these any more
                self._loop.call_soon_threadsafe(self._report, written)

    def _report(self, written: list[_Written]) -> None:
        for done, error in written:
            try:
                done(error)
            except Exception as fault:  # of one journal's owner; the others are to hear all the same
                self._loop.call_exception_handler({"message": "a journal's callback failed", "exception": fault})

    def _write(self, group: Sequence[_Append | _Close]) -> list[_Written]:
        journal = group[0].journal
        appends = [item for item in group if isinstance(item, _Append)]
        error = journal.write(appends) if appends else None
        if len(appends) < len(group):
            journal.release()
        if appends:
            self.groups += 1
            self.appends += len(appends)
        return [(append.done, error) for append in appends]


def _groups(work: Sequence[_Append | _Close]) -> Iterable[list[_Append | _Close]]:
    """What waits, by journal, in order, cut where a frame would become too large."""
    by_journal: dict[int, list[_Append | _Close]] = {}
    for item in work:
        by_journal.setdefault(id(item.journal), []).append(item)
    for items in by_journal.values():
        group: list[_Append | _Close] = []
        size = 0
        for item in items:
            size_of_item = item.size if isinstance(item, _Append) else 0
            if group and size + size_of_item > MAX_FRAME_BYTES:
                yield group
                group, size = [], 0
            group.append(item)
            size += size_of_item
        yield group


class Journal:
    """Open with `load`, once; then `append`. Both on the loop's thread. `directory` is made if it is missing.

    Raises JournalInUse when another process (or another Journal of this one) has it open, JournalError when it can't be
    made or read.
    """

    def __init__(self, directory: Path, writer: Writer) -> None:
        self.directory = directory
        self.path = directory / LOG
        self.cut_bytes = 0
        """Bytes of an incomplete last frame that `load` cut off."""
        self.compactions = 0
        self._writer = writer
        self._live: dict[str, bytes] = {}
        self._live_bytes = 0
        self._end = 0
        self._sequence = 0
        self._compact_at = COMPACT_MIN_BYTES
        self._fd = -1
        self._failed: JournalError | None = None
        self._closed = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise JournalError(f"journal {directory}: expected a directory to write to, found: {error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            if not isinstance(error, BlockingIOError):
                raise JournalError(f"journal {directory}: can't be locked: {error}") from None
            raise JournalInUse(
                f"journal {directory}: another agent has it open; stop that agent, or give this one another state "
                "directory"
            ) from None

    def load(self) -> dict[str, bytes]:
        """What the journal holds. Raises JournalCorrupt, JournalError."""
        if self._fd >= 0:
            raise RuntimeError(f"journal {self.directory} is loaded already")
        try:
            (self.directory / NEW_LOG).unlink(missing_ok=True)  # of a compaction that did not come to its end
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            with open(self._fd, "rb", closefd=False) as file:
                data = file.read()
            self._replay(data)
            if self._end < len(data):
                self.cut_bytes = len(data) - self._end
                os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
            os.fsync(self._lock)
        except OSError as error:
            raise JournalError(f"journal {self.path}: can't be read and repaired: {error}") from None
        return dict(self._live)

    def append(self, puts: Sequence[Put], deletes: Sequence[str], done: Done) -> None:
        """Put and forget in one step, all or nothing. `done(None)` is called on the loop when it is on the disk,
        `done(error)` when it is not known to be; never from inside `append`, and in order. Raises ValueError for a key
        or value out of bounds."""
        size = 0
        for key, value in puts:
            if len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_BYTES:
                raise ValueError(
                    f"journal entry {key[:80]!r}: expected a key of at most {MAX_KEY_CHARS} characters and a value of "
                    f"at most {MAX_VALUE_BYTES} bytes, found {len(key)} and {len(value)}"
                )
            size += cost(key, value)
        size += sum(map(len, deletes))
        if size > MAX_APPEND_BYTES:
            raise ValueError(f"journal append: expected at most {MAX_APPEND_BYTES} bytes in one step, found {size}")
        if self._fd < 0 or self._closed:
            raise RuntimeError(f"journal {self.directory} is not open")
        if self._writer.waiting >= MAX_WAITING:
            error = JournalError(f"journal {self.path}: {MAX_WAITING} writes wait for the disk: it does not keep up")
            asyncio.get_running_loop().call_soon(done, error)
            return
        self._writer.submit(_Append(self, tuple(puts), tuple(deletes), size, done))

    def close(self) -> None:
        """Unlock, after what was appended is written. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._fd < 0:
            os.close(self._lock)
        else:
            self._writer.submit(_Close(self))

    # --- on the writer's thread --------------------------------------------------------------------------------------

    def write(self, appends: Sequence[_Append]) -> JournalError | None:
        """Make these durable, as one frame; None, or why it can't be known that they are. The writer calls this."""
        if self._failed is not None:
            return self._failed
        puts: dict[str, bytes | None] = {}  # the last word on each key; None: forgotten
        for append in appends:
            puts.update(append.puts)
            puts.update(dict.fromkeys(append.deletes))
        try:
            frame = frame_of(
                self._sequence + 1,
                [(key, value) for key, value in puts.items() if value is not None],
                [key for key, value in puts.items() if value is None],
            )
            _write_all(self._fd, frame, self._end)
            os.fdatasync(self._fd)
        except (OSError, ValueError, MemoryError) as error:  # each ends this journal, not the thread of all
            self._failed = JournalError(f"journal {self.path}: a write failed, nothing more is kept: {error}")
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            return self._failed
        self._sequence += 1
        self._end += len(frame)
        for key, value in puts.items():
            self._apply(key, value)
        if self._end > max(self._compact_at, COMPACT_FACTOR * self._live_bytes):
            self._compact()
        return None

    def release(self) -> None:
        """Give the file and the lock back. The writer calls this."""
        os.close(self._fd)
        os.close(self._lock)

    def _apply(self, key: str, value: bytes | None) -> None:
        old = self._live.pop(key, None)
        if old is not None:
            self._live_bytes -= cost(key, old)
        if value is not None:
            self._live[key] = value
            self._live_bytes += cost(key, value)

    def _compact(self) -> None:
        new = self.directory / NEW_LOG
        fd = -1
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            end = sequence = 0
            for puts in _portions(self._live):
                sequence += 1
                frame = frame_of(sequence, puts, [])
                _write_all(fd, frame, end)
                end += len(frame)
            os.fsync(fd)
            os.rename(new, self.path)
        except OSError:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            self._compact_at = 2 * self._end  # no room for it now: try again later
            return
        os.close(self._fd)
        self._fd, self._end, self._sequence = fd, end, sequence
        self._compact_at = COMPACT_MIN_BYTES
        self.compactions += 1
        try:
            os.fsync(self._lock)
        except OSError as error:
            self._failed = JournalError(f"journal {self.path}: its directory can't be written: {error}")

    # --- loading -----------------------------------------------------------------------------------------------------

    def _replay(self, data: bytes) -> None:
        while self._end < len(data):
            payload = payload_at(data, self._end, self._sequence + 1)
            if payload is None:
                later = next_frame(data, self._end)
                if later is None:
                    return
                raise JournalCorrupt(
                    f"journal {self.path}: damaged at byte {self._end} (frame {self._sequence + 1}), while a whole "
                    f"frame follows at byte {later}: the disk lost something that was written. Restore the file, or "
                    "move the agent's whole state directory away, to start as a new agent that knows none of its "
                    "instances"
                )
            self._sequence += 1
            self._end += HEADER_BYTES + len(payload)
            try:
                puts, deletes = decode_payload(payload)
            except ValueError as error:
                raise JournalCorrupt(
                    f"journal {self.path}: frame {self._sequence} before byte {self._end} is whole but makes no sense "
                    f"({error}): was it written by another version? Use that version, or move the state directory away"
                ) from None
            for key, value in puts:
                self._apply(key, value)
            for key in deletes:
                self._apply(key, None)


def _portions(live: dict[str, bytes]) -> Iterable[list[Put]]:
    portion: list[Put] = []
    size = 0
    for key, value in live.items():
        if portion and size + cost(key, value) > MAX_FRAME_BYTES:
            yield portion
            portion, size = [], 0
        portion.append((key, value))
        size += cost(key, value)
    if portion:
        yield portion


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]
