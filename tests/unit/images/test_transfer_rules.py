"""The rules of a transfer, and the property that any mix of failures with one honest holder completes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.images.manifest import MIN_CHUNK_BYTES, Manifest
from fabric.images.transfer import MAX_OWING, Ask, Dropped, Transfer


def transfer_of(chunks: int, *holders: str, window: int = 4, stall_s: float = 5.0) -> Transfer:
    manifest = Manifest(chunks * MIN_CHUNK_BYTES, MIN_CHUNK_BYTES, tuple(bytes([i]) * 32 for i in range(chunks)))
    transfer = Transfer(manifest, window=window, stall_s=stall_s, steal_after_s=0.1)
    for holder in holders:
        transfer.add(0.0, holder)
    return transfer


def test_two_holders_share_the_work_within_their_windows() -> None:
    transfer = transfer_of(20, "a", "b")
    asks = transfer.asks(0.0)
    assert sorted(ask.chunk for ask in asks) == list(range(8))
    assert [sum(ask.source == name for ask in asks) for name in "ab"] == [4, 4]
    assert transfer.asks(0.0) == []
    assert transfer.arrived(0.1, "a", asks[0].chunk, sound=True)
    assert transfer.asks(0.1) == [Ask("a", 8)]


def test_a_chunk_is_taken_once() -> None:
    transfer = transfer_of(1, "a", "b")
    assert transfer.asks(0.0) == [Ask("a", 0)]
    assert transfer.asks(0.05) == []
    assert transfer.wake_at(0.05) == pytest.approx(0.1)
    assert transfer.asks(0.11) == [Ask("b", 0)]
    assert transfer.arrived(0.2, "b", 0, sound=True)
    assert not transfer.arrived(0.3, "a", 0, sound=True)
    assert transfer.state == "complete"
    assert transfer.bytes_by_source == {"a": 0, "b": MIN_CHUNK_BYTES}
    assert transfer.wasted_bytes == MIN_CHUNK_BYTES


def test_what_was_not_asked_of_a_holder_is_not_taken_from_it() -> None:
    transfer = transfer_of(3, "a")
    assert not transfer.arrived(0.0, "a", 0, sound=True)
    assert not transfer.arrived(0.0, "stranger", 0, sound=True)
    assert transfer.done_bytes == 0


def test_a_liar_is_dropped_at_once_and_its_chunks_are_given_out_first() -> None:
    transfer = transfer_of(20, "a", "b")
    transfer.asks(0.0)
    assert not transfer.arrived(0.1, "a", 0, sound=False)
    assert transfer.drops == [Dropped("a", "chunk 0 failed its hash", lied=True)]
    assert transfer.arrived(0.1, "b", 1, sound=True)
    assert transfer.asks(0.1) == [Ask("b", 0)]
    assert not transfer.arrived(0.2, "a", 2, sound=True)


def test_who_owes_and_sends_nothing_is_dropped() -> None:
    transfer = transfer_of(6, "a", "b", window=3)
    transfer.asks(0.0)
    assert transfer.wake_at(0.0) == pytest.approx(0.1)
    for now, chunk in ((2.0, 1), (4.0, 3), (6.0, 5)):
        transfer.tick(now)
        assert transfer.arrived(now, "b", chunk, sound=True) == (now < 6 or "a" not in transfer.sources)
    assert transfer.drops == [Dropped("a", "sent nothing for 5 s while it owed 3")]
    assert sorted(ask.chunk for ask in transfer.asks(6.0)) == [0, 2, 4]


def test_a_holder_from_which_part_of_a_chunk_comes_is_not_dropped() -> None:
    transfer = transfer_of(2, "a", "b")
    transfer.asks(0.0)
    for now in (3.0, 7.0, 11.0):
        transfer.sends(now, "a")
        transfer.tick(now)
    assert transfer.sources == ("a",)
    transfer.tick(16.0)
    assert not transfer.sources


def test_an_idle_holder_is_not_dropped() -> None:
    transfer = transfer_of(1, "a", "b")
    transfer.asks(0.0)
    transfer.tick(4.9)
    transfer.tick(5.0)
    assert transfer.sources == ("b",)
    assert transfer.asks(100.0) == [Ask("b", 0)]
    transfer.tick(104.0)
    assert transfer.sources == ("b",)


def test_without_holders_it_starves_until_one_is_added() -> None:
    transfer = transfer_of(2)
    assert transfer.state == "starved"
    transfer.add(0.0, "a")
    transfer.asks(0.0)
    transfer.dropped(0.1, "a", "connection lost")
    transfer.dropped(0.1, "a", "again")
    assert (transfer.state, len(transfer.drops)) == ("starved", 1)
    assert transfer.asks(0.2) == []
    transfer.add(0.3, "a")
    assert [ask.chunk for ask in transfer.asks(0.3)] == [0, 1]


def test_a_chunk_that_repeats_is_asked_once() -> None:
    hashes = (b"x" * 32, b"y" * 32, b"x" * 32, b"x" * 32)
    transfer = Transfer(Manifest(3 * MIN_CHUNK_BYTES + 5, MIN_CHUNK_BYTES, (*hashes[:3], b"z" * 32)))
    transfer.add(0.0, "a")
    assert transfer.asks(0.0) == [Ask("a", 0), Ask("a", 1), Ask("a", 3)]
    assert transfer.places(0) == [0, 2]
    for chunk in (0, 1, 3):
        assert transfer.arrived(0.1, "a", chunk, sound=True)
    assert transfer.state == "complete"
    assert transfer.done_bytes == 3 * MIN_CHUNK_BYTES + 5


def test_what_the_caller_has_is_not_asked() -> None:
    transfer = transfer_of(4, "a")
    for chunk in (0, 2):
        transfer.already(chunk)
        transfer.already(chunk)
    assert [ask.chunk for ask in transfer.asks(0.0)] == [1, 3]


Behaviour = st.sampled_from(["honest", "liar", "mute", "dies", "refuses", "slow"])


@settings(max_examples=300, deadline=None)
@given(data=st.data(), chunks=st.integers(1, 40), window=st.integers(1, 5))
def test_any_mix_of_failures_with_an_honest_holder_takes_each_chunk_once(
    data: st.DataObject, chunks: int, window: int
) -> None:
    behaviours = data.draw(st.lists(Behaviour, min_size=0, max_size=4))
    behaviours.insert(data.draw(st.integers(0, len(behaviours))), "honest")
    names = [f"{i}-{kind}" for i, kind in enumerate(behaviours)]
    transfer = transfer_of(chunks, *names, window=window)
    now, taken, sent = 0.0, [0] * chunks, [0] * len(names)
    inbox: list[Ask] = []
    for _ in range(200 + 60 * chunks):
        if transfer.state == "complete":
            break
        assert transfer.state == "running"
        asks = transfer.asks(now)
        inbox += asks
        for chunk in range(chunks):
            assert sum(ask.chunk == chunk and ask.source in transfer.sources for ask in inbox) <= MAX_OWING
        for name in names:
            assert sum(ask.source == name for ask in inbox) <= window or name not in transfer.sources
        answers = data.draw(st.booleans())
        if inbox and answers:
            ask = inbox[data.draw(st.integers(0, len(inbox) - 1))]
            index, kind = ask.source.split("-")
            if kind == "slow" and data.draw(st.integers(0, 9)):
                kind = "mute"
            if kind != "mute":
                inbox.remove(ask)
                sent[int(index)] += 1
            if kind in ("dies", "refuses") and sent[int(index)] > 2:
                transfer.dropped(now, ask.source, kind)
            elif kind == "liar" and sent[int(index)] > 1:
                assert not transfer.arrived(now, ask.source, ask.chunk, sound=False)
            elif kind != "mute":
                taken[ask.chunk] += transfer.arrived(now, ask.source, ask.chunk, sound=True)
        else:  # nothing more comes for now: the honest answer before they stall, the others may not
            for ask in [ask for ask in inbox if ask.source.endswith("honest")]:
                inbox.remove(ask)
                taken[ask.chunk] += transfer.arrived(now, ask.source, ask.chunk, sound=True)
            assert transfer.wake_at(now) > now or not transfer.sources
            now = max(now, transfer.wake_at(now))
        transfer.tick(now)
    assert transfer.state == "complete"
    assert taken == [1] * chunks
    assert sum(transfer.bytes_by_source.values()) == transfer.done_bytes == transfer.manifest.size
    assert not [drop for drop in transfer.drops if drop.node.endswith("honest")]
    assert all(drop.lied == drop.node.endswith("liar") for drop in transfer.drops if "failed" in drop.reason)
