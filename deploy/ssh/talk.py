"""One host: a connection, an order, what the host says to it.

The host says hello before anything is done there. A connection that ends before the end was said is a failure of the
connection, which may be tried again: every step on the host looks before it acts. What a login prints besides is kept
as the last lines, for people; what a host says is bounded and checked like anything that comes from elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, replace

import msgspec

from deploy.ssh.bundle import Bundle
from deploy.ssh.command import SshSettings, may_pass, ssh_words
from deploy.ssh.host.orders import MARK, MAX_TAIL_CHARS, MAX_TAIL_LINES, NO_PYTHON, Order, Said
from deploy.ssh.hosts import Host

MAX_LINE_BYTES = 256 << 10
MAX_SAID = 1000
"""Lines with MARK, of one host."""
MAX_PRINTED = 10_000
"""Other lines, on standard output or on standard error."""
BLOCK_BYTES = 256 << 10
END_WAIT_S = 5.0
SSH_FAILED = 255
_MARK = MARK.encode()


class NotReached(Exception):
    """The connection failed: `str` is what ssh said. `again`: it may succeed later."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


async def talk(
    host: Host, order: Order, opening: bytes, bundle: Bundle | None, ssh: SshSettings, heard: Callable[[Said], None]
) -> Said:
    """Have the order carried out: the end that the host said. `heard` gets all it says before. Raises NotReached, and
    OSError when no ssh can be started. Cancelled, it ends the connection, and so what runs on the host for it."""
    process = await asyncio.create_subprocess_exec(
        *ssh_words(host, ssh), stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=MAX_LINE_BYTES, start_new_session=True
    )
    connection = _Connection(process)
    try:
        await connection.write(opening + json.dumps(asdict(order)).encode() + b"\n")
        return await connection.listen(bundle, heard)
    finally:
        await connection.close()


class _Connection:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._errors: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._printed: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._reading = asyncio.create_task(self._read_errors())

    async def listen(self, bundle: Bundle | None, heard: Callable[[Said], None]) -> Said:
        """Until the end was said, or nothing more comes."""
        said_before = 0
        async for text in self._marked():
            if text is None:
                bounds = f"at most {MAX_PRINTED} lines of at most {MAX_LINE_BYTES} bytes"
                return _failed(f"expected {bounds} from the host, found more")
            if said_before == MAX_SAID:
                return _failed(f"expected at most {MAX_SAID} messages from the host, found more")
            said_before += 1
            try:
                said = _checked(text)
            except msgspec.MsgspecError as error:
                return _failed(f"expected a message of the installation, found another: {error}")
            if said.kind == "end":
                return said
            if said.kind != "need":
                heard(said)
            elif bundle is None:
                return _failed("expected no call for a bundle, found one")
            else:
                await self.write(bundle.content)
        return await self._broken_off(greeted=said_before > 0)

    async def write(self, data: bytes) -> None:
        """What the host does not read any more is no error here: its output says why."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):
            for begin in range(0, len(data), BLOCK_BYTES):
                self._process.stdin.write(data[begin : begin + BLOCK_BYTES])
                await self._process.stdin.drain()

    async def close(self) -> None:
        """The end of its input ends what runs on the host; then ssh and all it started (a jump host's) are ended."""
        assert self._process.stdin is not None
        self._reading.cancel()
        self._process.stdin.close()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), END_WAIT_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        finally:
            # What outlived ssh may hold its output open: asyncio would keep the pipes, and complain of them when the
            # loop is closed already. A Process has no other way to say so.
            self._process._transport.close()  # type: ignore[attr-defined]

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _marked(self) -> AsyncIterator[bytes | None]:
        """What comes after MARK on each line that has it; None for a line that is too long, and for too many."""
        assert self._process.stdout is not None
        for _ in range(MAX_SAID + MAX_PRINTED):
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                yield None
                return
            if not line:
                return
            _, mark, text = line.partition(_MARK)  # a login may print something without a newline
            if mark:
                yield text
            else:
                self._printed.append(shown(line.decode("utf-8", "replace")))
        yield None

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for _ in range(MAX_PRINTED):  # one that writes more waits, for the time limit
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # the beginning of a line without end is dropped
                continue
            if not line:
                return
            if text := shown(line.decode("utf-8", "replace")):
                self._errors.append(text)

    async def _broken_off(self, greeted: bool) -> Said:
        """The output ended before the end was said. Raises NotReached."""
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(self._process.wait(), asyncio.shield(self._reading)), END_WAIT_S)
        code, told = self._process.returncode, "; ".join(self._errors)
        if greeted:
            raise NotReached(f"the connection broke off{f': {told}' if told else ''}", True)
        if code == SSH_FAILED:
            raise NotReached(told or "ssh failed and did not say why", may_pass(told))
        if code == NO_PYTHON:
            return _failed(f"expected Python 3.11 or later on the host, found: {told}")
        reason = f"expected the host to run Python for the installation, but its login ended with exit code {code}"
        return replace(_failed(reason), tail=(*self._printed, *self._errors)[-MAX_TAIL_LINES:])


def _checked(text: bytes) -> Said:
    """Raises msgspec.MsgspecError."""
    said = msgspec.json.decode(text, type=Said)
    return replace(
        said,
        step=shown(said.step),
        text=shown(said.text),
        tail=tuple(shown(line) for line in said.tail[-MAX_TAIL_LINES:]),
        name=shown(said.name),
        supervisor=shown(said.supervisor),
    )


def shown(text: str) -> str:
    """What a terminal may be given: one line, bounded, nothing that steers it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.strip()[:MAX_TAIL_CHARS])


def _failed(reason: str) -> Said:
    return Said("end", outcome="failed", text=reason)
