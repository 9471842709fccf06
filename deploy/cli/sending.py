"""`fabric managent send`: one command to one boot stub, as Figure 9 of HPL-2001-321 writes it (deploy.bip_xml).

Human initiation (2.4): a person, or a program that writes XML, is the initiator. The boot stub is the one that `--stub`
names, else the one of the document's <to>: an address of the bus, or a URL or a name whose host is a boot stub in the
directory. The answer comes here, and nobody hears the beats about what was deployed like this. Should there be an
initiator at the parent's path, then it finds a managent there that it did not deploy, and removes it.

A person's word is older than any initiator's: (epoch, attempt) are 0. So what an initiator has deployed can't be taken
from it; it is told so, and which command goes through its initiator.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from deploy.bip_xml import LIMITS, ControlMessage, bip_call, read_control
from deploy.cli.places import Places, places
from deploy.cli.running import run
from deploy.cli.showing import emit
from deploy.cli.stub_commands import opened_directory
from deploy.directory import Directory
from deploy.identity import BadIdentity, check_path, name_of, parent_of
from deploy.messages import AnyDeployMessage, BipAnswer, BipCall, Parent, deploy_codec
from deploy.reach import address_towards, bind_at
from deploy.states import Verb
from deploy.xml import BadXml
from fabric.cli import output
from fabric.cli.exits import Exit, Failure
from fabric.runtime.bus import Bus, new_context
from fabric.traffic import parse_address

REPEAT_S = 1.0
_COMMANDS = frozenset({"uninstall", "start", "shutdown", "restart", "activate", "deactivate"})
"""Of `fabric managent`."""


def send(args: Namespace) -> int:
    where = places(args)
    message = _read(args.file)
    path = _path(args, message)
    answer = run(_sent(args, where, message, path))
    if output.wants_json(args):
        emit(answer)
    elif answer.outcome == "done":
        output.line(f"{answer.managent} on boot stub {answer.stub}: {message.verb} done; it is {answer.life}", "green")
    else:
        raise Failure(
            f"{message.verb} {answer.managent} on boot stub {answer.stub}: {answer.outcome}: {answer.reason}",
            Exit.NOT_ALL,
            answer.tail,
        )
    return Exit.DONE if answer.outcome == "done" else Exit.NOT_ALL


def _read(file: Path) -> ControlMessage:
    name = "standard input" if str(file) == "-" else str(file)
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(LIMITS.bytes + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(LIMITS.bytes + 1)
        return read_control(data, name)
    except OSError as error:
        raise Failure(f"expected a readable file, found {name}: {error.strerror}", Exit.USAGE) from None
    except BadXml as error:
        raise Failure(str(error), Exit.USAGE) from None


def _path(args: Namespace, message: ControlMessage) -> str:
    """The managent's. Raises Failure."""
    try:
        told = check_path(args.id) if args.id else ""
    except BadIdentity as error:
        raise Failure(f"--id: {error}", Exit.USAGE) from None
    if message.managent and told and message.managent != told:
        raise Failure(f"--id: expected {message.managent}, as {args.file} says, found {told}", Exit.USAGE)
    if not message.managent and not told:
        raise Failure(f"which managent? Expected --id PATH, or <managent id=…> in {args.file}, found none", Exit.USAGE)
    return message.managent or told


async def _sent(args: Namespace, where: Places, message: ControlMessage, path: str) -> BipAnswer:
    """Raises Failure."""
    async with opened_directory(where) as directory:
        await _check_free(directory, path, message.verb)
        address = await _address(directory, args.stub, message.to)
    async with _teller(where) as teller:
        parent = Parent(parent_of(path), teller.address)
        call = bip_call(message, call=secrets.token_hex(8), parent=parent, epoch=0, attempt=0, managent=path)
        answer = await teller.tell(address, call, args.timeout)
    if answer is None:
        raise Failure(f"the boot stub at {address} did not answer within {args.timeout:g} s")
    return answer


async def _check_free(directory: Directory, path: str, verb: Verb) -> None:
    """Raises Failure when an initiator has this managent."""
    parent = parent_of(path)
    table = await directory.tables.load(parent)
    row = next((one for one in table.children if one.name == name_of(path)), None) if table else None
    if row is not None:
        raise Failure(
            f"{path}: expected a managent that no initiator has, found one of {parent or 'the top'}, on boot "
            f"stub {row.stub.name}; what it is told goes through its initiator: "
            f"fabric managent {verb if verb in _COMMANDS else 'apply'}"
        )


async def _address(directory: Directory, named: str, to: str) -> str:
    """Where the boot stub is reached. Raises Failure."""
    if not named and parse_address(to) is not None:
        return to
    name = named or (urlsplit(to).hostname or "" if "://" in to else to)
    if not name:
        raise Failure("which boot stub? Expected --stub NAME, or <to addr=…> in the document, found none", Exit.USAGE)
    record = await directory.stubs.get(name)
    if record is None or not record.address:
        found = "none" if record is None else "one that is listed, and has not reported yet where it is"
        raise Failure(f"expected boot stub {name} in the directory, found {found} (fabric stub list; --stub NAME)")
    return record.address


class _Teller:
    """A bus, and one call at a time that is repeated until it is answered."""

    def __init__(self, bus: Bus[AnyDeployMessage], heard: asyncio.Queue[BipAnswer]) -> None:
        self._bus, self._heard = bus, heard

    @property
    def address(self) -> str:
        return self._bus.address

    async def tell(self, to: str, call: BipCall, wait_s: float) -> BipAnswer | None:
        """None when it is not carried out within `wait_s`."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + wait_s
        while (left_s := give_up - loop.time()) > 0:
            self._bus.send(to, call)
            try:
                async with asyncio.timeout(min(REPEAT_S, left_s)):
                    while True:
                        message = await self._heard.get()
                        if message.call == call.call and message.outcome != "running":
                            return message
            except TimeoutError:
                continue
        return None


@asynccontextmanager
async def _teller(where: Places) -> AsyncIterator[_Teller]:
    """Raises Failure."""
    try:
        bind = bind_at(address_towards(where.directory))
    except OSError as error:
        raise Failure(f"no way to the directory at {where.directory}: {error}") from None
    heard: asyncio.Queue[BipAnswer] = asyncio.Queue(64)

    def hear(sender: str, message: AnyDeployMessage) -> None:
        if isinstance(message, BipAnswer) and not heard.full():  # one that is dropped is given again
            heard.put_nowait(message)

    context = new_context(max_sockets=64)
    try:
        bus = Bus(context, deploy_codec(where.key), secrets.token_hex(16), bind, on_message=hear)
        try:
            yield _Teller(bus, heard)
        finally:
            bus.close()
    finally:
        context.term()
