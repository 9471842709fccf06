"""The exact sets: always a partition of the target, by name, with the right reasons for who is silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deploy.identity import TOP, parent_of
from deploy.messages import Entry
from deploy.records import Outcome
from deploy.sets import Sets, Unfit, partition
from deploy.states import LifeState


def entry(
    path: str, life: LifeState = "active", outcome: Outcome = "done", reason: str = "", through: str | None = None
) -> Entry:
    above = parent_of(path) if through is None else through
    return Entry(path, "s1", "installed", life, outcome, reason, through=above)


def names(sets: Sets) -> list[str]:
    unfit = (*sets.refused, *sets.failed, *sets.unreachable, *sets.pending)
    return [*sets.active, *sets.passive, *sets.stopped, *(one.path for one in unfit)]


def test_each_outcome_has_its_set() -> None:
    target = ("/r", "/r/a", "/r/b", "/r/c", "/r/d", "/r/e")
    sets = partition(
        target,
        [
            entry("/r"),
            entry("/r/a", "passive"),
            entry("/r/b", "deployed", "refused", "it must be configured"),
            entry("/r/c", "configured", "failed", "its program ended with 1"),
            entry("/r/d", outcome="unreachable", reason="stub s9 is silent"),
            entry("/r/x"),
        ],
        {TOP, "/r"},
    )
    assert sets.active == ("/r",)
    assert sets.passive == ("/r/a",)
    assert sets.refused == (Unfit("/r/b", "it must be configured", "/r", "s1"),)
    assert sets.failed == (Unfit("/r/c", "its program ended with 1", "/r", "s1"),)
    assert sets.unreachable == (Unfit("/r/d", "stub s9 is silent", "/r", "s1"),)
    assert sets.pending == (Unfit("/r/e", "not deployed yet", "/r"),)
    assert sets.surplus == ("/r/x",)
    assert (sets.targeted, sets.counts.targeted, sets.complete) == (6, 6, False)


def test_what_an_order_shut_down_or_uninstalled_is_as_it_was_told_to_be() -> None:
    sets = partition(("/r", "/r/a"), [entry("/r", "configured"), entry("/r/a", "non-existent")], {TOP, "/r"})
    assert (sets.stopped, sets.complete, sets.counts.stopped) == (("/r", "/r/a"), True, 2)


def test_behind_a_silent_initiator_all_is_unreachable_through_the_one_above() -> None:
    target = ("/r", "/r/a", "/r/a/1", "/r/a/1/x", "/r/b")
    sets = partition(target, [entry("/r"), entry("/r/a"), entry("/r/b")], {TOP, "/r"})
    assert sets.active == ("/r", "/r/a", "/r/b")
    assert [(one.path, one.through) for one in sets.unreachable] == [("/r/a/1", "/r"), ("/r/a/1/x", "/r")]
    assert sets.unreachable[0].reason == "its initiator did not answer (/r/a)"


def test_below_an_initiator_that_failed_nothing_can_be_there() -> None:
    sets = partition(("/r", "/r/a"), [entry("/r", "deployed", "failed", "no code")], {TOP})
    assert sets.unreachable == (Unfit("/r/a", "its initiator /r is not active", TOP),)


def test_below_what_is_not_deployed_yet_nothing_is_either() -> None:
    target = ("/r", "/r/a", "/r/a/1", "/r/b", "/r/b/1")
    sets = partition(target, [entry("/r"), entry("/r/a", "non-existent", "pending")], {TOP, "/r"})
    assert [one.path for one in sets.pending] == ["/r/a", "/r/a/1", "/r/b", "/r/b/1"]


def test_a_top_without_an_answer_reaches_nobody() -> None:
    sets = partition(("/r", "/r/a"), [], set())
    assert [one.reason for one in sets.unreachable] == ["its initiator did not answer (the top)"] * 2


def test_the_word_of_its_own_initiator_counts() -> None:
    """After a re-parenting both the old way and the new one may answer."""
    mine, others = entry("/r/a"), entry("/r/a", outcome="unreachable", through="/q")
    for said in ([mine, others], [others, mine]):
        assert partition(("/r/a",), said, {TOP, "/r"}).active == ("/r/a",)
    later = entry("/r/a", outcome="failed", reason="it crashed")
    assert partition(("/r/a",), [mine, later], {TOP, "/r"}).failed


def test_of_an_initiator_that_answered_in_part_the_others_are_unreachable_and_not_pending() -> None:
    target = ("/r", "/r/a", "/r/a/1", "/r/a/2")
    late = entry("/r/a", outcome="unreachable", reason="its initiator did not answer in time for what is below it")
    sets = partition(target, [entry("/r"), entry("/r/a/1"), late], {TOP, "/r", "/r/a"})
    assert sets.active == ("/r", "/r/a/1")
    assert [(one.path, one.through) for one in sets.unreachable] == [("/r/a", "/r"), ("/r/a/2", "/r")]
    assert sets.unreachable[1].reason == "its initiator /r/a is unreachable"


def test_who_says_itself_why_it_asked_nobody_is_quoted() -> None:
    busy = entry("/r/a", outcome="refused", reason="16 commands are under way; ask again", through="/r/a")
    sets = partition(("/r/a/1",), [busy], {TOP, "/r", "/r/a"})
    (one,) = sets.unreachable
    assert (one.path, one.through) == ("/r/a/1", "/r")
    assert one.reason == "its initiator /r/a is there, and did not ask: 16 commands are under way; ask again"
    top = entry(TOP, outcome="refused", reason="16 commands are under way; ask again", through=TOP)
    sets = partition(("/r",), [top], {TOP})
    assert [one.reason for one in sets.unreachable] == ["16 commands are under way; ask again"]
    assert not sets.surplus


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
OUTCOMES = st.sampled_from(["pending", "done", "refused", "failed", "unreachable"])
LIVES = st.sampled_from(["non-existent", "deployed", "configured", "active", "passive"])
ENTRIES = st.builds(
    Entry,
    path=PATHS,
    stub=st.just("s1"),
    env=st.sampled_from(["non-existent", "installed"]),
    life=LIVES,
    outcome=OUTCOMES,
    reason=st.sampled_from(["", "because"]),
    through=st.one_of(st.just(TOP), PATHS),
)


@given(st.lists(PATHS, unique=True), st.lists(ENTRIES), st.sets(st.one_of(st.just(TOP), PATHS)))
def test_it_is_always_a_partition_of_the_target(target: list[str], entries: list[Entry], answered: set[str]) -> None:
    sets = partition(target, entries, answered)
    assert sorted(names(sets)) == sorted(target)
    assert sets.targeted == len(target)
    counts = sets.counts
    assert counts.targeted == sum((counts.active, counts.passive, counts.stopped, counts.pending)) + sum(
        (counts.refused, counts.failed, counts.unreachable)
    )
    assert all(one.reason for one in (*sets.refused, *sets.failed, *sets.unreachable, *sets.pending))
    assert all(one.through == TOP or one.through in answered for one in sets.unreachable if not one.stub)
    assert not set(sets.surplus) & set(target)
