"""What rules mean for pairs of endpoints, and which can't be."""

from __future__ import annotations

import msgspec
import pytest

from fabric.net.rules import HEALTHY, LOST, MAX_DELAY_MS, MAX_RULES, BadRule, Names, Rule, Verdict, cut

NAMES = Names(
    ("operator", "api", "zookeeper-1", "zookeeper-2", "r1c01", "r1c02", "r2c01"),
    {"r1": ("r1c01", "r1c02"), "r2": ("r2c01",), "zookeeper": ("zookeeper-1", "zookeeper-2")},
)


def test_no_rules_no_faults() -> None:
    assert NAMES.table(()) == {}


def test_a_rule_is_one_way_and_a_cut_is_two() -> None:
    assert NAMES.table([Rule(("r1c01",), ("api",), LOST)]) == {("r1c01", "api"): LOST}
    assert NAMES.table(cut(["r1c01"], ["api"])) == {("r1c01", "api"): LOST, ("api", "r1c01"): LOST}


def test_groups_stand_for_their_endpoints() -> None:
    pairs = NAMES.table([Rule(("r1",), ("zookeeper",), LOST)])
    assert set(pairs) == {(node, f"zookeeper-{n}") for node in ("r1c01", "r1c02") for n in (1, 2)}


def test_the_rest_is_who_the_other_side_does_not_name() -> None:
    rest = {"operator", "api", "zookeeper-1", "zookeeper-2", "r2c01"}
    pairs = NAMES.table(cut(["r1"], ["rest"]))
    assert set(pairs) == {pair for node in NAMES.groups["r1"] for one in rest for pair in ((node, one), (one, node))}


def test_nobody_is_cut_off_from_itself() -> None:
    pairs = NAMES.table([Rule(("all",), ("all",), LOST)])
    assert len(pairs) == len(NAMES.endpoints) * (len(NAMES.endpoints) - 1)


def test_all_rules_about_a_pair_hold_in_any_order() -> None:
    slow, narrow = Verdict(drop=0.5, delay_ms=100, jitter_ms=10, bytes_per_s=9000), Verdict(0.5, 50, 0, 5000)
    rules = [Rule(("r1c01",), ("all",), slow), Rule(("r1",), ("api",), narrow)]
    both = Verdict(0.75, 150, 10, 5000)
    assert NAMES.table(rules)["r1c01", "api"] == both == NAMES.table(rules[::-1])["r1c01", "api"]
    assert NAMES.table(rules)["r1c01", "r2c01"] == slow
    assert HEALTHY.and_also(slow) == slow
    assert slow.and_also(Verdict(delay_ms=MAX_DELAY_MS)).delay_ms == MAX_DELAY_MS


def test_a_rule_that_changes_nothing_costs_nothing() -> None:
    assert NAMES.table([Rule(("all",), ("all",), HEALTHY)]) == {}


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([Rule(("r3c01",), ("api",), LOST)], r"operator, api, zookeeper-1, …, r1, r2, zookeeper, .* found 'r3c01'"),
        ([Rule(("rest",), ("rest",), LOST)], '"rest" on one side'),
        ([Rule(("api",), ("r1",), LOST)] * (MAX_RULES + 1), f"at most {MAX_RULES} rules, found {MAX_RULES + 1}"),
    ],
)
def test_what_can_not_be_meant_is_refused(rules: list[Rule], why: str) -> None:
    with pytest.raises(BadRule, match=why):
        NAMES.table(rules)


@pytest.mark.parametrize("bad", [{"drop": 1.1}, {"drop": -0.1}, {"delay_ms": 1e6}, {"bytes_per_s": 5}, {"dorp": 1}])
def test_verdicts_from_outside_are_checked(bad: dict[str, float]) -> None:
    data = msgspec.json.encode({"source": ["r1"], "target": ["r2"], "verdict": bad})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=Rule)


def test_rules_in_words() -> None:
    both = Verdict(0.25, 50, 5, 2000)
    rules = (*cut(["r1"], ["api", "r2"]), Rule(("all",), ("all",), both), Rule(("r1",), ("r2",), HEALTHY))
    assert [str(rule) for rule in rules] == [
        "r1 -> api r2: all lost",
        "api r2 -> r1: all lost",
        "all -> all: 0.25 lost, 50 ms late, up to 5 ms of jitter, 2000 bytes/s",
        "r1 -> r2: well",
    ]
