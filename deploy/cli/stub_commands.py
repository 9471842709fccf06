"""What `fabric stub …` does: the directory of boot stubs, as people and programs see and change it."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from deploy.cli.places import Places, places
from deploy.cli.running import run
from deploy.cli.showing import emit
from deploy.directory import Directory, NameTaken, Registered
from deploy.discovery import BadGroup, Group, Listener, parse_group
from deploy.discovery import discover as call
from deploy.identity import BadIdentity, check_path
from deploy.messages import ManagentBeat
from deploy.pinging import Pinger
from deploy.reach import address_towards, bind_at
from deploy.records import StubRecord
from fabric.cli import output
from fabric.cli.exits import Exit, Failure
from fabric.records import BadRecord
from fabric.runtime.bus import new_context
from fabric.traffic import parse_address
from zk.client import TreeClient
from zk.session_tree import SessionTree

CONNECT_S = 15.0
OPERATION_S = 60.0
"""For what is asked of a directory that was there a moment ago."""
MAX_LISTED = 100_000
AT_ONCE = 64
ALIVE_WAIT_S = 2.0

V = TypeVar("V")


class Listing(msgspec.Struct, frozen=True):
    """For programs."""

    items: tuple[StubRecord, ...]
    unreadable: tuple[dict[str, str], ...] = ()


class Pong(msgspec.Struct, frozen=True):
    name: str
    address: str
    answered: bool
    ms: float
    managents: tuple[ManagentBeat, ...]


# --- list, add, remove ------------------------------------------------------------------------------------------------


def show(args: Namespace) -> int:
    domain = _path(args.domain, "--domain")

    async def ask(directory: Directory) -> Listing:
        found = await directory.stubs.all(domain)
        return Listing(found.records, tuple({"name": one.what, "reason": one.reason} for one in found.unreadable))

    listing = _with_directory(places(args), ask)
    if output.wants_json(args):
        emit(listing)
    else:
        _table(listing.items)
    for one in listing.unreadable:
        output.remark(f"unreadable: {one['reason']} (fabric stub remove {one['name']})")
    return Exit.DONE


def add(args: Namespace) -> int:
    if (args.name is None) == (args.file is None):
        raise Failure("which boot stubs? Expected NAME, or --file LIST", Exit.USAGE)
    records: Sequence[StubRecord]
    if args.file is None:
        records = [listed(args.name, args.domain, args.address)]
    elif args.domain or args.address:
        raise Failure("--domain, --address: expected in the lines of --file, found beside it", Exit.USAGE)
    else:
        records = read_list(Path(args.file))
    changes = Counter(one.change for one in _with_directory(places(args), lambda one: _register(one, records)))
    if output.wants_json(args):
        emit({"added": changes["new"], "changed": changes["changed"], "unchanged": changes["same"]})
    else:
        output.line(f"{changes['new']} added, {changes['changed']} changed, {changes['same']} as they were")
    return Exit.DONE


async def _register(directory: Directory, records: Sequence[StubRecord]) -> tuple[Registered, ...]:
    window = asyncio.Semaphore(AT_ONCE)

    async def one(record: StubRecord) -> Registered:
        async with window:
            return await directory.stubs.register(record)

    return tuple(await asyncio.gather(*map(one, records)))


def listed(name: str, domain: str, address: str, where: str = "") -> StubRecord:
    """As an operator lists it. Raises Failure."""
    before = f"{where}: " if where else ""
    guid = ""
    if address:
        parsed = parse_address(address)
        if parsed is None:
            raise Failure(
                f"{before}address: expected tcp://host:port/incarnation (hex digits), found {address!r}", Exit.USAGE
            )
        guid = parsed[1]
    record = StubRecord(name, address, _path(domain, f"{before}domain"), guid, "", 0, "operator")
    try:
        return msgspec.convert(msgspec.to_builtins(record), StubRecord)
    except msgspec.ValidationError:
        raise Failure(
            f"{before}name: expected up to 64 letters, digits, '.', '_', '-' as of a host, found {name!r}", Exit.USAGE
        ) from None


def read_list(path: Path) -> Sequence[StubRecord]:
    """Raises Failure."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line.partition("#")[0].split() for line, _ in zip(file, range(2 * MAX_LISTED + 1), strict=False)]
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"--file {path}: expected a text file that can be read: {error}", Exit.USAGE) from None
    found: dict[str, StubRecord] = {}
    for number, words in enumerate(lines, 1):
        if not words:
            continue
        if len(words) > 3:
            raise Failure(f"{path}:{number}: expected NAME DOMAIN ADDRESS, found {len(words)} words", Exit.USAGE)
        name, domain, address = ("" if word == "-" else word for word in (*words, "", "")[:3])
        if name in found:
            raise Failure(f"{path}:{number}: expected each name once, found {name} again", Exit.USAGE)
        found[name] = listed(name, domain, address, f"{path}:{number}")
        if len(found) > MAX_LISTED:
            raise Failure(f"{path}: expected at most {MAX_LISTED} boot stubs", Exit.USAGE)
    if not found:
        raise Failure(f"{path}: expected at least one boot stub, found none", Exit.USAGE)
    return tuple(found.values())


