"""Both ends of an answer to a `TreeCall`: the numbered pages that go up, and the stream that is taken in.

The end that sends keeps a page until the asker says that it has it; the end that takes knows what it lacks by the
numbers, and the last page says that it is the last. So pages may be lost, repeated or overtaken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deploy.initiator.effects import Gathered
from deploy.initiator.house import House
from deploy.initiator.kid import Kid
from deploy.messages import Entry, Parent, TreeCall, TreePage


class Pages:
    """To one asker, of one call. The top's owner (an asker without an address) gets them as effects."""

    def __init__(self, house: House, call: str, asker: Parent) -> None:
        self._house = house
        self._call = call
        self._asker = asker
        self._waiting: list[Entry] = []
        self._pages: dict[int, TreePage] = {}
        self._sent_at: dict[int, float] = {}
        self._had = 0
        self._number = 0

    def add(self, now: float, entries: tuple[Entry, ...]) -> None:
        settings = self._house.settings
        self._waiting.extend(entries)
        while len(self._waiting) >= settings.page_entries:
            self._make(now, last=False)
        if self._waiting:
            self._house.agenda.by(("page", self._call), now + settings.page_s)

    def flush(self, now: float) -> None:
        if self._waiting:
            self._make(now, last=False)

    def end(self, now: float) -> None:
        self._house.agenda.drop(("page", self._call))
        self._make(now, last=True)

    @property
    def is_full(self) -> bool:
        """The asker does not keep up: take nothing from below."""
        return len(self._pages) >= self._house.settings.window_pages

    def asked_again(self, now: float, call: TreeCall) -> None:
        self._asker = call.asker
        for number in range(self._had, min(call.have, self._number)):
            self._pages.pop(number, None)
            self._sent_at.pop(number, None)
        self._had = max(self._had, call.have)
        self._send(now)

    def _make(self, now: float, last: bool) -> None:
        size = self._house.settings.page_entries
        entries, self._waiting = tuple(self._waiting[:size]), self._waiting[size:]
        if not self._asker.address:
            self._house.do(Gathered(self._call, entries, last))
            return
        page = TreePage(self._call, self._asker.path, self._house.path, self._number, entries, last)
        self._pages[self._number] = page
        self._number += 1
        self._send(now)

    def _send(self, now: float) -> None:
        """Those in the window that were not sent yet, or long enough ago to be lost."""
        settings = self._house.settings
        for number in range(self._had, min(self._number, self._had + settings.window_pages)):
            if now - self._sent_at.get(number, float("-inf")) >= settings.call_repeat_s / 2:
                self._sent_at[number] = now
                self._house.send(self._asker.address, self._pages[number])


@dataclass(slots=True, eq=False)
class Stream:
    """What comes from one child. `have`: pages without a gap. `taken`: pages since it was asked last."""

    kid: Kid
    begun: bool = False
    have: int = 0
    taken: int = 0
    asked: int = 0
    _ahead: set[int] = field(default_factory=set)
    _length: int = 0

    def take(self, page: TreePage, window: int) -> bool:
        """False: it is here already, or too far ahead."""
        if page.number < self.have or page.number in self._ahead or page.number >= self.have + window:
            return False
        self._ahead.add(page.number)
        if page.last:
            self._length = page.number + 1
        while self.have in self._ahead:
            self._ahead.discard(self.have)
            self.have += 1
        self.taken += 1
        return True

    @property
    def whole(self) -> bool:
        return self.have == self._length > 0
