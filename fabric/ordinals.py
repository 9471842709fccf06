"""Sets of ordinals written as ranges: `"0-3,7"` is {0, 1, 2, 3, 7}. Ten thousand ordinals fit in a few bytes a node."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_COUNT = 10_000
"""A deployment has at most this many instances, so ordinals are 0 … 9,999."""

MAX_TEXT = 64 * 1024

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


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
    """The ordinals in `text`, ascending. Raises ValueError unless it is exactly what `format_ordinals` writes."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"ordinals: expected at most {MAX_TEXT} characters, found {len(text)}")
    if not text:
        return ()
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"ordinals: expected ranges such as '0-3,7', found {part[:40]!r}")
        low, high = int(match[1]), int(match[2] or match[1])
        if high >= MAX_COUNT or high < low or (found and low <= found[-1]):
            raise ValueError(f"ordinals: expected ascending ranges below {MAX_COUNT}, found {part[:40]!r}")
        found.extend(range(low, high + 1))
    return tuple(found)
