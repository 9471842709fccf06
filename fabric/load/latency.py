"""Percentiles and histograms of times. Pure.

Percentiles are of all samples, by nearest rank: p99 is a time that was really measured, which 99 % are not above. With
fewer than 1,000 samples p99.9 is the largest; so the number of samples stands beside it.

A request that had not ended when the run did counts with the time that it had waited by then: a lower bound, but
leaving it out would leave out the slowest. How many such there are is told (`open`); percentiles at or above the
smallest of them may be higher in truth.

The histogram is for plots and programs: bucket i counts times above EDGES_S[i-1] and up to EDGES_S[i]; eight edges
double the time, so a bucket is 9 % wide.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import msgspec

PER_DOUBLING = 8
FIRST_S = 0.0005
BUCKETS = 8 * 21
"""Up to 0.5 ms doubled 21 times: 17 minutes. What is longer is in the last."""
EDGES_S = tuple(FIRST_S * 2 ** (i / PER_DOUBLING) for i in range(BUCKETS))


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds. `count`: samples, `open` of which had not ended. `buckets`: index of an edge -> how many."""

    count: int
    open: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    mean_ms: float
    buckets: dict[str, int]


def summary(ended_s: Sequence[float], open_s: Sequence[float] = ()) -> Latency:
    """Of the times of requests that ended, and how long those that did not had waited."""
    ordered = sorted((*ended_s, *open_s))
    buckets: dict[int, int] = {}
    for one in ordered:
        at = min(bisect.bisect_left(EDGES_S, one), BUCKETS - 1)
        buckets[at] = buckets.get(at, 0) + 1
    return Latency(
        len(ordered),
        len(open_s),
        _ms(quantile(ordered, 0.5)),
        _ms(quantile(ordered, 0.9)),
        _ms(quantile(ordered, 0.99)),
        _ms(quantile(ordered, 0.999)),
        _ms(ordered[-1] if ordered else 0.0),
        _ms(sum(ordered) / len(ordered) if ordered else 0.0),
        {str(at): number for at, number in buckets.items()},
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """Of sorted values, the smallest that at least `part` of them are not above; 0 of none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def _ms(value_s: float) -> float:
    return round(1000 * value_s, 3)
