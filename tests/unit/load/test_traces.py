"""Steps of sampled requests: what is summed, what is between two steps, and that samples are few and spread."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from fabric.load.history import Clock
from fabric.load.http import Answer, Connections, NoAnswer
from fabric.load.traces import Sampler, between_ms, steps, traced
from fabric.roles.trace import Run, Span, Trace


def run(*spans: tuple[int, int, int], messages: int = 40) -> Run:
    """(step, after_ms, took_ms)"""
    return Run(
        generation=1, coordinator="r1c01", rack="r1", epoch=1, at_ms=0, took_ms=0, considered=1, load=0,
        outcome="running", reasons=(), racks=(),
        spans=tuple(Span(step, f"step {step}", after, took) for step, after, took in spans),
        searches=(), searches_omitted=0, rounds=(), nodes=(), nodes_omitted=0, messages=messages, zookeeper_writes=4,
        zookeeper_reads=1,
    )  # fmt: skip


def test_a_step_that_is_done_twice_counts_both_times() -> None:
    found = {one.step: one for one in steps([run((4, 0, 5), (4, 9, 7)), run((4, 0, 2)), run((4, 0, 3), (6, 3, 1))])}
    assert (found[4].traces, found[4].median_ms, found[4].p90_ms) == (3, 3, 12)
    assert (found[6].traces, found[6].median_ms) == (1, 1)


def test_between_two_steps_is_from_the_first_begin_to_the_last_end() -> None:
    one = run((1, 0, 2), (3, 2, 4), (4, 6, 10), (5, 6, 9), (6, 16, 5), (9, 21, 50))
    assert between_ms(one, 3, 6) == 19
    assert between_ms(one, 7, 8) == 0


def test_of_no_trace_nothing_is_told() -> None:
    assert traced([]) is None
    found = traced([run((3, 0, 10), messages=30), run((6, 0, 20), messages=50), run((4, 0, 30), messages=50)])
    assert found is not None
    assert (found.negotiation_ms, found.negotiation_p90_ms, found.messages, found.traces) == (20, 30, 50, 3)


@dataclass
class Moved(Clock):
    at_s: float = 0.0

    def now(self) -> float:
        return self.at_s


@dataclass
class Told:
    """Takes the place of the connections."""

    asked: list[str] = field(default_factory=list)
    broken: bool = False

    async def ask(self, method: str, target: str) -> Answer:
        self.asked.append(target)
        if self.broken:
            raise NoAnswer("broke off")
        return Answer(200, {}, msgspec.json.encode(Trace((run((1, 0, 1)), run((2, 0, 1))))))


def sampled(told: Told, moments: list[float]) -> Sampler:
    clock = Moved()
    api: Connections = told  # type: ignore[assignment]
    sampler = Sampler.over(api, clock, 4, 10.0, 20.0)

    async def main() -> None:
        for number, at_s in enumerate(moments):
            clock.at_s = at_s
            await sampler.sample(f"d-{number}")

    asyncio.run(main())
    return sampler


def test_samples_are_spread_over_the_window_and_no_more_than_so_many() -> None:
    told = Told()
    sampler = sampled(told, [n / 10 for n in range(0, 300)])
    moments = [int(target.split("d-")[1].split("/")[0]) / 10 for target in told.asked]
    assert moments == [10.0, 12.5, 15.0, 17.5]
    assert [one.spans[0].step for one in sampler.runs] == [2] * 4, "the last run of each"


def test_a_trace_that_does_not_come_is_only_counted() -> None:
    sampler = sampled(Told(broken=True), [10.0, 13.0])
    assert (sampler.runs, sampler.missed) == ([], 2)
