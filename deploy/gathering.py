"""Putting together what comes up the tree in answer to one `TreeCall` (pure).

The initiator that was called answers in numbered pages, which may come in any order, some twice, some not at all: then
the call is repeated, saying how many came without a gap, and the others come again. The last page says so. What came
before an answer is whole counts as well: it is true, only not all.
"""

from __future__ import annotations

from deploy.messages import Entry, TreePage


class Gathering:
    """The answer to call `call`."""

    def __init__(self, call: str) -> None:
        self.call = call
        self._pages: dict[int, tuple[Entry, ...]] = {}
        self._length = 0

    def take(self, page: TreePage) -> bool:
        """Whether the page is of this call and was not there yet."""
        if page.call != self.call or page.number in self._pages:
            return False
        self._pages[page.number] = page.entries
        if page.last:
            self._length = page.number + 1
        return True

    @property
    def have(self) -> int:
        """So many pages came without a gap."""
        number = 0
        while number in self._pages:
            number += 1
        return number

    @property
    def whole(self) -> bool:
        return self.have == self._length > 0

    @property
    def entries(self) -> list[Entry]:
        return [one for number in sorted(self._pages) for one in self._pages[number]]