def remove(args: Namespace) -> int:
    async def ask(directory: Directory) -> dict[str, bool]:
        return {name: await directory.stubs.remove(name) for name in dict.fromkeys(args.names)}

    for name in args.names:
        listed(name, "", "")
    removed = _with_directory(places(args), ask)
    if output.wants_json(args):
        emit(removed)
    else:
        for name, was_there in removed.items():
            if was_there:
                output.line(f"{name} is removed")
    if missing := [name for name, was_there in removed.items() if not was_there]:
        raise Failure(f"not in the directory: {', '.join(missing)}")
    return Exit.DONE


# --- discover ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answers:
    """`rivals`: by a name that several boot stubs call themselves by."""

    records: tuple[StubRecord, ...]
    rivals: dict[str, tuple[StubRecord, ...]]


def sorted_out(records: Sequence[StubRecord]) -> Answers:
    by_name: dict[str, tuple[StubRecord, ...]] = {}
    for record in records:
        by_name[record.name] = (*by_name.get(record.name, ()), msgspec.structs.replace(record, by="discovery"))
    return Answers(
        tuple(found[0] for found in by_name.values() if len(found) == 1),
        {name: found for name, found in by_name.items() if len(found) > 1},
    )


def discover(args: Namespace) -> int:
    where = places(args)
    try:
        group = parse_group(args.group, args.interface)
    except BadGroup as error:
        raise Failure(f"--{error}", Exit.USAGE) from None
    if where.key is None:
        raise Failure(
            "discovery is sealed: expected the cluster's key with --key-file (as boot stubs have it), found none",
            Exit.USAGE,
        )
    try:
        return run(_discover(args, where, where.key, group))
    except OSError as error:
        raise Failure(error.strerror or str(error)) from None


async def _discover(args: Namespace, where: Places, key: bytes, group: Group) -> int:
    telling = Listener(group, key, directory=where.directory)
    async with opened_directory(where) as directory, _pinger(where) as pinger:
        if args.every is not None:
            await telling.open()
        try:
            while True:
                clean = await _round(args, directory, pinger, key, group)
                if args.every is None:
                    return Exit.DONE if clean else Exit.ERROR
                await asyncio.sleep(args.every)
        finally:
            telling.close()


async def _round(args: Namespace, directory: Directory, pinger: Pinger, key: bytes, group: Group) -> bool:
    """One call. Whether every boot stub that answered is registered."""
    heard = await call(group, key, args.wait)
    answers = sorted_out(heard.records)
    troubles = [
        f"{len(rivals)} boot stubs call themselves {name}: {', '.join(f'{one.host} ({one.address})' for one in rivals)}"
        for name, rivals in answers.rivals.items()
    ]
    registered: dict[str, str] = {record.name: "" for record in answers.records}

    async def alive(record: StubRecord) -> bool:
        return await pinger.ping(record.address, ALIVE_WAIT_S) is not None

    async def enter(record: StubRecord) -> None:
        async with window:
            try:
                registered[record.name] = (await directory.stubs.register(record, alive)).change
            except (NameTaken, BadRecord) as error:
                registered[record.name] = "refused"
                troubles.append(str(error))

    window = asyncio.Semaphore(AT_ONCE)
    if not args.dry_run:
        await asyncio.gather(*map(enter, answers.records))
    quiet = args.every is not None and not any(change in ("new", "changed") for change in registered.values())
    if output.wants_json(args):
        emit({"items": answers.records, "registered": registered, "troubles": troubles})
    elif not quiet:
        _table(answers.records, None if args.dry_run else registered)
    if ignored := sum(heard.counters.ignored.values()):
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(heard.counters.ignored.items()))
        output.remark(f"{output.counted(ignored, 'answer')} not believed: {causes}")
    for trouble in troubles:
        output.remark(trouble)
    return not troubles


