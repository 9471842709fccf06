"""Sets of ordinals written as ranges: `"0-3,7"` is {0, 1, 2, 3, 7}. Ten thousand ordinals fit in a few bytes a node."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MAX_COUNT = 10_000
"""A deployment has at most this many instances, so ordinals are 0 … 9,999."""

MAX_TEXT = 64 * 1024

_REMEMBERED_TEXT = 64
"""Characters; longer texts are not kept in memory once checked."""

_RANGE = r"[0-9]{1,5}(?:-[0-9]{1,5})?"
_TEXT = re.compile(f"{_RANGE}(?:,{_RANGE})*")


def format_ordinals(ordinals: Iterable[int]) -> str:
    """The shortest text for a set of ordinals; the empty set is `""`."""
    parts: list[str] = []
    first = last = -2
    for ordinal in sorted(set(ordinals)):
        if ordinal == last + 1:
            last = ordinal
            continue
        if first >= 0:
            parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = ordinal
    if first >= 0:
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(parts)


def parse_ordinals(text: str) -> tuple[int, ...]:
    """The ordinals in `text`, ascending, none twice. Raises ValueError unless it is a list of such ranges."""
    return _parse_short(text) if len(text) <= _REMEMBERED_TEXT else _parse(text)


def check_ordinals(text: str) -> None:
    """Raises ValueError where `parse_ordinals` would. It runs on every decoded message: about 0.1 µs for a short text
    that was seen before, which nearly all are, as agents repeat themselves."""
    if len(text) <= _REMEMBERED_TEXT:
        _check_short(text)
    else:
        _ranges(text)


def _parse(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for low, high in _ranges(text):
        found.extend(range(low, high + 1))
    return tuple(found)


@lru_cache(maxsize=256)  # fewer: a short text may mean ten thousand ordinals
def _parse_short(text: str) -> tuple[int, ...]:
    return _parse(text)


@lru_cache(maxsize=4096)
def _check_short(text: str) -> None:
    _ranges(text)


def _ranges(text: str) -> list[tuple[int, int]]:
    if len(text) > MAX_TEXT:
        raise ValueError(f"ordinals: expected at most {MAX_TEXT} characters, found {len(text)}")
    if not text:
        return []
    parts = text.split(",")
    if _TEXT.fullmatch(text) is None:
        wrong = next(part for part in parts if re.fullmatch(_RANGE, part) is None)
        raise ValueError(f"ordinals: expected ranges such as '0-3,7', found {wrong[:40]!r}")
    found: list[tuple[int, int]] = []
    last = -1
    for part in parts:
        first, _dash, end = part.partition("-")
        low = int(first)
        high = int(end) if end else low
        if high >= MAX_COUNT or high < low or low <= last:
            raise ValueError(f"ordinals: expected ascending ranges below {MAX_COUNT}, found {part!r}")
        found.append((low, high))
        last = high
    return found
