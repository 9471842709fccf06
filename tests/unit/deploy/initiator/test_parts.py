"""The pure parts and the small ones: steps, watermarks, deadlines, rows and their counts."""

from __future__ import annotations

import itertools

import pytest

from deploy.initiator.agenda import Agenda
from deploy.initiator.kid import NO_PRINTS, NOTHING, PENDING, Kid, Subtree
from deploy.initiator.placement import Place
from deploy.initiator.steps import Goal, next_step, rework
from deploy.initiator.watermark import ALL, child_until, frontier
from deploy.messages import Counts, Problem, SubtreeReport
from deploy.records import Prints, StubRef
from deploy.states import COMMANDS, ENV_STATES, LIFE_STATES, EnvState, LifeState, refusal

STUB = StubRef("s", "tcp://s:1/00000001")

# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "life", "goal", "step"),
    [
        ("non-existent", "non-existent", Goal(), "deploy"),
        ("code loaded", "non-existent", Goal(), "deploy"),
        ("installed", "active", Goal(), None),
        ("installed", "active", Goal("passive"), "deactivate"),
        ("installed", "passive", Goal(), "activate"),
        ("installed", "configured", Goal(), "start"),
        ("installed", "deployed", Goal(), "configure-managent"),
        ("installed", "active", Goal("configured"), "shutdown"),
        ("installed", "active", Goal(check=True), "inspect"),
        ("installed", "configured", Goal(check=True), "inspect"),
        ("non-existent", "non-existent", Goal(check=True), "deploy"),
        ("installed", "active", Goal(rework="managent"), "shutdown"),
        ("installed", "configured", Goal(rework="managent"), "configure-managent"),
        ("installed", "passive", Goal("passive", rework="all"), "shutdown"),
        ("installed", "configured", Goal(rework="all"), "uninstall"),
        ("non-existent", "non-existent", Goal(rework="all"), "deploy"),
        ("installed", "active", Goal(restart=True), "restart"),
        ("installed", "configured", Goal(restart=True), "start"),
        ("installed", "active", Goal("non-existent"), "shutdown"),
        ("installed", "configured", Goal("non-existent"), "uninstall"),
        ("non-existent", "non-existent", Goal("non-existent"), None),
        ("non-existent", "non-existent", Goal("non-existent", unsure=True), "uninstall"),
        ("installed", "active", Goal("non-existent", clear=True), "clear"),
        ("installed", "passive", Goal("non-existent", clear=True), "activate"),
        ("installed", "configured", Goal("non-existent", clear=True), "start"),
        ("non-existent", "non-existent", Goal("non-existent", clear=True), "deploy"),
    ],
)
def test_the_next_command(env: EnvState, life: LifeState, goal: Goal, step: str | None) -> None:
    assert next_step(env, life, goal) == step


REACHABLE = [
    (env, life)
    for env, life in itertools.product(ENV_STATES, LIFE_STATES)
    if (life == "non-existent") == (env != "installed")
]
WANTS: tuple[LifeState, ...] = ("active", "passive", "configured", "non-existent")


@pytest.mark.parametrize("want", WANTS)
@pytest.mark.parametrize("work", ["", "managent", "all"])
@pytest.mark.parametrize(("env", "life"), REACHABLE)
def test_from_every_state_allowed_commands_lead_to_the_goal(
    env: EnvState, life: LifeState, work, want: LifeState
) -> None:
    for _ in range(6):
        step = next_step(env, life, Goal(want, rework=work))
        if step is None:
            break
        assert step not in ("inspect", "clear")
        assert refusal(step, env, life) is None
        row = COMMANDS[step]
        env, life = row.env_after or env, row.life_after or life
        if step in ("deploy", "configure-managent"):
            work = ""
    else:
        pytest.fail("no end")
    assert life == want


def test_what_an_inspection_means() -> None:
    have = Prints("a" * 16, "b" * 16, "c" * 16)
    assert rework(have, have) == ""
    assert rework(have, Prints("a" * 16, "b" * 16, "d" * 16)) == "managent"
    assert rework(have, Prints("a" * 16, "d" * 16, "c" * 16)) == "all"
    assert rework(have, Prints("d" * 16, "b" * 16, "d" * 16)) == "all"


# --- watermarks ------------------------------------------------------------------------------------------------------


def test_a_watermark_names_the_last_child_that_is_reached() -> None:
    assert frontier("/site", "") is ALL
    assert frontier("/site", "/site/r2/n5") == "r2"
    assert frontier("/site", "/site/r2") == "r2"
    assert frontier("/site", "/site") == ""
    assert frontier("", "/site/r2") == "site"
    assert frontier("/site", "/sites/r2") == ""