# --- ping -------------------------------------------------------------------------------------------------------------


def ping(args: Namespace) -> int:
    where, parent = places(args), _path(args.parent, "--parent")

    async def ask() -> Pong:
        async with opened_directory(where) as directory, _pinger(where) as pinger:
            record = await directory.stubs.get(listed(args.name, "", "").name)
            if record is None:
                raise Failure(f"no boot stub {args.name} is in the directory (fabric stub list)")
            if not record.address:
                raise Failure(f"boot stub {args.name} is listed, and has not reported yet where it is")
            began = time.monotonic()
            beat = await pinger.ping(record.address, args.wait, parent)
            took_ms = round((time.monotonic() - began) * 1000, 1)
            return Pong(args.name, record.address, beat is not None, took_ms, () if beat is None else beat.managents)

    pong = run(ask())
    if output.wants_json(args):
        emit(pong)
    if not pong.answered:
        raise Failure(f"boot stub {pong.name} did not answer at {pong.address} within {args.wait:g} s")
    if not output.wants_json(args):
        output.line(f"{pong.name} answered from {pong.address} after {pong.ms:g} ms")
        if pong.managents:
            rows = [(one.path, one.env, one.life, one.health, one.reason) for one in pong.managents]
            output.table(["MANAGENT", "ENVIRONMENT", "LIFE", "HEALTH", "REASON"], rows, spare=["REASON"])
    return Exit.DONE


# --- helpers ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened_directory(where: Places) -> AsyncIterator[Directory]:
    """Raises zk.connect.Unreachable."""
    tree = SessionTree(where.directory)
    try:
        await tree.open(CONNECT_S, output.remark)
        yield Directory(TreeClient(tree))
    finally:
        await tree.close()


@asynccontextmanager
async def _pinger(where: Places) -> AsyncIterator[Pinger]:
    try:
        bind = bind_at(address_towards(where.directory))
    except OSError as error:
        raise Failure(f"no way to the directory at {where.directory}: {error}") from None
    context = new_context(max_sockets=64)
    try:
        pinger = Pinger(context, where.key, bind)
        try:
            yield pinger
        finally:
            pinger.close()
    finally:
        context.term()


def _with_directory(where: Places, ask: Callable[[Directory], Awaitable[V]]) -> V:
    """Raises Failure."""

    async def asked() -> V:
        async with opened_directory(where) as directory:
            try:
                async with asyncio.timeout(OPERATION_S):
                    return await ask(directory)
            except TimeoutError:
                raise Failure(f"the directory at {where.directory} did not answer within {OPERATION_S:g} s") from None

    return run(asked())


def _table(records: Sequence[StubRecord], registered: dict[str, str] | None = None) -> None:
    headings = ["NAME", "DOMAIN", "ADDRESS", "HOST", ">PID", "BY"]
    rows: Sequence[Sequence[object]] = [
        (one.name, one.domain or "-", one.address or "-", one.host or "-", one.pid or "-", one.by) for one in records
    ]
    if registered is not None:
        headings.append("REGISTERED")
        rows = [(*row, registered[one.name]) for row, one in zip(rows, records, strict=True)]
    output.table(headings, rows, spare=["BY", ">PID", "HOST"])


def _path(text: str, named: str) -> str:
    """A managent's path, or "" for none. Raises Failure."""
    if not text:
        return ""
    try:
        return check_path(text)
    except BadIdentity as error:
        raise Failure(f"{named}: {error}", Exit.USAGE) from None
