"""What a repository gives, and why: matching in order, merging, contradictions, fingerprints."""

from __future__ import annotations

import pytest
from blake3 import blake3

from deploy.configuration import Children, Configuration, InitiatorRole, ProgramRole
from deploy.documents import ConfigurationDocument, Entry, Information, InitiatorPart, ProgramPart, Reference
from deploy.matching import (
    BadMatch,
    Choice,
    Conflict,
    Setting,
    check_deployable,
    choose,
    explain,
    merge,
    prints,
    references,
    with_told,
)
from deploy.patterns import Pattern
from deploy.records import Prints
from tests.unit.deploy.test_patterns import SLOW


def entry(number: int, patterns: list[str], *urls: str) -> Entry:
    return Entry("managent", number, tuple(Pattern("path", one) for one in patterns), tuple(map(Reference, urls)))


def said(
    name: str, *, initiator: InitiatorPart | None = None, program: ProgramPart | None = None, **env: str
) -> ConfigurationDocument:
    return ConfigurationDocument(name, env=tuple(env.items()), initiator=initiator, program=program)


TEN = Children("count", count=10)
THREE = Children("names", names=("a", "b", "c"))


def test_all_entries_that_match_give_all_their_references_in_order() -> None:
    information = Information(
        managent=(entry(1, ["*/a/*", "*"], "1", "2"), entry(2, ["*/b/*"], "3"), entry(3, ["*/x/*"], "4", "1"))
    )
    choice = choose(information, "/x")
    assert choice == Choice((), (), (0, 2))
    assert [ref.url for ref in references(information, choice, "managent")] == ["1", "2", "4", "1"]
    assert references(information, choice, "code") == ()


def test_a_pattern_that_takes_too_long_is_an_error_of_its_entry() -> None:
    slow = Entry("install", 2, (Pattern("regex", SLOW),), (Reference("x"),))
    with pytest.raises(BadMatch, match=r"install-config entry 2: regex="):
        choose(Information(install=(slow,)), f"/{'a' * 500}")


def test_the_later_document_wins_name_by_name() -> None:
    merged = merge("install", [said("1", A="a", B="b"), said("2", C="c", A="z")])
    assert merged.configuration == Configuration(env={"A": "z", "B": "b", "C": "c"})
    assert list(merged.configuration.env) == ["A", "B", "C"]
    assert merged.settings == (
        Setting("env A", "z", 1, (("a", 0),)),
        Setting("env B", "b", 0),
        Setting("env C", "c", 1),
    )


def test_the_later_document_wins_attribute_by_attribute() -> None:
    first = InitiatorPart(children=(TEN,), parallel=5, lease_s=0.0, scope="full")
    second = InitiatorPart(parallel=6, failover="domain", lease_s=30.0)
    merged = merge(
        "managent",
        [
            said("1", initiator=first, program=ProgramPart(control="bmp", class_name="A")),
            said("2"),
            said("3", initiator=second, program=ProgramPart(class_name="B", stop_s=1.0)),
        ],
    )
    assert merged.configuration == Configuration(
        initiator=InitiatorRole((TEN,), parallel=6, failover="domain", lease_s=30.0),
        program=ProgramRole("bmp", "B", stop_s=1.0),
    )
    assert Setting("initiator lease", "30", 2, (("0", 0),)) in merged.settings
    assert Setting("managent class", "B", 2, (("A", 0),)) in merged.settings
    assert Setting("initiator children", "10 from 1", 0) in merged.settings


def test_a_later_documents_children_replace_the_earlier_ones() -> None:
    merged = merge(
        "managent",
        [said("1", initiator=InitiatorPart((TEN, THREE))), said("2", initiator=InitiatorPart((Children("stub"),)))],
    )
    assert merged.configuration.initiator == InitiatorRole((Children("stub"),))
    assert merged.settings == (Setting("initiator children", "each stub", 1, (("10 from 1, a b c", 0),)),)


