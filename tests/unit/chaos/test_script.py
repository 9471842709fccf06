"""The scenario language: what is read, what is refused and how it says so, and that what is written is read again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fabric.chaos import dice, named
from fabric.chaos.faults import FAULTS
from fabric.chaos.reading import parse
from fabric.chaos.script import VERBS, Act, BadScript, Expect, Shape
from fabric.chaos.targets import parse_target
from fabric.chaos.writing import format_scenario, told

TEXT = """\
# A leader dies,
# and its successor.
fabric racks=2 compute=4 session=1500ms zookeepers=3 network=namespaces faults=on
image 4MiB
image 64KiB
load 5/s keep=6 count=2-3 stubborn=0.5 lost-after=1s

at 2s kill leader compute r1 for 5s    # for a while
every 4s stop any compute for 6s
on coordinator.plan-written kill
at 3s cut r1,r2c01 | rest for 6s
at 3s cut r1c01 > zookeeper
at 4s slow r1 | rest drop=0.1 delay=200ms rate=1MiB/s for 2s
at 5s clock r1c01 by=-30s for 3s
for 20s
settle 1m
expect failed=0
expect settle_s<30
"""


def test_every_kind_of_line_is_read() -> None:
    found = parse(TEXT, "mine")
    assert found.about == "A leader dies, and its successor."
    assert (found.shape.racks, found.shape.compute, found.shape.session, found.shape.zookeepers) == (2, 4, 1.5, 3)
    assert (found.shape.network, found.shape.faults) == ("namespaces", True)
    assert found.images == (4 << 20, 64 << 10)
    assert (found.load.per_s, found.load.keep, found.load.count, found.load.stubborn) == (5.0, 6, (2, 3), 0.5)
    assert (found.load.lost_after, found.for_s, found.settle_s) == (1.0, 20.0, 60.0)
    kill, stop, step, cut, one_way, slow, clock = found.acts
    assert kill == Act("kill", parse_target(["leader", "compute", "r1"]), 2.0, for_s=5.0, line=8)
    assert (stop.every_s, stop.at_s, stop.for_s) == (4.0, None, 6.0)
    assert (step.step, step.target) == ("coordinator.plan-written", None)
    assert cut.sides is not None
    assert [str(side) for side in cut.sides] == ["r1,r2c01", "rest"]
    assert (cut.one_way, one_way.one_way) == (False, True)
    assert dict(slow.options) == {"drop": 0.1, "delay": 0.2, "rate": float(1 << 20)}
    assert dict(clock.options) == {"by": -30.0}
    assert found.expects == (Expect("failed", "=", 0.0), Expect("settle_s", "<", 30.0))


def test_what_is_written_is_read_again() -> None:
    found = parse(TEXT, "mine")
    again = parse(format_scenario(found), "mine")
    assert format_scenario(again) == format_scenario(found)
    assert [(a.verb, a.target, a.at_s, a.every_s, a.step, a.for_s, a.options) for a in again.acts] == [
        (a.verb, a.target, a.at_s, a.every_s, a.step, a.for_s, a.options) for a in found.acts
    ]
    assert (again.shape, again.load, again.images, again.expects) == (
        found.shape, found.load, found.images, found.expects,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("break everything", "expected fabric, image, load, at"),
        ("fabric racks=many", "expected a number, found 'many'"),
        ("fabric raks=3", "expected NAME=VALUE of racks"),
        ("fabric network=wifi", "expected one of host, namespaces, proxy, found 'wifi'"),
        ("image large", "expected a size such as 4MiB"),
        ("image 0MiB", "expected a size"),
        ("load fast", "expected a rate such as 5/s"),
        ("load 5/s count=0", "expected a count such as 3 or 1-4"),
        ("load 5/s stubborn=2", "expected a share from 0 to 1"),
        ("at noon kill api", "expected a time such as 5s"),
        ("at 2s", "expected one of kill, stop"),
        ("at 2s smash api", "expected one of kill, stop"),
        ("at 2s kill", "expected a target after kill"),
        ("at 2s kill the king", "expected a node, api, zookeeper"),
        ("at 2s restart api for 3s", "restart has no end"),
        ("at 2s kill api drop=1", "kill takes no options, found 'drop'"),
        ("at 2s cut r1", "expected two sides after cut"),
        ("at 2s cut r1 | nobody", "expected a node"),
        ("at 99s kill api", "expected a time within the 10 s"),
        ("every 0s kill api", "expected a time above 0"),
        ("on coordinator.bored kill", "expected a step, as `fabric chaos steps` lists them"),
        ("on coordinator.plan-written rot holder", "and kill, stop, restart, found"),
        ("expect happiness", "expected a figure such as failed=0"),
        ("for ever and ever", "expected a time alone"),
        ("at 2s kill 4/3 of agents", "or 1/3 of KIND"),
    ],
)
def test_what_is_no_scenario_is_refused_with_its_line(line: str, says: str) -> None:
    with pytest.raises(BadScript) as refused:
        parse(f"# about\n{line}\n", "mine")
    assert "mine, line 2: " in str(refused.value)
    assert says in str(refused.value)


def test_there_is_an_end_to_what_is_read() -> None:
    with pytest.raises(BadScript, match="at most 2000 lines, found 2001"):
        parse("# x\n" * 2001, "mine")


def test_every_named_scenario_is_good_and_says_what_it_is_about() -> None:
    assert len(named.names()) >= 8
    for name in named.names():
        found = named.find(name)
        assert found.about, name
        assert found.acts, name
        assert parse(format_scenario(found), name).acts, name


def test_the_scenarios_in_the_readme_are_good() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    found = [text for text in re.findall(r"^```text\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "\nload " in text]
    assert found
    assert all(parse(text, "README").acts for text in found)


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    with pytest.raises(BadScript, match=r"expected a scenario's name \(.*storm.*\) or a file, found 'nothing'"):
        named.find("nothing")


def test_every_verb_of_the_language_can_be_done() -> None:
    assert set(FAULTS) == set(VERBS)


def test_the_same_seed_draws_the_same_faults_and_another_others() -> None:
    one, same, other = (format_scenario(dice.scenario(seed, 120.0, 5.0)) for seed in (7, 7, 8))
    assert one == same
    assert one != other
    assert "seed 7\n" in one
    assert parse(one, "random").acts


def test_what_a_fabric_can_not_have_is_not_drawn() -> None:
    drawn = [act for seed in range(20) for act in dice.scenario(seed, 120.0, 5.0, Shape()).acts]
    assert {act.verb for act in drawn} >= {"kill", "stop", "rot", "drag"}
    assert not [act for act in drawn if act.verb in ("cut", "slow", "clock") or act.step]
    whole = [act for seed in range(20) for act in dice.scenario(seed, 120.0, 5.0).acts]
    assert {act.verb for act in whole} >= set(VERBS) - {"read-only"}
    assert [act for act in whole if act.step]


@pytest.mark.parametrize("seed", range(20))
def test_random_faults_can_all_be_done_and_leave_the_end_of_the_run_alone(seed: int) -> None:
    drawn = dice.scenario(seed, 60.0, 5.0)
    assert [told(act) for act in parse(format_scenario(drawn), "again").acts] == [told(act) for act in drawn.acts]
    assert all(act.at_s is not None and act.at_s <= 60.0 - dice.QUIET_S for act in drawn.acts)
