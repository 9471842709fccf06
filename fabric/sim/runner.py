"""Many seeds on all cores, and what came of them.

Theory of operation. Worker processes take a few seeds at a time and send back results; a failure does not stop the
others, unless it is asked for. Interrupted, what has come so far is still summed up.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice

from fabric.sim.simulation import Failure, Result, simulate
from fabric.sim.world import Options

BATCH = 4
"""Seeds that a worker takes at a time."""
MAX_FAILURES_KEPT = 100


@dataclass(slots=True)
class Summary:
    """`seconds` of real time, by the clock on the wall; `busy_s`: of all workers together."""

    seeds: int = 0
    events: int = 0
    messages: int = 0
    requests: int = 0
    virtual_s: float = 0.0
    busy_s: float = 0.0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    by_promise: Counter[str] = field(default_factory=Counter)
    by_level: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.events += result.events
        self.messages += result.messages
        self.requests += result.requests
        self.virtual_s += result.virtual_s
        self.busy_s += result.took_s
        self.by_level[result.level] += 1
        self.faults.update(result.faults)
        if result.failure is not None:
            self.failed += 1
            self.by_promise[result.failure.promise] += 1
            if len(self.failures) < MAX_FAILURES_KEPT:
                self.failures.append(result.failure)

    @property
    def messages_per_s(self) -> float:
        """Of one core."""
        return self.messages / self.busy_s if self.busy_s else 0.0


def run(
    seeds: Iterable[int],
    options: Options,
    *,
    workers: int | None = None,
    seconds: float | None = None,
    stop_at: int | None = None,
    told: Callable[[Summary, Result], None] = lambda summary, result: None,
) -> Summary:
    """`seconds`: no new seeds after so long. `stop_at`: none after so many failures. `told` after each result."""
    summary, began = Summary(), time.monotonic()
    count = workers or os.cpu_count() or 1

    def over() -> bool:
        late = seconds is not None and time.monotonic() - began >= seconds
        return late or (stop_at is not None and summary.failed >= stop_at)

    try:
        for result in _results(iter(seeds), options, count, over):
            summary.add(result)
            told(summary, result)
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.monotonic() - began
    summary.failures.sort(key=lambda failure: failure.seed)
    return summary


def _results(
    seeds: Iterator[int], options: Options, workers: int, over: Callable[[], bool]
) -> Iterator[Result]:
    if workers == 1:
        for seed in seeds:
            if over():
                return
            yield simulate(seed, options)
        return
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        open_: set[Future[list[Result]]] = set()
        while True:
            while len(open_) < 2 * workers and not over() and (batch := list(islice(seeds, BATCH))):
                open_.add(pool.submit(_simulate_all, batch, options))
            if not open_:
                return
            done, open_ = wait(open_, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _simulate_all(seeds: list[int], options: Options) -> list[Result]:
    return [simulate(seed, options) for seed in seeds]


def first_failure(seeds: Iterable[int], options: Options | None = None) -> Failure | None:
    """In this process, one seed after the other: what a planted bug is looked for with."""
    return next((found for seed in seeds if (found := simulate(seed, options).failure) is not None), None)
