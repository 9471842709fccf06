"""Which contents are wanted: those that an image's record or a deployment that is not over names. A cache of what the
records say, kept by a storage leader for its repairs.

`refresh` lists both kinds of records and reads, a bounded number at a time, first those that are new, then some of
those known, the ones that were read longest ago first: IMAGES_A_ROUND images, whose name may mean another content by
now, and DEPLOYMENTS_A_ROUND deployments, whose content never changes and of which it is only to be found out that they
are over. So a round costs ZooKeeper no more for having many records. What the cache says is therefore a hint, and
before anything is done for a content `confirm` reads records that name it until one still does.

A record that can't be read or makes no sense stays what it was known to be; if it was never known, it is read again in
the next round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fabric.records import BadRecord, Image, Unplanned, decode
from fabric.roles.outbox import Outbox
from zk import paths
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome

READS_AT_ONCE = 64
IMAGES_A_ROUND = 512
DEPLOYMENTS_A_ROUND = 64
"""Records known already that are read again in one round, at most."""
IMAGES, DEPLOYMENTS = "images", "deployments"
_KINDS = (IMAGES, DEPLOYMENTS)
_A_ROUND = {IMAGES: IMAGES_A_ROUND, DEPLOYMENTS: DEPLOYMENTS_A_ROUND}

Name = tuple[str, str]
"""(kind, name) of a record."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a record needs: a content, or "" when it needs none; `size` in bytes, 0 if the record does not say."""

    digest: str
    size: int


def need_of(kind: str, name: str, data: bytes) -> Need:
    """Raises BadRecord."""
    if kind == IMAGES:
        image = decode(data, Image, paths.image(name))
        return Need(image.digest, image.size)
    record = decode(data, Unplanned, paths.deployment(name))
    over = record.final and record.state in ("failed", "deleted")
    return Need("" if over else record.spec.digest, 0)


def record_path(kind: str, name: str) -> str:
    return paths.image(name) if kind == IMAGES else paths.deployment(name)


@dataclass(slots=True)
class _Known:
    need: Need
    read: int
    """The round in which it was read last."""


@dataclass(slots=True)
class _Confirm:
    names: deque[Name]
    done: Callable[[float, bool | None], None]


class Wanted:
    """Embed it, pass it every TreeDone. One refresh at a time; `done` is called from inside `on_tree`."""

    def __init__(self, out: Outbox, prefix: str) -> None:
        self._out = out
        self._prefix = prefix
        self._serial = 0
        self._round = 0
        self._known: dict[Name, _Known] = {}
        self._asked: dict[str, Name] = {}
        """Token -> what a refresh reads with it; the name is empty for a list."""
        self._confirms: dict[str, tuple[str, _Confirm]] = {}
        self._queue: deque[Name] = deque()
        self._bad: set[Name] = set()
        self._done: Callable[[float, bool], None] | None = None

    def stop(self) -> None:
        """Forget everything; what is under way comes to nothing."""
        self._known.clear()
        self._asked.clear()
        self._confirms.clear()
        self._queue.clear()
        self._bad.clear()
        self._done = None

    def contents(self) -> dict[str, int]:
        """Digest -> size in bytes, 0 if no record says."""
        found: dict[str, int] = {}
        for known in self._known.values():
            if known.need.digest:
                found[known.need.digest] = max(known.need.size, found.get(known.need.digest, 0))
        return found

    def refresh(self, done: Callable[[float, bool], None]) -> None:
        """`done(now, ok)`: False when the records could not be listed."""
        self._round += 1
        self._done = done
        self._queue.clear()
        self._asked.clear()
        for kind in _KINDS:
            self._ask((kind, ""))

    def confirm(self, digest: str, done: Callable[[float, bool | None], None]) -> bool:
        """`done(now, wanted)`: whether a record names this content now; None when that could not be read. False, and
        `done` is not called, when no record is known that did."""
        named = [name for name, known in self._known.items() if known.need.digest == digest]
        if named:
            self._ask_next(digest, _Confirm(deque(sorted(named, key=lambda one: (one[0] != IMAGES, one))), done))
        return bool(named)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(self._prefix):
            return False
        if token in self._asked:
            kind, name = self._asked.pop(token)
            if name:
                self._learn((kind, name), outcome)
                self._read_more(now)
            else:
                self._on_list(now, kind, outcome)
        elif token in self._confirms:
            digest, confirm = self._confirms.pop(token)
            self._on_confirm(now, digest, confirm, outcome)
        return True

    # --- a refresh ------------------------------------------------------------------------------------------------

    def _on_list(self, now: float, kind: str, outcome: Outcome) -> None:
        if not isinstance(outcome, Listed):
            self._end(now, False)
            return
        names = {(kind, name) for name in outcome.names}
        for gone in [name for name in self._known if name[0] == kind and name not in names]:
            del self._known[gone]
        self._bad = {name for name in self._bad if name[0] != kind or name in names}
        known = sorted((name for name in names if name in self._known), key=lambda one: (self._known[one].read, one))
        self._queue.extendleft(sorted(names - set(known), reverse=True))
        self._queue.extend(known[: _A_ROUND[kind]])
        self._read_more(now)

    def _read_more(self, now: float) -> None:
        if any(not name for _, name in self._asked.values()):
            return  # a list is under way
        while self._queue and len(self._asked) < READS_AT_ONCE:
            self._ask(self._queue.popleft())
        if not self._asked:
            self._end(now, True)

    def _end(self, now: float, ok: bool) -> None:
        done, self._done = self._done, None
        self._asked.clear()
        self._queue.clear()
        if done is not None:
            done(now, ok)

    def _learn(self, name: Name, outcome: Outcome) -> None:
        if isinstance(outcome, NoNode):
            self._known.pop(name, None)
        elif isinstance(outcome, Got):
            try:
                need = need_of(*name, outcome.data)
            except BadRecord as error:
                if name not in self._bad:
                    self._bad.add(name)
                    self._out.note("warning", f"{error}; what it needs is not looked after")
                if name in self._known:
                    self._known[name].read = self._round
            else:
                self._bad.discard(name)
                self._known[name] = _Known(need, self._round)

    def _ask(self, name: Name) -> None:
        kind, which = name
        root = paths.IMAGES if kind == IMAGES else paths.DEPLOYMENTS
        token = self._token()
        self._asked[token] = name
        self._out.tree(token, Get(record_path(kind, which)) if which else Children(root))

    def _token(self) -> str:
        self._serial += 1
        return f"{self._prefix}{self._serial}"

    # --- confirming -----------------------------------------------------------------------------------------------

    def _ask_next(self, digest: str, confirm: _Confirm) -> None:
        token = self._token()
        self._confirms[token] = digest, confirm
        self._out.tree(token, Get(record_path(*confirm.names[0])))

    def _on_confirm(self, now: float, digest: str, confirm: _Confirm, outcome: Outcome) -> None:
        name = confirm.names.popleft()
        if not isinstance(outcome, Got | NoNode):
            confirm.done(now, None)
            return
        self._learn(name, outcome)
        known = self._known.get(name)
        if known is not None and known.need.digest == digest:
            confirm.done(now, True)
        elif confirm.names:
            self._ask_next(digest, confirm)
        else:
            confirm.done(now, False)
