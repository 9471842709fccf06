"""When what is sent arrives."""

from __future__ import annotations

from random import Random

import pytest

from fabric.net.pacing import QUEUE_LEAST_BYTES, QUEUE_S, Lane
from fabric.net.rules import LOST, Verdict


def test_what_is_lost_never_arrives() -> None:
    assert Lane().send(LOST, 1, 0.0, Random(1)) is None


def test_a_share_is_lost() -> None:
    lane, chance = Lane(), Random(2)
    lost = [lane.send(Verdict(drop=0.25), 1, 0.0, chance) for _ in range(4000)].count(None)
    assert 900 < lost < 1100


def test_delay_and_jitter_keep_the_order() -> None:
    lane, chance = Lane(), Random(3)
    verdict = Verdict(delay_ms=100, jitter_ms=50)
    arrivals = [lane.send(verdict, 1, now / 1000, chance) or 0.0 for now in range(200)]
    assert arrivals == sorted(arrivals)
    late = [arrives - now / 1000 for now, arrives in enumerate(arrivals)]
    assert min(late) >= 0.1
    assert max(late) <= 0.15 + 1e-9


def test_a_narrow_link_sends_one_piece_after_the_other() -> None:
    lane, chance = Lane(), Random(4)
    verdict = Verdict(bytes_per_s=10_000)
    assert [lane.send(verdict, 1_000, 0.0, chance) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert lane.send(verdict, 1_000, 5.0, chance) == pytest.approx(5.1), "it was idle meanwhile"


@pytest.mark.parametrize("rate", [1_000, 1_000_000])
def test_a_full_queue_loses_the_rest(rate: int) -> None:
    lane, chance = Lane(), Random(5)
    verdict = Verdict(bytes_per_s=rate)
    sent = 0
    while lane.send(verdict, 1_000, 0.0, chance) is not None:
        sent += 1_000
    assert sent == pytest.approx(max(QUEUE_LEAST_BYTES, rate * QUEUE_S), abs=1_000)
    assert lane.send(verdict, 1_000, 1_000.0, chance) is not None
