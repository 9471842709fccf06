"""One managent as its boot stub knows it, and what of that is written down.

Theory of operation. A record is written when a command has been carried out, before its answer leaves: what is not in
the journal was not acknowledged, and is cleaned away at the next start. It holds all that is needed to go on without
asking anybody: states, configuration, what runs, the highest (epoch, attempt), and the latest answers, so that a call
whose answer was lost in a crash is not carried out again. Of a managent that is gone the pair and the answers are kept
(`Forgotten`), as late messages come late.

An initiator's charge names every boot stub of its domain and may have over a megabyte, more than one value of a journal
may: records are compressed when they are large, and cut into values "m/<print>/<number>".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import blake3
import msgspec

from deploy.configuration import Configuration
from deploy.hosting import InitiatorCharge
from deploy.messages import BipAnswer, Charge, ManagentBeat, Parent
from deploy.records import Prints
from deploy.states import EnvState, LifeState
from deploy.stub.effects import Installed, Run

if TYPE_CHECKING:
    from deploy.stub.verbs import Job

MANAGENT, FORGOTTEN = "m/", "f/"
PACK_OVER_BYTES = 4096
PIECE_BYTES = 512 * 1024
MAX_PIECES = 64
MAX_RECORD_BYTES = 16 * 1024 * 1024
MAX_REASON_CHARS = 500

Health = Literal["ok", "crashed", "silent"]


class BadState(Exception):
    """What the journal holds makes no sense: which entry, and why."""


class Record(msgspec.Struct, frozen=True):
    """`complete`: it was installed once since its folder was made. `removing`: an uninstallation has begun."""

    path: str
    epoch: int
    attempt: int
    parent: Parent
    charge: Charge | None
    env: EnvState
    life: LifeState
    health: Health
    reason: str
    prints: Prints
    install: Configuration
    managent: Configuration
    installed: Installed
    complete: bool
    removing: bool
    run: Run | None
    answers: tuple[BipAnswer, ...]


class Forgotten(msgspec.Struct, frozen=True):
    """Of a managent that is gone."""

    path: str
    epoch: int
    attempt: int
    answers: tuple[BipAnswer, ...]


@dataclass(slots=True)
class Managent:
    """`job`: the command that is being carried out."""

    path: str
    epoch: int
    attempt: int
    parent: Parent
    charge: Charge | None = None
    env: EnvState = "non-existent"
    life: LifeState = "non-existent"
    health: Health = "ok"
    reason: str = ""
    prints: Prints = field(default_factory=Prints)
    install: Configuration = field(default_factory=Configuration)
    managent: Configuration = field(default_factory=Configuration)
    installed: Installed = field(default_factory=Installed)
    complete: bool = False
    removing: bool = False
    run: Run | None = None
    answers: tuple[BipAnswer, ...] = ()
    job: Job | None = None
    ended: Run | None = None
    """What ended by itself, and has not been cleaned up after."""
    pieces: int = 0
    """Of its record in the journal."""

    @property
    def pair(self) -> tuple[int, int]:
        return self.epoch, self.attempt

    @property
    def is_initiator(self) -> bool:
        return self.managent.initiator is not None

    def beat(self) -> ManagentBeat:
        return ManagentBeat(
            self.path,
            self.epoch,
            self.attempt,
            self.env,
            self.life,
            self.health,
            self.reason[:MAX_REASON_CHARS],
            self.is_initiator,
        )

    def initiator_charge(self) -> InitiatorCharge:
        """Of a managent that is an initiator."""
        assert self.managent.initiator is not None
        assert self.charge is not None
        return InitiatorCharge(self.path, self.parent, self.epoch, self.attempt, self.managent.initiator, self.charge)


def key_of(prefix: str, path: str) -> str:
    """A path may be longer than a journal's key."""
    return f"{prefix}{blake3.blake3(path.encode()).hexdigest(16)}"


def puts_of(managent: Managent) -> tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]]:
    """(puts, deletes) that make the journal hold this managent as it is now; notes how many pieces that took."""
    record = Record(
        **{name: getattr(managent, name) for name in Record.__struct_fields__},
    )
    data = msgspec.json.encode(record)
    if len(data) > PACK_OVER_BYTES:
        data = zlib.compress(data, 1)
    key = key_of(MANAGENT, managent.path)
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    before, managent.pieces = managent.pieces, len(pieces)
    puts = tuple((f"{key}/{number}", piece) for number, piece in enumerate(pieces))
    return puts, tuple(f"{key}/{number}" for number in range(len(pieces), before))


def deletes_of(managent: Managent) -> tuple[str, ...]:
    """What makes the journal forget it."""
    key = key_of(MANAGENT, managent.path)
    return tuple(f"{key}/{number}" for number in range(managent.pieces))


def put_of(forgotten: Forgotten) -> tuple[str, bytes]:
    return key_of(FORGOTTEN, forgotten.path), msgspec.json.encode(forgotten)


def restore(entries: Iterable[tuple[str, bytes]]) -> tuple[list[Managent], list[Forgotten]]:
    """What the journal holds, both in the order of paths. Keys of others are passed over. Raises BadState."""
    pieces: dict[str, dict[int, bytes]] = {}
    forgotten: list[Forgotten] = []
    for key, value in entries:
        if key.startswith(MANAGENT):
            name, _, number = key.rpartition("/")
            pieces.setdefault(name, {})[int(number)] = value
        elif key.startswith(FORGOTTEN):
            forgotten.append(_decoded(key, value, Forgotten))
    managents = [_managent(key, parts) for key, parts in pieces.items()]
    return sorted(managents, key=lambda one: one.path), sorted(forgotten, key=lambda one: one.path)


def _managent(key: str, parts: dict[int, bytes]) -> Managent:
    if sorted(parts) != list(range(len(parts))) or len(parts) > MAX_PIECES:
        raise BadState(f"journal entry {key}: expected pieces from 0 on, found {sorted(parts)[:10]}")
    data = b"".join(parts[number] for number in range(len(parts)))
    if not data.startswith(b"{"):
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(data, MAX_RECORD_BYTES)
        except zlib.error as error:
            raise BadState(f"journal entry {key}: expected compressed JSON, found: {error}") from None
    record = _decoded(key, data, Record)
    fields = {name: getattr(record, name) for name in Record.__struct_fields__}
    return Managent(**fields, pieces=len(parts))


R = TypeVar("R", Record, Forgotten)


def _decoded(key: str, data: bytes, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BadState(f"journal entry {key}: expected a {kind.__name__} as JSON, found: {error}") from None