def test_no_documents_are_the_empty_configuration() -> None:
    assert merge("managent", []).configuration == Configuration()


@pytest.mark.parametrize("element", ["managent", "initiator"])
def test_two_start_commands_contradict_each_other_and_both_documents_are_named(element: str) -> None:
    def starts(name: str, command: str) -> ConfigurationDocument:
        if element == "managent":
            return said(name, program=ProgramPart(start=command))
        return said(name, initiator=InitiatorPart((TEN,), start=command))

    expected = rf"{element} start: expected one start command, found './a' in one\.xml and './b' in two\.xml"
    with pytest.raises(Conflict, match=expected):
        merge("managent", [starts("one.xml", "./a"), said("x"), starts("two.xml", "./b")])
    assert merge("managent", [starts("1", "./a"), starts("2", "./a")]).settings[-1].value == "./a"


@pytest.mark.parametrize(
    ("kind", "document", "expected"),
    [
        ("managent", said("x.xml", initiator=InitiatorPart(parallel=3)), "x.xml: expected <children> in <initiator>"),
        (
            "managent",
            said("x.xml", initiator=InitiatorPart((TEN,), scope="relative")),
            'x.xml: expected a repository with scope="relative"',
        ),
        (
            "install",
            said("x.xml", initiator=InitiatorPart((TEN,))),
            "x.xml: expected <initiator> in managent-config alone",
        ),
        ("install", said("x.xml", program=ProgramPart()), "x.xml: expected <managent> in managent-config alone"),
    ],
)
def test_what_does_not_go_together_is_told(kind: str, document: ConfigurationDocument, expected: str) -> None:
    with pytest.raises(Conflict) as error:
        merge("install" if kind == "install" else "managent", [document])
    assert expected in str(error.value)


def test_a_managent_needs_code_or_a_role() -> None:
    check_deployable("/a", ["code"], Configuration())
    check_deployable("/a", [], Configuration(initiator=InitiatorRole((TEN,))))
    with pytest.raises(Conflict, match="/a: expected an entry of managent-code that matches, or"):
        check_deployable("/a", [], Configuration())


def test_prints_are_of_the_digests_in_their_order() -> None:
    assert prints(["b", "a"], [], ["a"]) == Prints(blake3(b"b\na").hexdigest()[:16], "", blake3(b"a").hexdigest()[:16])
    assert prints(["a", "b"], [], []) != prints(["b", "a"], [], [])


def test_what_the_initiator_tells_is_part_of_the_managents_print() -> None:
    plain = prints(["a"], ["b"], ["c"])
    assert with_told(plain, "", 0) == plain
    others = [
        with_told(plain, "./a", 0),
        with_told(plain, "./b", 0),
        with_told(plain, "", 30),
        with_told(plain, "./a", 30),
    ]
    assert len({one.managent for one in (plain, *others)}) == 5
    assert {(one.code, one.install) for one in others} == {(plain.code, plain.install)}


def test_explain_says_which_entry_gave_which_value_and_what_was_overridden() -> None:
    documents = {"base.xml": said("base.xml", A="1", B="2"), "rack.xml": said("rack.xml", A="9")}
    information = Information(
        managent=(entry(1, ["*"], "base.xml"), entry(2, ["/none"], "none.xml"), entry(3, ["/a", "*/r1/*"], "rack.xml"))
    )
    found = explain(information, "/site/r1/n1", lambda ref: documents[ref.url])
    given = found.of("managent")
    assert [(one.entry, str(one.pattern), one.reference.url) for one in given] == [
        (1, 'path="*"', "base.xml"),
        (3, 'path="*/r1/*"', "rack.xml"),
    ]
    setting = found.managent.settings[0]
    assert (setting.name, setting.value, given[setting.by].entry) == ("env A", "9", 3)
    assert [(value, given[index].entry) for value, index in setting.overridden] == [("1", 1)]
