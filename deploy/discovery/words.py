"""The messages of discovery, one a datagram, and who believes which of them.

    StubsCall         to the group   "boot stubs, who are you?"            each answers StubHere
    DirectoryCall     to the group   "where is the directory?"             who knows it answers DirectoryHere

Theory of operation. A datagram is a frame of fabric.wire: sealed with the cluster's key, versioned, decoded strictly.
Its major version is discovery's own, so no frame of the bus is taken for one. An answer carries the random `nonce` of
its call, so an old answer is good for nothing. A call carries when it was made, and is believed for MAX_AGE_S, once:
its nonce is remembered for that long. So a stranger's, an altered and a replayed datagram change nothing and are
counted, and nobody can have others flooded by replaying a call. Clocks that differ by more than MAX_AGE_S make the
listener deaf, which is counted as "age".

`spread_ms`: answers to one call are spread over so long, that those of thousands do not come at once.

Bounds: MAX_DATAGRAM_BYTES; answers as ANSWERS_PER_S says, in bursts of as many; MAX_NONCES remembered, and with so many
that are still good further calls are refused.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from deploy.records import StubRecord
from fabric.commands import Message
from fabric.records import Number
from fabric.wire import BadFrame, Body, FrameCodec, Vocabulary

PROTOCOL = (65, 0)
MAX_DATAGRAM_BYTES = 1_400
"""One packet on any network. The largest StubRecord fits."""
MAX_AGE_S = 60.0
MAX_NONCES = 1_024
ANSWERS_PER_S = 20.0
MAX_SPREAD_MS = 10_000

Nonce = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Spread = Annotated[int, msgspec.Meta(ge=0, le=MAX_SPREAD_MS)]


class StubsCall(Message, frozen=True):
    """`sent_ms`: since 1970."""

    nonce: Nonce
    sent_ms: Number
    spread_ms: Spread


class StubHere(Message, frozen=True):
    nonce: Nonce
    record: StubRecord


class DirectoryCall(Message, frozen=True):
    nonce: Nonce
    sent_ms: Number
    spread_ms: Spread


class DirectoryHere(Message, frozen=True):
    """`directory`: a connect string."""

    nonce: Nonce
    directory: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]


AnyWord = StubsCall | StubHere | DirectoryCall | DirectoryHere

class _WordsBody(Body[AnyWord], frozen=True, array_like=True): ...


WORDS: Vocabulary[AnyWord] = Vocabulary(PROTOCOL, _WordsBody)


class WordCodec:
    """Words <-> datagrams. `key`: the cluster's 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._codec = FrameCodec(key, WORDS)

    def encode(self, word: AnyWord) -> bytes:
        """Raises ValueError when it is too large for a datagram."""
        data = self._codec.encode(word, "")
        if len(data) > MAX_DATAGRAM_BYTES:
            raise ValueError(
                f"{type(word).__name__}: expected at most {MAX_DATAGRAM_BYTES} bytes in a datagram, found {len(data)}"
            )
        return data

    def decode(self, data: bytes) -> AnyWord:
        """Raises BadFrame: what came is a stranger's, or broken."""
        if len(data) > MAX_DATAGRAM_BYTES:
            raise BadFrame("size", f"expected at most {MAX_DATAGRAM_BYTES} bytes, found {len(data)}")
        return self._codec.decode(data)[1]


@dataclass(slots=True)
class HearingCounters:
    """`ignored` by cause: size, seal, msgpack, version, type (not a word of ours); age, replay, rate (a call that is
    not answered); other (not for us: another kind of call, an answer)."""

    heard: int = 0
    answered: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Reply:
    """To whom the call came from, `within_s` from now, at a time of one's choice."""

    data: bytes
    within_s: float


class Ears:
    """What one listener hears and answers; sans-I/O. `record`: what it says of itself when boot stubs are called, None
    for nothing. `directory`: what it says when the directory is asked for, "" for nothing."""

    def __init__(self, key: bytes, record: Callable[[], StubRecord | None] = lambda: None, directory: str = "") -> None:
        self.counters = HearingCounters()
        self._codec = WordCodec(key)
        self._record = record
        self._directory = directory
        self._nonces: OrderedDict[str, float] = OrderedDict()  # nonce -> when it may be forgotten, oldest first
        self._credit = ANSWERS_PER_S
        self._credited_at = 0.0

    def hear(self, now: float, wall_ms: int, data: bytes) -> Reply | None:
        """`now`: seconds of a clock that only grows. Raises ValueError when the answer does not fit a datagram."""
        self.counters.heard += 1
        believed = self._believed(now, wall_ms, data)
        if isinstance(believed, str):
            self.counters.ignored[believed] += 1
            return None
        call, answer = believed
        self.counters.answered += 1
        return Reply(self._codec.encode(answer), call.spread_ms / 1000)

    def _believed(
        self, now: float, wall_ms: int, data: bytes
    ) -> tuple[StubsCall | DirectoryCall, StubHere | DirectoryHere] | str:
        """The call and its answer, or why there is none."""
        try:
            word = self._codec.decode(data)
        except BadFrame as bad:
            return bad.cause
        if not isinstance(word, StubsCall | DirectoryCall) or (answer := self._answer(word)) is None:
            return "other"
        if abs(wall_ms - word.sent_ms) > MAX_AGE_S * 1000:
            return "age"
        while self._nonces and next(iter(self._nonces.values())) <= now:
            self._nonces.popitem(last=False)
        if word.nonce in self._nonces:
            return "replay"
        if len(self._nonces) >= MAX_NONCES or not self._may_answer(now):
            return "rate"
        # A call is good until MAX_AGE_S after it was made, which may be as much in our future.
        self._nonces[word.nonce] = now + 2 * MAX_AGE_S
        return word, answer

    def _answer(self, call: StubsCall | DirectoryCall) -> StubHere | DirectoryHere | None:
        if isinstance(call, DirectoryCall):
            return DirectoryHere(call.nonce, self._directory) if self._directory else None
        record = self._record()
        return None if record is None else StubHere(call.nonce, record)

    def _may_answer(self, now: float) -> bool:
        self._credit = min(ANSWERS_PER_S, self._credit + (now - self._credited_at) * ANSWERS_PER_S)
        self._credited_at = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True
