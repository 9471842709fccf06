"""Waves: a rollout in parts, with a limit to what may fail (pure).

A wave is a *watermark*: a path in the order of the tree (depth first, an initiator before its children) up to which the
rollout may go. It only moves forward, so a wave is one more message down the tree, and whoever was told the last one
needs nobody's word to go on. Waves are cut by changes, not by managents: 10 % of what is to be done, not of what is
there. The last wave has no watermark: it also takes what has no place in the order, as what is removed.

Between two waves the counts that came up the tree decide: more failures than the limit, and the watermark stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.messages import Counts

ALL = ""
"""The watermark of a whole rollout."""
DEFAULT_PARTS = 10
"""Waves of a rollout that has a limit of failures and no size of waves: a limit that is looked at once, at the end,
would limit nothing."""


@dataclass(frozen=True, slots=True)
class Share:
    """A number, or a part of a whole. `percent` counts when it is not None."""

    number: int = 0
    percent: float | None = None

    def of(self, total: int) -> int:
        """Rounded down: 2 % of 40 is 0."""
        return self.number if self.percent is None else math.floor(self.percent * total / 100 + 1e-9)

    def __str__(self) -> str:
        return str(self.number) if self.percent is None else f"{self.percent:g}%"


def parse_share(text: str) -> Share:
    """ "20" or "10%". Raises ValueError."""
    number = text.removesuffix("%")
    if text.endswith("%"):
        if not 0 <= (percent := float(number)) <= 100:
            raise ValueError(f"expected 0% to 100%, found {text!r}")
        return Share(percent=percent)
    if (count := int(number)) < 0:
        raise ValueError(f"expected 0 or more, found {text!r}")
    return Share(count)


@dataclass(frozen=True, slots=True)
class Wave:
    """`number` counts from 1, `of` is how many there are. `until`: the watermark, `ALL` in the last wave. `changes`: to
    be done in this wave, in the order of the tree."""

    number: int
    of: int
    until: str
    changes: tuple[str, ...]


def cut(changed: Sequence[str], size: Share | None, unordered: Sequence[str] = ()) -> tuple[Wave, ...]:
    """`changed`: the paths to be changed, in the order of the tree; `unordered`: those that only the last wave takes.
    At least one wave, and none without a change unless it is the only one: a rollout without changes looks whether all
    is well."""
    whole = [*changed, *unordered]
    step = len(whole) if size is None else max(1, size.of(len(whole)))
    parts = [tuple(changed[at : at + step]) for at in range(0, len(changed), step)] if changed else []
    if not parts:
        parts = [()]
    if unordered:
        if len(parts[-1]) + len(unordered) <= step:
            parts[-1] = (*parts[-1], *unordered)
        else:
            parts = [*(part for part in parts if part), tuple(unordered)]
    last = len(parts)
    return tuple(
        Wave(number, last, ALL if number == last else part[-1], part) for number, part in enumerate(parts, start=1)
    )


def size_of(wave: Share | None, limit: Share | None) -> Share | None:
    """The size of waves when none is given: see DEFAULT_PARTS."""
    return Share(percent=100 / DEFAULT_PARTS) if wave is None and limit is not None else wave


def too_many(counts: Counts, limit: Share | None, targeted: int) -> str:
    """Why no further wave may begin; "" when it may. A part is one of all that are `targeted`."""
    if limit is None:
        return ""
    bad = counts.refused + counts.failed + counts.unreachable
    allowed = limit.of(targeted)
    if bad <= allowed:
        return ""
    of = f" ({limit} of {targeted})" if limit.percent is not None else ""
    return (
        f"{bad} {'managent is' if bad == 1 else 'managents are'} not active ({counts.refused} refused, "
        f"{counts.failed} failed, {counts.unreachable} unreachable), expected at most {allowed}{of}"
    )
