"""`fabric managent send`: one command to one boot stub, as Figure 9 of HPL-2001-321 writes it (deploy.bip_xml).

Human initiation (2.4): a person, or a program that writes XML, is the initiator. The boot stub is the one that `--stub`
names, else the one of the document's <to>: an address of the bus, or a URL or a name whose host is a boot stub in the
directory. The answer comes here, and nobody hears the beats about what was deployed like this. Should there be an
initiator at the parent's path, then it finds a managent there that it did not deploy, and removes it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import msgspec

from deploy.bip_xml import LIMITS, read_control
from deploy.cli import showing
from deploy.cli.places import places
from deploy.cli.running import run
from deploy.cli.waiting import Waiting
from deploy.messages import BipAnswer
from deploy.top import Top
from deploy.xml import BadXml
from fabric.cli import output
from fabric.cli.exits import Exit, Failure


class SentView(msgspec.Struct, frozen=True):
    """For programs."""

    managent: str
    stub: str
    outcome: str
    env: str
    life: str
    reason: str
    final: bool
    tail: tuple[str, ...]


def send(args: Namespace) -> int:
    name, data = _read(args.file)
    try:
        message = read_control(data, name)
    except BadXml as error:
        raise Failure(str(error), Exit.USAGE) from None
    stub = args.stub or message.to
    if not stub:
        raise Failure("which boot stub? Expected --stub NAME, or <to addr=…> in the message, found none", Exit.USAGE)
    where = places(args)

    async def ask() -> BipAnswer | None:
        async with Waiting(where.told) as waiting, Top.open(where.directory, where.key) as top:
            waiting.now(f"boot stub {stub}, {args.timeout:g} s at most")
            return await top.send(message, stub, args.id, args.timeout)

    answer = run(ask())
    if answer is None:
        raise Failure(f"boot stub {stub} did not answer within {args.timeout:g} s: it may have done it, or not")
    found = SentView(**{name: getattr(answer, name) for name in SentView.__struct_fields__})
    if output.wants_json(args):
        showing.emit(found)
    else:
        output.pairs(
            [
                ("managent", found.managent),
                ("boot stub", found.stub),
                ("outcome", found.outcome),
                ("environment", found.env),
                ("state", found.life),
                ("reason", found.reason),
            ]
        )
        for line in found.tail:
            output.line(f"  {line}", "dim")
    return Exit.DONE if found.outcome == "done" else Exit.NOT_ALL


def _read(file: str) -> tuple[str, bytes]:
    """Its name for errors, and no more of it than can be right."""
    try:
        if file == "-":
            return "standard input", sys.stdin.buffer.read(LIMITS.bytes + 1)
        with Path(file).open("rb") as opened:
            return file, opened.read(LIMITS.bytes + 1)
    except OSError as error:
        raise Failure(f"{file}: expected a readable file, found: {error.strerror}", Exit.USAGE) from None
