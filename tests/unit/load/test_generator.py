"""Paces: a rate that waits for nobody, and whose lateness is seen; clients of which each has one request open."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from fabric.load.asking import Asker, View
from fabric.load.generator import Clients, Generator, Pace, Rate
from fabric.load.history import Asked, Clock, End, History, Kind, requests
from fabric.load.http import Connections
from fabric.load.latency import quantile
from fabric.load.measured import Window, latencies
from fabric.load.stock import Cycles, Mix, Way
from tests.unit.load.api import Fake, fake_api

END_S = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[Fake]:
    with fake_api() as fake:
        yield fake


@pytest.fixture
def api(server: Fake) -> Fake:
    server.forget()
    return server


@dataclass
class Played:
    generator: Generator
    asked: tuple[Asked, ...]
    ends: list[End] = field(default_factory=list)
    over_s: float = 0.0


def play(
    api: Fake, pace: Pace, way: Way, enough: Callable[[Generator, list[End]], bool], clear: bool = False
) -> Played:
    """Until there is enough, and what is open has ended."""

    async def main() -> Played:
        clock, history, ends = Clock(), History(), list[End]()
        done = asyncio.Event()

        async def ended(end: End, view: View) -> None:
            ends.append(end)
            if enough(generator, ends):
                done.set()

        def draw(kind: Kind) -> tuple[int, dict[str, object]]:
            return 3, {"count": 3}

        async with Connections(api.url) as connections:
            asker = Asker(connections, history, clock, "run")
            generator = Generator(asker, pace, way, draw, random.Random(1), clock, ended)
            running = asyncio.create_task(generator.run())
            async with asyncio.timeout(END_S):
                await done.wait()
                generator.stop()
                over_s = clock.now()
                await running
            if clear:
                await generator.clear()
        return Played(generator, requests(history.attempts, history.ends), ends, over_s)

    return asyncio.run(main())


def test_a_stall_shows_in_all_requests_that_were_due_meanwhile(api: Fake) -> None:
    """Four may be open. Measured from when it was sent, only these would have waited, and the median would be fine."""
    stall_s, rate = 0.8, 50.0
    gate = threading.Event()

    def refuse(method: str, path: str, n: int) -> None:
        if n == 5:
            threading.Timer(stall_s, gate.set).start()
            gate.wait(END_S)  # with the server's lock: nobody is answered

    api.refuse = refuse
    found = play(api, Rate(rate, 4), Mix(1, 0, 0, 1000), lambda generator, ends: len(ends) >= 70)
    window = Window(0.0, found.over_s, found.over_s)
    told = latencies(found.asked, found.generator.unsent_s, window)["create settled"]
    waited = sorted(one.end.at_s - one.due_s for one in found.asked if one.end)
    from_sent = [one.end.at_s - one.sent_s for one in found.asked if one.end]
    assert sum(one > stall_s / 2 for one in from_sent) <= 4
    assert sum(one > stall_s / 2 for one in waited) >= rate * stall_s / 2 - 5
    assert told.p50_ms > 1000 * stall_s / 4
    assert 1000 * quantile(sorted(from_sent), 0.5) < told.p50_ms / 2


def test_what_was_due_and_never_sent_is_known_and_counts(api: Fake) -> None:
    gate = threading.Event()

    def refuse(method: str, path: str, n: int) -> None:
        if n == 1:
            threading.Timer(0.5, gate.set).start()
            gate.wait(END_S)

    api.refuse = refuse
    found = play(api, Rate(100.0, 1), Mix(1, 0, 0, 1000), lambda generator, ends: bool(ends))
    unsent = found.generator.unsent_s
    assert len(unsent) >= 35
    assert all(later - earlier == pytest.approx(0.01) for earlier, later in pairwise(unsent))
    told = latencies(found.asked, unsent, Window(0.0, found.over_s, found.over_s))["create accepted"]
    assert told.open >= 35
    assert told.max_ms >= 450


def test_a_rate_is_kept_whatever_becomes_of_those_before(api: Fake) -> None:
    found = play(api, Rate(100.0, 50), Cycles(), lambda generator, ends: len(ends) >= 60)
    creates = [one for one in found.asked if one.kind == "create"]
    assert all(later.due_s - earlier.due_s == pytest.approx(0.01) for earlier, later in pairwise(creates))
    assert all(one.sent_s >= one.due_s for one in creates)
    assert {one.end.state for one in found.asked if one.end} == {"running", "deleted"}
    assert found.generator.stock.standing == {}


def test_each_client_has_one_request_open_and_cycles_leave_nothing(api: Fake) -> None:
    found = play(api, Clients(3), Cycles(), lambda generator, ends: len(ends) >= 40)
    assert all(one.due_s == one.sent_s for one in found.asked)
    moments = sorted([(one.sent_s, 1) for one in found.asked] + [(one.end.at_s, -1) for one in found.asked if one.end])
    open_now = most = 0
    for _, change in moments:
        open_now += change
        most = max(most, open_now)
    assert most == 3
    assert found.generator.stock.standing == {}
    assert found.generator.idle


def test_a_mix_keeps_so_many_standing_and_clearing_deletes_them(api: Fake) -> None:
    found = play(api, Clients(2), Mix(1, 2, 1, 5), lambda generator, ends: len(ends) >= 60, clear=True)
    assert {one.kind for one in found.asked} == {"create", "scale", "delete"}
    assert found.generator.stock.standing == {}
    assert {one["state"] for one in api.made.values()} == {"deleted"}


def test_clients_that_are_refused_do_not_make_heat(api: Fake) -> None:
    api.refuse = lambda method, path, n: (422, {}, {"detail": "no room"}) if method == "POST" and n < 4 else None
    found = play(api, Clients(1), Cycles(), lambda generator, ends: len(ends) >= 1)
    refused = [one for one in found.asked if one.last.status == 422]
    assert [one.last.detail for one in refused] == ["no room"] * 3
    assert found.asked[3].sent_s - found.asked[0].sent_s > 1.0


def test_a_deployment_that_fails_is_deleted_by_its_cycle(api: Fake) -> None:
    failed: set[str] = set()

    def refuse(method: str, path: str, n: int) -> tuple[int, dict[str, str], dict[str, object]] | None:
        name = path.split("?")[0].rpartition("/")[2]
        if method == "GET" and name in api.made and name not in failed and not failed:
            failed.add(name)
            return 200, {}, {**api.made[name], "state": "failed", "final": True, "settled": 1, "reason": "no room"}
        return None

    api.refuse = refuse
    found = play(api, Clients(1), Cycles(), lambda generator, ends: len(ends) >= 2)
    assert [(one.kind, one.end.state) for one in found.asked if one.end][:2] == [
        ("create", "failed"), ("delete", "deleted"),
    ]  # fmt: skip


def test_a_full_fabric_is_asked_for_other_things_than_creates_too(api: Fake) -> None:
    """It holds two, and five should stand."""

    def refuse(method: str, path: str, n: int) -> tuple[int, dict[str, str], dict[str, object]] | None:
        one = api.made.get(path.split("?")[0].rpartition("/")[2], {})
        full = sum(made["state"] == "running" for made in api.made.values()) >= 2
        if method == "GET" and full and one.get("state") == "accepted" and one["generation"] == 1:
            one |= {"state": "failed", "final": True, "settled": 1, "reason": "no room"}
            return 200, {}, one
        return None

    api.refuse = refuse
    found = play(api, Clients(1), Mix(0, 1, 1, 5), lambda generator, ends: len(ends) >= 40)
    ends = [one.end.state for one in found.asked if one.end]
    assert "failed" in ends
    assert ("failed", "failed") not in pairwise(ends)
    assert {one.kind for one in found.asked} == {"create", "scale", "delete"}


def test_clearing_deletes_what_was_cut_off_in_the_middle_too(api: Fake) -> None:
    """A create that is being made ready, one whose answer is on its way, and one that a delete was asked for."""
    held = threading.Event()

    def refuse(method: str, path: str, n: int) -> tuple[int, dict[str, str], dict[str, object]] | None:
        if held.is_set():
            return None
        name = path.split("?")[0].rpartition("/")[2]
        if method == "POST" and len(api.made) == 2:  # it is made, and the answer is lost
            api.keys[api.asked[-1][2]] = "d-lost"
            api.made["d-lost"] = api.view("d-lost", "accepted", 3)
            return 0, {}, {}
        if method == "POST" and len(api.made) > 2:
            return 503, {}, {}
        if method == "GET" and (name != "d-000000" or api.made[name]["state"] == "deleting"):
            return 200, {}, api.made[name]
        return None

    async def main() -> None:
        async with Connections(api.url) as connections:
            asker = Asker(connections, History(), Clock(), "run")
            draw: Callable[[Kind], tuple[int, dict[str, object]]] = lambda kind: (3, {"count": 3})  # noqa: E731
            generator = Generator(asker, Clients(3), Cycles(), draw, random.Random(1), Clock())
            running = asyncio.create_task(generator.run())
            async with asyncio.timeout(END_S):
                while len(api.made) < 3 or api.made["d-000000"]["state"] != "deleting":
                    await asyncio.sleep(0.005)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            held.set()
            async with asyncio.timeout(END_S):
                await generator.clear()

    api.refuse = refuse
    asyncio.run(main())
    assert {name: one["state"] for name, one in api.made.items()} == {
        "d-000000": "deleted", "d-000001": "deleted", "d-lost": "deleted",
    }  # fmt: skip
