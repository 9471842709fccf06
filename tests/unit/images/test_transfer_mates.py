"""The rules of a transfer with mates: what they have is asked of them, what nobody has of the stripe's parent."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.images.manifest import MIN_CHUNK_BYTES, Manifest
from fabric.images.mates import STRIPES, bits
from fabric.images.transfer import (
    MATE_PATIENCE_S,
    MATE_STALL_S,
    MATES_WINDOW,
    MAX_OWING,
    NEWS_EVERY_S,
    STALL_S,
    WINDOW,
    Ask,
    Transfer,
)


def transfer_of(chunks: int) -> Transfer:
    transfer = Transfer(
        Manifest(chunks * MIN_CHUNK_BYTES, MIN_CHUNK_BYTES, tuple(bytes([i]) * 32 for i in range(chunks)))
    )
    transfer.add(0.0, "holder")
    return transfer


def asked(transfer: Transfer, now: float = 0.0) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for ask in transfer.asks(now):
        found.setdefault(ask.source, []).append(ask.chunk)
    return found


def test_what_a_mate_has_is_asked_of_it() -> None:
    transfer = transfer_of(8)
    transfer.add_mate(0.0, "m", bits([False, True, True, True, False, False, False, False]))
    assert asked(transfer) == {"m": [1, 2, 3], "holder": [0, 4]}, "and less of a holder than without mates"
    assert transfer.arrived(0.1, "holder", 0, sound=True)
    assert asked(transfer, 0.1) == {"holder": [5]}


def test_mates_have_a_window_together() -> None:
    transfer = transfer_of(4 * MATES_WINDOW)
    for name in "mno":
        transfer.add_mate(0.0, name, bits([True] * 4 * MATES_WINDOW))
    assert [len(chunks) for chunks in asked(transfer).values()] == [MATES_WINDOW // 3] * 3
    for number in range(2 * MATES_WINDOW):
        transfer.add_mate(0.0, f"m{number}", bits([True] * 4 * MATES_WINDOW))
    assert [len(chunks) for chunks in asked(transfer).values()] == [1] * 2 * MATES_WINDOW


def test_two_that_have_it_share() -> None:
    transfer = transfer_of(8)
    for name in "mn":
        transfer.add_mate(0.0, name, bits([True] * 8))
    assert asked(transfer) == {"m": [0, 2, 4, 6], "n": [1, 3, 5, 7]}


def test_what_nobody_has_is_asked_of_the_parent_of_its_stripe() -> None:
    transfer = transfer_of(2 * STRIPES)
    transfer.add_mate(0.0, "m")
    transfer.lead(["m" if stripe == 3 else "unknown" if stripe == 4 else None for stripe in range(STRIPES)])
    found = asked(transfer)
    assert found["m"] == [3, 3 + STRIPES]
    assert found["holder"] == [0, 1], "in order"
    for chunk in (0, 1):
        transfer.arrived(0.1, "holder", chunk, sound=True)
        found = asked(transfer, 0.1)
    assert found["holder"] == [4], "nobody is connected to the parent of stripe 4"


def test_what_a_dropped_mate_owed_comes_from_the_holders() -> None:
    transfer = transfer_of(4)
    transfer.add_mate(0.0, "m", bits([True] * 4))
    assert asked(transfer) == {"m": [0, 1, 2, 3]}
    transfer.dropped(0.1, "m", "connection lost")
    assert asked(transfer, 0.1) == {"holder": [0, 1, 2, 3]}


def test_a_mate_that_waits_is_kept_and_a_silent_one_is_dropped() -> None:
    transfer = transfer_of(8)
    for name in ("waits", "silent"):
        transfer.add_mate(0.0, name, bits([True] * 8))
    transfer.asks(0.0)
    transfer.waits(MATE_STALL_S - 1, "waits")
    assert transfer.wake_at(MATE_STALL_S - 1) == MATE_STALL_S
    transfer.tick(MATE_STALL_S)
    assert [drop.node for drop in transfer.drops] == ["silent"]


def test_mates_that_wait_for_ever_are_given_up_together() -> None:
    transfer = transfer_of(8)
    for name in ("m", "n"):
        transfer.add_mate(0.0, name, bits([True] * 8))
    transfer.asks(0.0)
    for step in range(1, 11):
        for name in ("m", "n"):
            transfer.waits(step * STALL_S / 10, name)
        transfer.tick(step * STALL_S / 10)
    assert sorted(drop.node for drop in transfer.drops) == ["m", "n"]
    assert len(asked(transfer, STALL_S)["holder"]) == WINDOW


def test_a_mate_that_sends_slowly_is_kept_and_so_are_those_that_wait_for_it() -> None:
    transfer = transfer_of(8)
    for name in ("slow", "waits"):
        transfer.add_mate(0.0, name, bits([True] * 8))
    transfer.asks(0.0)
    for step in range(1, 11):
        transfer.sends(step * STALL_S / 5, "slow")
        transfer.waits(step * STALL_S / 5, "waits")
        transfer.tick(step * STALL_S / 5)
    assert transfer.drops == []


def test_an_idle_holder_gives_what_a_mate_owes_for_too_long() -> None:
    transfer = transfer_of(2)
    transfer.add_mate(0.0, "m", bits([True] * 2))
    assert asked(transfer) == {"m": [0, 1]}
    assert asked(transfer, MATE_PATIENCE_S / 2) == {}
    assert asked(transfer, MATE_PATIENCE_S) == {"holder": [0]}


def test_who_has_given_all_is_asked_what_it_has_now() -> None:
    transfer = transfer_of(20)
    transfer.add_mate(0.0, "m", bits([True]))
    assert transfer.news_of(NEWS_EVERY_S) == ["m"], "nothing is planned yet"
    assert transfer.asks(0.6)[0] == Ask("m", 0)
    assert transfer.news_of(2.0) == []
    transfer.arrived(2.0, "m", 0, sound=True)
    assert transfer.news_of(2.0) == ["m"]
    assert transfer.news_of(2.0 + NEWS_EVERY_S / 2) == []


def test_who_is_not_needed_can_leave_unless_it_owes() -> None:
    transfer = transfer_of(2)
    transfer.add_mate(0.0, "m", bits([True]))
    transfer.add_mate(0.0, "n")
    transfer.asks(0.0)
    assert not transfer.leave("m")
    assert transfer.leave("n")
    assert transfer.sources == ("holder", "m")


Behaviour = st.sampled_from(["honest", "liar", "mute", "dies", "waits"])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), chunks=st.integers(1, 30))
def test_any_mix_of_mates_with_an_honest_holder_takes_each_chunk_once(data: st.DataObject, chunks: int) -> None:
    transfer = transfer_of(chunks)
    kinds = {f"{i}": kind for i, kind in enumerate(data.draw(st.lists(Behaviour, max_size=4)))}
    for name in kinds:
        transfer.add_mate(0.0, name, data.draw(st.binary(max_size=4)))
    transfer.lead([data.draw(st.sampled_from([None, *kinds])) for _ in range(STRIPES)])
    kinds["holder"] = "honest"
    now, taken = 0.0, [0] * chunks
    inbox: list[Ask] = []
    for _ in range(400 + 60 * chunks):
        if transfer.state == "complete":
            break
        assert transfer.state == "running"
        inbox = [one for one in inbox if one.source in transfer.sources] + transfer.asks(now)
        for chunk in range(chunks):
            assert sum(one.chunk == chunk for one in inbox) <= MAX_OWING
        if inbox and data.draw(st.booleans()):
            ask = inbox[data.draw(st.integers(0, len(inbox) - 1))]
            kind = kinds[ask.source]
            if kind in ("honest", "liar"):
                inbox.remove(ask)
                taken[ask.chunk] += transfer.arrived(now, ask.source, ask.chunk, sound=kind == "honest")
            elif kind == "dies":
                transfer.dropped(now, ask.source, kind)
            elif kind == "waits":
                transfer.waits(now, ask.source)
        now += 0.3
        for one in inbox:  # the honest ones are not slow
            if kinds[one.source] == "honest":
                taken[one.chunk] += transfer.arrived(now, one.source, one.chunk, sound=True)
        inbox = [one for one in inbox if kinds[one.source] != "honest"]
        transfer.tick(now)
    assert transfer.state == "complete"
    assert taken == [1] * chunks
