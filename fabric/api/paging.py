"""Pages of bounded size over lists that are sorted by a key.

`?limit=` says how many, `?after=` the key of the last one seen. A key is what the items are sorted by, so a page stays
right when items before it come or go, and no list is ever held for a client that may not return.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import Query

from fabric.api.schemas import DEFAULT_PAGE, MAX_PAGE

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most this many.")]
After = Annotated[str, Query(max_length=256, description="`next` of the page before.")]
DEFAULT_LIMIT = DEFAULT_PAGE


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next` is None on the last page."""

    items: tuple[T, ...]
    next: str | None


def page(items: Sequence[T], limit: int, after: str, key: Callable[[T], str]) -> Page[T]:
    """The first `limit` of `items` (sorted by `key`, ascending, keys unique) whose key is greater than `after`."""
    start = bisect_right(items, after, key=key) if after else 0
    chosen = tuple(items[start : start + limit])
    more = start + limit < len(items)
    return Page(chosen, key(chosen[-1]) if more and chosen else None)
