"""The load generator: its rate, its bounds, its patience, and that everything it does is in the history."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from fabric.chaos.load import Generator
from fabric.chaos.script import Load
from fabric.load.history import NO_ANSWER, Asked, Clock, History, requests
from tests.unit.load.api import Answer, Fake, fake_api
from tests.waiting import wait_until

LOAD = Load(per_s=50.0, count=(1, 3), keep=4, most=20, scale=0.5)


@pytest.fixture(scope="module")
def server() -> Iterator[Fake]:
    with fake_api() as fake:
        yield fake


@pytest.fixture
def api(server: Fake) -> Fake:
    server.forget()
    return server


@contextmanager
def loaded(api: Fake, load: Load = LOAD) -> Iterator[tuple[Generator, History]]:
    history = History()
    generator = Generator(api.url, load, ("web",), history, Clock(), random.Random(3), "run")
    generator.start()
    try:
        yield generator, history
    finally:
        generator.close()


def of(history: History) -> tuple[Asked, ...]:
    return requests(history.attempts, history.ends)


def test_requests_of_every_kind_are_made_and_followed_to_their_end(api: Fake) -> None:
    with loaded(api) as (generator, history):
        wait_until(lambda: {one.kind for one in history.ends} == {"create", "scale", "delete"}, 10, "all kinds to end")
        generator.stop()
        wait_until(lambda: generator.idle, 5, "the rest to end")
    asked = of(history)
    assert all(one.end is not None for one in asked)
    assert [one.number for one in asked] == list(range(1, len(asked) + 1))
    assert len([one for one in asked if one.kind == "create"]) >= LOAD.keep
    posted = [(key, body) for method, _, key, body in api.asked if method == "POST"]
    assert len({key for key, _ in posted}) == len(posted)
    assert all(1 <= body["count"] <= 3 and body["image"] == "web" for _, body in posted)


def test_a_refused_request_is_tried_again_with_its_key_until_it_is_answered(api: Fake) -> None:
    answers: dict[int, Answer] = {1: (503, {"Retry-After": "0"}, {}), 2: (0, {}, {}), 3: (503, {}, {})}
    api.refuse = lambda method, path, n: answers.get(n)
    with loaded(api, replace(LOAD, per_s=0.5)) as (_, history):
        wait_until(lambda: history.ends, 10, "the first request to end")
    first = of(history)[0]
    assert [one.status for one in first.attempts] == [503, NO_ANSWER, 503, 202]
    assert [one.retry_after for one in first.attempts] == [True, False, False, False]
    assert first.attempts[1].detail
    assert {key for method, _, key, _ in api.asked if method == "POST"} == {"run-1"}


def test_what_can_not_be_is_not_tried_again(api: Fake) -> None:
    api.refuse = lambda method, path, n: (422, {}, {"title": "no"}) if method == "POST" else None
    with loaded(api) as (generator, history):
        wait_until(lambda: len(history.attempts) > 3, 5, "some attempts")
        generator.stop()
        wait_until(lambda: generator.idle, 5, "the rest to end")
    assert {(one.status, len(request.attempts)) for request in of(history) for one in request.attempts} == {(422, 1)}
    assert history.attempts[0].detail == "no"


def test_no_more_than_so_many_are_open_and_the_others_are_counted(api: Fake) -> None:
    api.refuse = lambda method, path, n: (503, {"Retry-After": "1"}, {})
    with loaded(api, replace(LOAD, most=3, keep=100)) as (generator, _):
        wait_until(lambda: generator.counters.skipped > 3, 5, "some not to be begun")
        assert generator.counters.open == 3
        assert not generator.idle


def test_a_deployment_has_one_open_request_at_a_time(api: Fake) -> None:
    with loaded(api) as (generator, history):
        wait_until(lambda: len(history.ends) > 20, 10, "twenty ends")
        generator.stop()
        wait_until(lambda: generator.idle, 5, "the rest to end")
    spans: dict[str, list[tuple[float, float]]] = {}
    for one in of(history):
        assert one.end is not None
        spans.setdefault(one.deployment, []).append((one.sent_s, one.end.at_s))
    for these in spans.values():
        these.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(these))


def test_what_is_open_when_it_is_closed_stays_without_an_end(api: Fake) -> None:
    api.refuse = lambda method, path, n: (503, {"Retry-After": "1"}, {})
    with loaded(api) as (_, history):
        wait_until(lambda: history.attempts, 5, "an attempt")
    assert of(history)[0].end is None
    assert of(history)[0].last.again


def test_what_an_open_request_changes_is_busy(api: Fake) -> None:
    slow = {"state": "accepted", "final": False}
    api.refuse = lambda method, path, n: (200, {}, {**Fake.view("d-000000", "accepted", 1), **slow}) if (
        method == "GET"
    ) else None
    with loaded(api, replace(LOAD, per_s=1.0, stop_after=3.0)) as (generator, _):
        wait_until(lambda: generator.busy() == {"d-000000"}, 5, "it to be busy")
        assert generator.stop_after_s("d-000000") == 3
        assert generator.stop_after_s("d-999999") == 0
        assert generator.wanted("d-000000", 0)
        assert not generator.wanted("d-000000", 3)
        assert generator.wanted("d-999999", 3), "somebody else's"
