"""Putting together what comes up the tree in answer to one `TreeCall` (pure).

Pages come in any order, some twice, some not at all. An initiator has *answered* when its last page and all before it
are in; the whole is there when the top has, as its last page comes after everybody else's. What an initiator that has
not answered said so far counts as well: it is true, only not all.
"""

from __future__ import annotations

from deploy.identity import TOP
from deploy.messages import Entry, TreePage


class Gathering:
    """The answers to call `call`."""

    def __init__(self, call: str) -> None:
        self.call = call
        self._pages: dict[str, dict[int, tuple[Entry, ...]]] = {}
        self._lengths: dict[str, int] = {}
        self.answered: set[str] = set()

    def take(self, page: TreePage) -> bool:
        """Whether the page is of this call and was not there yet."""
        if page.call != self.call:
            return False
        pages = self._pages.setdefault(page.origin, {})
        if page.number in pages:
            return False
        pages[page.number] = page.entries
        if page.last:
            self._lengths[page.origin] = page.number + 1
        if len(pages) == self._lengths.get(page.origin):
            self.answered.add(page.origin)
        return True

    @property
    def whole(self) -> bool:
        return TOP in self.answered

    @property
    def entries(self) -> list[Entry]:
        """Of each initiator in the order of its pages."""
        return [one for pages in self._pages.values() for number in sorted(pages) for one in pages[number]]
