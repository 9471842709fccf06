"""A description expands to the managents that it stands for, in the order of the tree, or to a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from deploy.configuration import Children, InitiatorRole
from deploy.expansion import BadTree, Made, Undescribed, Unloaded, Want, expand
from deploy.identity import MAX_DEPTH, depth
from deploy.matching import with_told
from deploy.records import Prints, StubRef

LEAF = Made(Prints(managent="1" * 16), None)
TEN = InitiatorRole((Children("count", count=10, prefix="n"),))
REPOSITORY = "http://r/"


def initiator(role: InitiatorRole) -> Made:
    return Made(Prints(managent="2" * 16), role)


class Levels:
    """A description by level: the n-th of `made` for paths of n parts."""

    generation = "g1"

    def __init__(self, *made: Made) -> None:
        self.made_at = made

    def made(self, identifier: str) -> Made:
        level = depth(identifier)
        if level > len(self.made_at):
            raise Undescribed(f"no entry matches {identifier}")
        return self.made_at[level - 1]


STUB = StubRef("s1", "tcp://127.0.0.1:1/" + "a" * 32)
TOP_ROLE = InitiatorRole((Children("names", names=("region1",)),))


def expanded(descriptions: Mapping[str, Levels | Unloaded]) -> tuple[list[Want], frozenset[str]]:
    done = expand(TOP_ROLE, REPOSITORY, descriptions, [STUB])
    return list(done.wants), done.missing


def test_the_order_is_depth_first_an_initiator_before_its_children() -> None:
    two = InitiatorRole((Children("count", count=2, prefix="n"),))
    wants, missing = expanded({REPOSITORY: Levels(initiator(two), initiator(two), LEAF)})
    assert [(want.path, want.initiator) for want in wants] == [
        ("/region1", True),
        ("/region1/n1", True),
        ("/region1/n1/n1", False),
        ("/region1/n1/n2", False),
        ("/region1/n2", True),
        ("/region1/n2/n1", False),
        ("/region1/n2/n2", False),
    ]
    assert missing == frozenset()


def test_a_start_command_or_lease_that_an_initiator_tells_changes_its_childrens_prints() -> None:
    """As the boot stub's resolver says it; else a new one would never be brought to children that are there."""

    def of(**told: Any) -> list[Prints]:
        role = InitiatorRole((Children("count", count=1, prefix="n"),), **told)
        wants, _ = expanded({REPOSITORY: Levels(initiator(role), LEAF)})
        return [want.prints for want in wants]

    region, leaf = of()
    assert of(start="./run") == [region, with_told(leaf, "./run", 0)]
    assert of(lease_s=20.0) == [region, with_told(leaf, "", 20.0)]
    assert of(start="./run")[1] != leaf


def test_what_no_entry_matches_is_an_error_of_that_path_alone() -> None:
    wants, _ = expanded({REPOSITORY: Levels(initiator(TEN))})
    assert len(wants) == 11
    assert wants[0].error == ""
    assert wants[1].error == "no entry matches /region1/n1"


def test_a_domain_s_repository_is_asked_for_and_then_gives_its_part() -> None:
    """Figure 14: identifiers are cut by the position of the domain's repository, or full."""
    relative = InitiatorRole((Children("count", count=1, prefix="m"),), repository="http://d/", scope="relative")
    top = Levels(initiator(relative))
    wants, missing = expanded({REPOSITORY: top})
    assert [want.path for want in wants] == ["/region1"]
    assert missing == {"http://d/"}
    wants, missing = expanded({REPOSITORY: top, "http://d/": Levels(LEAF)})
    assert [(want.path, want.error) for want in wants] == [("/region1", ""), ("/region1/m1", "")]
    assert missing == frozenset()
    full = InitiatorRole(relative.children, repository="http://d/", scope="full")
    wants, _ = expanded({REPOSITORY: Levels(initiator(full)), "http://d/": Levels(LEAF)})
    assert wants[1].error == "no entry matches /region1/m1"
    wants, _ = expanded({REPOSITORY: top, "http://d/": Unloaded("no answer")})
    assert wants[1].error == "repository http://d/: no answer"


def test_a_circle_of_initiators_is_told_with_path_and_depth() -> None:
    class Circle(Levels):
        def made(self, identifier: str) -> Made:
            return initiator(InitiatorRole((Children("count", count=3, prefix="n"),)))

    with pytest.raises(
        BadTree, match=rf"^initiator /region1(/n1){{{MAX_DEPTH - 1}}}: expected at most {MAX_DEPTH} levels"
    ):
        expanded({REPOSITORY: Circle()})


def test_a_tree_that_is_too_large_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.expansion.MAX_MANAGENTS", 100)
    with pytest.raises(BadTree, match=r"more than 100 managents \(at /region1/n10, level 2\)"):
        expanded({REPOSITORY: Levels(initiator(TEN), initiator(TEN), LEAF)})


def test_children_that_can_not_be_told_are_an_error_of_their_initiator() -> None:
    domains = initiator(InitiatorRole((Children("domain"),)))
    wants, _ = expanded({REPOSITORY: Levels(domains)})
    assert [want.path for want in wants] == ["/region1"]
    assert wants[0].error.startswith("its children: initiator /region1: expected boot stubs in domains directly below")


def test_without_any_boot_stub_nothing_can_be_deployed() -> None:
    with pytest.raises(BadTree, match="found none; are they in the directory"):
        expand(TOP_ROLE, REPOSITORY, {REPOSITORY: Levels(LEAF)}, [])


def test_children_by_domain_and_by_stub_follow_the_directory() -> None:
    stubs = [StubRef(f"n{number}", STUB.address, f"/site/r{number % 2 + 1}") for number in range(4)]
    by_domain, by_stub = (initiator(InitiatorRole((Children(by),))) for by in ("domain", "stub"))
    site = InitiatorRole((Children("names", names=("site",)),))
    done = expand(site, REPOSITORY, {REPOSITORY: Levels(by_domain, by_stub, LEAF)}, stubs)
    assert done.target == ("/site", "/site/r1", "/site/r1/n0", "/site/r1/n2", "/site/r2", "/site/r2/n1", "/site/r2/n3")
