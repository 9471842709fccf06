"""What was wanted, what was measured, and whether it holds: rows of a table of bench/RESULTS.md. Pure."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

_began = time.monotonic()


@dataclass(frozen=True, slots=True)
class Row:
    """`target`: the number of what is wanted, 0 of a figure that nothing is wanted of. `holds`: None of such a one."""

    target: int
    what: str
    wanted: str
    measured: str
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one program measured: a line on how, the rows, and tables or remarks behind them."""

    name: str
    how: str
    rows: tuple[Row, ...]
    more: tuple[str, ...] = ()


def at_most(target: int, what: str, value: float, limit: float, unit: str = "", digits: int = 2) -> Row:
    unit = f" {unit}" if unit else ""
    return Row(target, what, f"at most {limit:g}{unit}", f"{value:.{digits}f}{unit}", value <= limit)


def at_least(target: int, what: str, value: float, limit: float, unit: str = "", digits: int = 2) -> Row:
    unit = f" {unit}" if unit else ""
    return Row(target, what, f"at least {limit:g}{unit}", f"{value:.{digits}f}{unit}", value >= limit)


def told(what: str, measured: str, target: int = 0) -> Row:
    return Row(target, what, "", measured)


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    words = {True: "holds", False: "**does not hold**", None: ""}
    return [
        "| target | | wanted | measured | |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {row.target or ''} | {row.what} | {row.wanted} | {row.measured} | {words[row.holds]} |" for row in rows),
    ]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a * size^b, by least squares on the logarithms. Costs of 0 count as the smallest that is none, and
    without any as flat. Raises ValueError with fewer than two sizes."""
    if len(set(sizes)) < 2:
        raise ValueError(f"expected at least two sizes, found {sorted(set(sizes))}")
    least = min((cost for cost in costs if cost > 0), default=1.0)
    xs = [math.log(size) for size in sizes]
    ys = [math.log(max(cost, least)) for cost in costs]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """median (least to most)"""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def say(text: str) -> None:
    """Progress, with the seconds since the program began."""
    print(f"{time.monotonic() - _began:6.0f} s  {text}", file=sys.stderr, flush=True)
