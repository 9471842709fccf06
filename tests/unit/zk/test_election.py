"""Election without servers: the arithmetic of standing, and transcripts of the flow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk.election import RETRY_FIRST_S, RETRY_MAX_S, Candidacy, Request, Standing, standing
from zk.tree import (
    Check,
    Children,
    ConnectionLost,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Existed,
    Exists,
    Listed,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    Op,
    Outcome,
    Overloaded,
    Refused,
    SessionChanged,
    SessionState,
    Set,
    Stat,
)

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST
DIRECTORY, LEADER = "/candidates/compute/r1", "/leaders/compute/r1"
ME = "n1.0000000000000007"  # node n1 in session 7
AHEAD = "n0.0000000000000005-0000000003"

# --- standing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ([], Standing(None, False, None)),
        (["b-0000000001"], Standing(None, False, None)),
        (["a-0000000001"], Standing("a-0000000001", True, None)),
        (["a-0000000002", "b-0000000001"], Standing("a-0000000002", False, "b-0000000001")),
        # The sequence counts, not the name; the nearest before is watched, not the first.
        (["z-0000000001", "a-0000000009", "c-0000000005"], Standing("a-0000000009", False, "c-0000000005")),
        # A create that was repeated: the first counts, the later ones go.
        (
            ["a-0000000007", "b-0000000005", "a-0000000004", "a-0000000009"],
            Standing("a-0000000004", True, None, ("a-0000000007", "a-0000000009")),
        ),
        # What is no candidate's name stands in nobody's way.
        (["-0000000000", "x", "a-1", "b-000000000x", "lock", "a-0000000001"], Standing("a-0000000001", True, None)),
        # A guid may hold dashes and digits.
        (["a-0000000001-0000000002", "a-0000000003"], Standing("a-0000000003", False, "a-0000000001-0000000002")),
    ],
)
def test_standing(children: list[str], expected: Standing) -> None:
    assert standing(children, "a") == expected
    assert standing(reversed(children), "a") == expected


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 10**10 - 1)), unique_by=lambda each: each[1]))
def test_standing_makes_one_chain_with_one_leader(candidates: list[tuple[str, int]]) -> None:
    children = [f"{guid}-{sequence:010d}" for guid, sequence in candidates]
    places = {guid: standing(children, guid) for guid in {guid for guid, _ in candidates}}
    assert sum(place.leads for place in places.values()) == (1 if children else 0)
    for guid, place in places.items():
        own = sorted((name for name in children if name.startswith(f"{guid}-")), key=lambda name: name[-10:])
        assert (place.mine, *place.extras) == tuple(own)
        before = [name for name in children if name[-10:] < own[0][-10:]]
        assert place.predecessor == max(before, key=lambda name: name[-10:], default=None)
        assert place.leads == (not before)


# --- transcripts --------------------------------------------------------------------------------------------------


class Talk:
    """A candidacy and its one open request: `expect` checks the operation, `answer` gives its outcome."""

    def __init__(self, data: bytes = b"me", guid: str = "n1") -> None:
        self.candidacy = Candidacy("compute", "r1", guid, data)
        self.open: Request | None = None

    def take(self, requests: list[Request]) -> Talk:
        assert len(requests) <= 1, "one operation at a time"
        if requests:
            assert self.open is None
            assert requests[0].token.startswith("elect:")
            self.open = requests[0]
        return self

    def session(self, state: SessionState, session: int = 7) -> Talk:
        return self.take(self.candidacy.on_session(SessionChanged(state, session)))

    def swept(self) -> Talk:
        """The first thing in a new session: no leader znode of its own is there."""
        return self.expect(Exists(LEADER)).answer(Existed(None))

    def expect(self, op: Op) -> Talk:
        assert self.open is not None, f"nothing was asked; expected {op}"
        assert self.open.op == op
        return self

    def answer(self, outcome: Outcome) -> Talk:
        assert self.open is not None
        token, self.open = self.open.token, None
        return self.take(self.candidacy.on_outcome(token, outcome))

    def watch(self, path: str) -> Talk:
        return self.take(self.candidacy.on_watch(path))

    def tick(self, now: float) -> Talk:
        return self.take(self.candidacy.on_tick(now))

    def quiet(self) -> Talk:
        assert self.open is None
        return self


def write(data: bytes) -> Multi:
    return Multi((Check(f"{DIRECTORY}/{ME}-0000000000", 0), Set(LEADER, data)))


DONE = Done(())


def stat(czxid: int, owner: int = 7) -> Stat:
    return Stat(czxid, czxid, 0, 0, owner, 0, 0)


def leading() -> Talk:
    talk = Talk().session(CONNECTED).swept()
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000",)))
    return talk.expect(Create(LEADER, b"me", ephemeral=True)).answer(Created(LEADER, stat(40))).quiet()


def waiting() -> Talk:
    talk = Talk().session(CONNECTED).swept()
    talk.expect(Children(DIRECTORY)).answer(Listed((AHEAD, f"{ME}-0000000004")))
    return talk.expect(Exists(f"{DIRECTORY}/{AHEAD}", watch=True)).answer(Existed(stat(3))).quiet()


def test_the_first_of_a_rack_makes_the_directory_stands_and_leads() -> None:
    talk = Talk().session(CONNECTED).swept()
    talk.expect(Children(DIRECTORY)).answer(NoNode(DIRECTORY))
    talk.expect(Create(DIRECTORY)).answer(Created(DIRECTORY, stat(1)))
    talk.expect(Children(DIRECTORY)).answer(Listed(()))
    talk.expect(Create(f"{DIRECTORY}/{ME}-", ephemeral=True, sequence=True)).answer(Created("", stat(2)))
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000",)))
    assert not talk.candidacy.leads
    talk.expect(Create(LEADER, b"me", ephemeral=True)).answer(Created(LEADER, stat(40))).quiet()
    assert (talk.candidacy.leads, talk.candidacy.may_award, talk.candidacy.epoch) == (True, True, 40)


def test_the_next_watches_its_predecessor_and_looks_when_it_is_gone() -> None:
    talk = waiting()
    assert (talk.candidacy.leads, talk.candidacy.epoch) == (False, None)
    talk.watch("/members/compute/r1").quiet()
    talk.watch(f"{DIRECTORY}/{AHEAD}").expect(Children(DIRECTORY))


def test_a_predecessor_gone_before_the_watch_was_armed_is_noticed() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed((AHEAD, f"{ME}-0000000004")))
    talk.expect(Exists(f"{DIRECTORY}/{AHEAD}", watch=True)).answer(Existed(None)).expect(Children(DIRECTORY))


def test_a_dying_leaders_znode_is_waited_for() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed((f"{ME}-0000000004",)))
    talk.expect(Create(LEADER, b"me", ephemeral=True)).answer(NodeExists(LEADER))
    talk.expect(Exists(LEADER, watch=True)).answer(Existed(stat(9, owner=5))).quiet()
    assert not talk.candidacy.leads
    talk.watch(LEADER).expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000004",)))
    talk.expect(Create(LEADER, b"me", ephemeral=True)).answer(Created(LEADER, stat(41)))
    assert talk.candidacy.epoch == 41


def test_a_leaders_znode_that_vanishes_at_once_is_created() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed((f"{ME}-0000000004",))).answer(NodeExists(LEADER))
    talk.expect(Exists(LEADER, watch=True)).answer(Existed(None)).expect(Children(DIRECTORY))


def test_a_lost_reply_to_the_candidates_create_is_found_again() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed(()))
    talk.expect(Create(f"{DIRECTORY}/{ME}-", ephemeral=True, sequence=True)).answer(ConnectionLost(DIRECTORY)).quiet()
    talk.session(SUSPENDED).quiet().session(CONNECTED)
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000",)))
    talk.expect(Create(LEADER, b"me", ephemeral=True))


def test_a_lost_reply_to_the_leaders_create_is_found_again_and_its_data_written() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed((f"{ME}-0000000000",)))
    talk.expect(Create(LEADER, b"me", ephemeral=True)).answer(ConnectionLost(LEADER)).quiet()
    talk.session(SUSPENDED).quiet()
    talk.candidacy.update(b"newer")
    talk.session(CONNECTED).expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000",)))
    talk.expect(Create(LEADER, b"newer", ephemeral=True)).answer(NodeExists(LEADER))
    talk.expect(Exists(LEADER, watch=True)).answer(Existed(stat(40, owner=7)))
    assert talk.candidacy.epoch == 40
    talk.expect(write(b"newer")).answer(DONE).quiet()
    talk.watch(LEADER).quiet()


def test_candidates_of_a_repeated_create_are_deleted_but_the_first() -> None:
    talk = Talk().session(CONNECTED).swept()
    talk.answer(Listed((f"{ME}-0000000000", f"{ME}-0000000001", f"{ME}-0000000002")))
    talk.expect(Delete(f"{DIRECTORY}/{ME}-0000000001")).answer(Deleted())
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000", f"{ME}-0000000002")))
    talk.expect(Delete(f"{DIRECTORY}/{ME}-0000000002")).answer(NoNode("gone already"))
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000",))).expect(Create(LEADER, b"me", ephemeral=True))


def test_what_was_asked_for_in_an_earlier_session_and_done_in_this_one_is_removed() -> None:
    """An operation may be submitted late, after something else that had to be on the disk first."""
    old, others = "n1.0000000000000006-0000000000", "n1.x.0000000000000006-0000000001"
    talk = Talk().session(CONNECTED)
    talk.expect(Exists(LEADER)).answer(Existed(stat(39, owner=7))).expect(Delete(LEADER)).answer(Deleted())
    talk.swept().expect(Children(DIRECTORY)).answer(Listed((others, old, "n1-0000000002")))
    talk.expect(Delete(f"{DIRECTORY}/{old}")).answer(Deleted())
    talk.expect(Children(DIRECTORY)).answer(Listed((others, "n1-0000000002")))
    talk.expect(Create(f"{DIRECTORY}/{ME}-", ephemeral=True, sequence=True))


def test_the_leader_znode_of_its_last_session_is_left_to_vanish() -> None:
    talk = Talk().session(CONNECTED)
    talk.expect(Exists(LEADER)).answer(Existed(stat(39, owner=6))).expect(Children(DIRECTORY))


def test_suspended_it_leads_but_awards_nothing() -> None:
    talk = leading().session(SUSPENDED).quiet()
    assert (talk.candidacy.leads, talk.candidacy.may_award, talk.candidacy.epoch) == (True, False, 40)
    talk.session(CONNECTED).quiet()
    assert (talk.candidacy.leads, talk.candidacy.may_award, talk.candidacy.epoch) == (True, True, 40)


def test_a_lost_session_takes_all_and_the_next_begins_anew() -> None:
    talk = leading().session(SUSPENDED).session(LOST).quiet()
    assert (talk.candidacy.leads, talk.candidacy.may_award, talk.candidacy.epoch) == (False, False, None)
    talk.session(CONNECTED, 8).swept().expect(Children(DIRECTORY)).answer(Listed(()))
    talk.expect(Create(f"{DIRECTORY}/n1.0000000000000008-", ephemeral=True, sequence=True))


def test_a_new_session_begins_anew_even_if_nobody_said_lost() -> None:
    talk = leading().session(CONNECTED, 8).swept().expect(Children(DIRECTORY))
    assert not talk.candidacy.leads


def test_answers_to_what_an_earlier_session_asked_are_ignored() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed((f"{ME}-0000000000",)))
    stale, talk.open = talk.open, None
    assert stale is not None
    talk.session(SUSPENDED).session(LOST).session(CONNECTED, 8).swept().expect(Children(DIRECTORY))
    assert talk.candidacy.on_outcome(stale.token, Created(LEADER, stat(40))) == []
    assert talk.candidacy.on_outcome("offer:1", Deleted()) == []
    assert not talk.candidacy.leads


def test_session_ids_are_signed_in_the_protocol_and_names_are_not() -> None:
    talk = Talk().session(CONNECTED, -1).swept().answer(Listed(()))
    talk.expect(Create(f"{DIRECTORY}/n1.ffffffffffffffff-", ephemeral=True, sequence=True))


def test_a_watch_that_fires_while_an_answer_is_awaited_is_not_forgotten() -> None:
    talk = Talk().session(CONNECTED).swept().answer(Listed((AHEAD, f"{ME}-0000000004")))
    talk.expect(Exists(f"{DIRECTORY}/{AHEAD}", watch=True)).watch(f"{DIRECTORY}/{AHEAD}")
    talk.answer(Existed(stat(3))).expect(Children(DIRECTORY))


def test_a_watch_that_fires_while_suspended_is_looked_at_when_connected() -> None:
    talk = waiting().session(SUSPENDED).watch(f"{DIRECTORY}/{AHEAD}").quiet()
    talk.session(CONNECTED).expect(Children(DIRECTORY))


@pytest.mark.parametrize("trouble", [Overloaded("/"), Refused("/"), ConnectionLost("/")], ids=str)
def test_trouble_while_connected_is_tried_again_with_a_growing_bounded_pause(trouble: Outcome) -> None:
    talk = Talk()
    assert talk.candidacy.next_deadline is None
    talk.session(CONNECTED).swept()
    assert talk.candidacy.next_deadline is None
    now = 1000.0
    pauses: list[float] = []
    for _ in range(8):
        talk.answer(trouble).quiet()
        assert talk.candidacy.next_deadline == 0.0, "it has no clock: now, so that a tick sets the time"
        talk.tick(now).quiet()
        deadline = talk.candidacy.next_deadline
        assert deadline is not None
        pauses.append(round(deadline - now, 3))
        talk.tick(deadline - 0.01).quiet()
        now = deadline
        talk.tick(now).expect(Children(DIRECTORY))
        assert talk.candidacy.next_deadline is None
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert (pauses[0], pauses[-1]) == (RETRY_FIRST_S, RETRY_MAX_S)


def test_trouble_after_a_success_starts_with_a_short_pause_again_only_when_settled() -> None:
    talk = Talk().session(CONNECTED).swept()
    for now in (10.0, 20.0):  # looking succeeds each time, standing never does: the pause must grow
        talk.answer(Listed(())).answer(Refused("/")).quiet().tick(now)
        pause = talk.candidacy.next_deadline
        talk.tick(now + 9)
    assert pause == 20.0 + 2 * RETRY_FIRST_S
    talk.answer(Listed((f"{ME}-0000000000",))).answer(Created(LEADER, stat(40))).quiet()
    talk.take(talk.candidacy.update(b"x")).answer(Overloaded("/")).tick(50.0)
    assert talk.candidacy.next_deadline == 50.0 + RETRY_FIRST_S


def test_no_retry_is_due_while_suspended() -> None:
    talk = Talk().session(CONNECTED).swept().answer(ConnectionLost("/")).session(SUSPENDED)
    assert talk.candidacy.next_deadline is None
    talk.tick(1e9).quiet()
    talk.session(CONNECTED).expect(Children(DIRECTORY))


def test_updates_are_written_while_leading_and_only_the_last_of_many() -> None:
    talk = leading()
    talk.take(talk.candidacy.update(b"me")).quiet()
    talk.take(talk.candidacy.update(b"1")).expect(write(b"1"))
    talk.take(talk.candidacy.update(b"2")).take(talk.candidacy.update(b"3"))
    talk.answer(DONE).expect(write(b"3")).answer(DONE).quiet()


def test_an_update_before_leading_is_what_the_leader_znode_is_created_with() -> None:
    talk = waiting()
    talk.take(talk.candidacy.update(b"new")).quiet()
    talk.watch(f"{DIRECTORY}/{AHEAD}").answer(Listed((f"{ME}-0000000004",)))
    talk.expect(Create(LEADER, b"new", ephemeral=True))


def test_an_update_while_suspended_or_lost_on_the_way_is_written_when_connected() -> None:
    talk = leading().session(SUSPENDED)
    talk.take(talk.candidacy.update(b"1")).quiet()
    talk.session(CONNECTED).expect(write(b"1")).answer(ConnectionLost("/")).quiet()
    talk.session(SUSPENDED).session(CONNECTED).expect(write(b"1")).answer(DONE).quiet()


@pytest.mark.parametrize("index", [0, 1])
def test_when_someone_deleted_by_hand_what_it_leads_by_it_stands_anew(index: int) -> None:
    talk = leading()
    talk.take(talk.candidacy.update(b"1")).answer(MultiFailed(LEADER, index, NoNode(LEADER)))
    assert not talk.candidacy.leads
    if index == 0:
        talk.expect(Exists(LEADER)).answer(Existed(stat(40))).expect(Delete(LEADER)).answer(Deleted())
    talk.swept()
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000",)))
    talk.expect(Create(LEADER, b"1", ephemeral=True)).answer(Created(LEADER, stat(50))).quiet()
    assert talk.candidacy.epoch == 50


def test_resigning_deletes_the_leader_znode_then_the_candidate() -> None:
    talk = leading()
    talk.take(talk.candidacy.resign()).expect(Exists(LEADER))
    assert (talk.candidacy.leads, talk.candidacy.may_award, talk.candidacy.epoch) == (False, False, None)
    talk.answer(Existed(stat(40))).expect(Delete(LEADER)).answer(Deleted())
    talk.expect(Exists(LEADER)).answer(Existed(stat(60, owner=5)))
    talk.expect(Children(DIRECTORY)).answer(Listed((f"{ME}-0000000000", AHEAD)))
    talk.expect(Delete(f"{DIRECTORY}/{ME}-0000000000")).answer(Deleted())
    assert not talk.candidacy.resigned
    talk.expect(Children(DIRECTORY)).answer(Listed((AHEAD,))).quiet()
    assert talk.candidacy.resigned
    talk.take(talk.candidacy.resign()).take(talk.candidacy.update(b"x")).session(SUSPENDED).session(CONNECTED).quiet()
    talk.session(CONNECTED, 8).swept().expect(Children(DIRECTORY)).answer(Listed((AHEAD,))).quiet()
    assert talk.candidacy.resigned


def test_resigning_while_suspended_is_done_when_connected() -> None:
    talk = leading().session(SUSPENDED)
    talk.take(talk.candidacy.resign()).quiet()
    assert not talk.candidacy.leads
    talk.session(CONNECTED).expect(Exists(LEADER)).answer(Existed(stat(40))).expect(Delete(LEADER))


def test_resigning_without_a_session_leaves_nothing_to_do() -> None:
    talk = Talk()
    talk.take(talk.candidacy.resign()).quiet()
    assert talk.candidacy.resigned


def test_resigning_where_nobody_ever_stood_makes_nothing() -> None:
    talk = Talk().session(CONNECTED)
    talk.take(talk.candidacy.resign()).answer(Existed(None)).expect(Children(DIRECTORY)).answer(
        NoNode(DIRECTORY)
    ).quiet()
    assert talk.candidacy.resigned


@pytest.mark.parametrize("answers", range(4))
def test_resigning_in_the_middle_withdraws_what_is_made_meanwhile(answers: int) -> None:
    talk = Talk().session(CONNECTED).swept()
    for outcome in (Listed(()), Created("", stat(2)), Listed((f"{ME}-0000000000",)))[:answers]:
        talk.answer(outcome)
    last = (Listed(()), Created("", stat(2)), Listed((f"{ME}-0000000000",)), Created(LEADER, stat(40)))[answers]
    talk.take(talk.candidacy.resign()).answer(last).expect(Exists(LEADER)).answer(Existed(stat(40)))
    talk.expect(Delete(LEADER)).answer(Deleted()).swept().expect(Children(DIRECTORY))


@pytest.mark.parametrize("bad", [{"rack": "a/b"}, {"rack": ""}, {"guid": "a/b"}, {"guid": ""}], ids=str)
def test_names_that_would_break_a_path_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected a non-empty name without '/'"):
        Candidacy("compute", bad.get("rack", "r1"), bad.get("guid", "n1"), b"")