def test_what_a_child_is_told_of_the_watermark() -> None:
    assert child_until("/site", "r1", "/site/r2/n5") == ""
    assert child_until("/site", "r2", "/site/r2/n5") == "/site/r2/n5"
    assert child_until("/site", "r2", "/site/r2") == "/site/r2"
    assert child_until("/site", "r2", "") == ""


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_deadlines_come_in_order_and_once() -> None:
    agenda = Agenda()
    for when, name in ((3.0, "c"), (1.0, "a"), (2.0, "b")):
        agenda.set(("x", name), when)
    agenda.by(("x", "c"), 2.5)
    agenda.by(("x", "a"), 9.0)
    agenda.drop(("x", "b"))
    assert agenda.next == 1.0
    assert list(agenda.due(2.5)) == [("x", "a"), ("x", "c")]
    assert agenda.next is None
    assert list(agenda.due(99.0)) == []


def test_a_deadline_that_is_set_again_by_its_own_handler_waits_for_the_next_tick() -> None:
    agenda = Agenda()
    agenda.set(("x", ""), 1.0)
    seen = 0
    for key in agenda.due(1.0):
        seen += 1
        agenda.set(key, 1.0)
    assert seen == 1
    assert agenda.next == 1.0


# --- rows and counts -------------------------------------------------------------------------------------------------


def kid(**more) -> Kid:
    place = Place("/a/k", "k", 0, "count", STUB, (STUB,))
    given = {"place": place, "covered": True, **more}
    return Kid("k", "/a/k", 0, given.pop("place"), "s", 1, **given)


def report(settled: bool = True, counts: Counts = Counts(3, 2, failed=1), *problems: Problem) -> SubtreeReport:  # noqa: B008
    return SubtreeReport("/a", "/a/k", "tcp://s:1/00000001", 5, "r", 1, settled, counts, problems)


UP = {"env": "installed", "life": "active", "outcome": "done"}


@pytest.mark.parametrize(
    ("child", "line", "is_open"),
    [
        (kid(covered=False), NOTHING, False),
        (kid(), PENDING, True),
        (kid(**UP), (1, 1, 0, 0, 0, 0, 0, 0), False),
        (kid(**{**UP, "life": "passive"}), (1, 0, 1, 0, 0, 0, 0, 0), False),
        (kid(**{**UP, "life": "configured"}), (1, 0, 0, 0, 0, 0, 0, 1), False),
        (kid(outcome="refused"), (1, 0, 0, 0, 1, 0, 0, 0), False),
        (kid(outcome="failed"), (1, 0, 0, 0, 0, 1, 0, 0), False),
        (kid(outcome="unreachable"), (1, 0, 0, 0, 0, 0, 1, 0), False),
        (kid(place=None), NOTHING, True),
        (kid(place=None, outcome="failed"), NOTHING, False),
        (kid(**UP, initiator=True), PENDING, True),
        (kid(**UP, initiator=True, subtree=Subtree(report=report())), (4, 3, 0, 0, 0, 1, 0, 0), False),
        (kid(**UP, initiator=True, subtree=Subtree(report=report(False))), (4, 3, 0, 0, 0, 1, 0, 0), True),
        (kid(outcome="unreachable", initiator=True, subtree=Subtree(below=3)), (4, 0, 0, 0, 0, 0, 4, 0), False),
        (kid(outcome="failed", initiator=True, subtree=Subtree(below=3)), (4, 0, 0, 0, 0, 1, 3, 0), False),
    ],
)
def test_what_a_child_counts(child: Kid, line, is_open: bool) -> None:
    assert child.count(False) == (line, is_open)
    assert line[0] == sum(line[1:])


def test_an_initiator_that_cannot_have_its_children_counts_as_failed() -> None:
    said = report(True, Counts(), Problem("/a/k", "failed", "in a circle"))
    child = kid(**UP, initiator=True, subtree=Subtree(report=said))
    assert child.said_of_itself() == "in a circle"
    assert child.count(False) == ((1, 0, 0, 0, 0, 1, 0, 0), False)


def test_removing_everything_what_is_left_counts() -> None:
    assert kid(place=None, outcome="unreachable").count(True) == ((1, 0, 0, 0, 0, 0, 1, 0), False)


def test_a_row_is_made_anew_only_when_something_changed() -> None:
    child = kid(**UP)
    row = child.as_row(STUB)
    assert child.as_row(STUB) is row
    assert (row.name, row.stub, row.prints, row.life) == ("k", STUB, NO_PRINTS, "active")
    child.row = None
    assert child.as_row(STUB) is not row
    assert child.as_row(StubRef("t", "tcp://t:1/00000001")).stub.name == "t"


def test_a_row_says_no_more_that_it_has_a_subtree_when_that_is_removed() -> None:
    child = kid(**UP, initiator=True)
    assert child.as_row(STUB).initiator
    child.subtree.cleared, child.row = True, None
    assert not child.as_row(STUB).initiator
