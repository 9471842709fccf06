"""Patterns of identifiers, against slow references that say the same another way; and their bounds."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deploy.patterns import MATCH_S, BadPattern, CommandPattern, Pattern, PatternKind, PatternTimeout

PAPER = "/hp_mgmt_domain/dc_paloalto/cluster_21/customer_x"
SLOW = r"(?:(?:a|a)(?:a|a)?)*/(?:(?:a|a)(?:a|a)?)*b"
"""Undecided for longer than anybody waits, on many letters a."""


def path(text: str) -> Pattern:
    return Pattern("path", text)


def xpath(text: str) -> Pattern:
    return Pattern("xpath", text)


def glob(pattern: str, text: str) -> bool:
    """Slow and plain: `*` is nothing, or one character and the rest."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return glob(pattern[1:], text) or (bool(text) and glob(pattern, text[1:]))
    return bool(text) and text[0] == pattern[0] and glob(pattern[1:], text[1:])


def path_matches(pattern: str, text: str) -> bool:
    """A leading */ may also be the start, a trailing /* also the end; identifiers begin with a slash."""
    ways = {pattern}
    if pattern.endswith("/*"):
        ways |= {way[:-2] for way in ways}
    return any(glob(way, text) for way in ways)


def xpath_matches(pattern: str, text: str) -> bool:
    wanted, parts = pattern[1:].split("/"), text[1:].split("/")
    return len(wanted) == len(parts) and all(
        bool(part) if want in ("*", "**") else glob(want, part) for want, part in zip(wanted, parts, strict=True)
    )


PARTS = st.text("ab", min_size=1, max_size=3)
IDENTIFIERS = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "".join(f"/{part}" for part in parts))


@given(st.text("ab*/", max_size=7).map(lambda text: text if text[:1] in ("*", "/") else f"*{text}"), IDENTIFIERS)
@example("*/a/*", "/ab/a")
@example("*/a/*", "/ab/a/b")
@example("/*", "/a")
@example("**/*", "/a/b")
@example("*a*/*", "/b/ba")
def test_a_path_matches_what_a_slow_reference_says(pattern: str, identifier: str) -> None:
    assert path(pattern).matches(identifier) == path_matches(pattern, identifier)


@given(
    st.lists(st.sampled_from(["*", "**", "a", "b", "a*", "*b", "a*b", "*a*", "ab"]), min_size=1, max_size=4),
    IDENTIFIERS,
)
def test_an_xpath_matches_what_a_slow_reference_says(parts: list[str], identifier: str) -> None:
    pattern = "".join(f"/{part}" for part in parts)
    assert xpath(pattern).matches(identifier) == xpath_matches(pattern, identifier)


@pytest.mark.parametrize("pattern", ["*/customer_x/*", "*/dc_paloalto/*", "*/cluster*/*", "*/hp_mgmt_domain/*"])
def test_the_papers_example_gets_what_the_paper_says(pattern: str) -> None:
    assert path(pattern).matches(PAPER)


@pytest.mark.parametrize("pattern", ["*/dc_berlin/*", "*/SAP/*", "*/customer/*", "*/luster_21/*", "/dc_paloalto/*"])
def test_the_papers_example_does_not_get_the_rest(pattern: str) -> None:
    assert not path(pattern).matches(PAPER)


def test_each_part_of_an_xpath_is_exactly_one_level() -> None:
    assert [xpath("/**/**").matches(one) for one in ("/a", "/a/b", "/a/b/c")] == [False, True, False]
    assert [xpath("/*/*").matches(one) for one in ("/a", "/a/b", "/a/b/c")] == [False, True, False]
    assert xpath("/site/rack*/**").matches("/site/rack3/node7")
    assert not xpath("/site/rack*/**").matches("/site/row3/node7")


def test_a_regex_must_match_the_whole_identifier() -> None:
    pattern = Pattern("regex", r"/site/r\d+(/n0[1-4])?")
    assert [
        pattern.matches(one) for one in ("/site/r1", "/site/r12/n03", "/site/r1/n05", "/x/site/r1", "/site/r1/")
    ] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("path", "", "1 to 512 characters, found 0"),
        ("path", "*" * 513, "1 to 512 characters, found 513"),
        ("path", "dc_paloalto/*", "begins with '/' or '*'"),
        ("xpath", "*/a", "begins with '/'"),
        ("xpath", "/a//b", "none in part 2"),
        ("xpath", "/a/", "none in part 2"),
        ("xpath", "/a" * 17, "at most 16 levels, found 17"),
        ("regex", "/a(b", "missing ) at position 4"),
        ("regex", "[", "position 1"),
        ("regex", "*a", "nothing to repeat at position 0"),
        ("regex", "((a{999}){999}){999}", "at most 10000, found more at position 9"),
        ("regex", "a{100001}", "at most 10000, found more at position 1"),
    ],
)
def test_a_pattern_that_is_none_is_told_with_its_place(kind: PatternKind, text: str, said: str) -> None:
    with pytest.raises(BadPattern, match=r"^(path|xpath|regex)") as error:
        Pattern(kind, text)
    assert said in str(error.value)


def test_a_regex_that_takes_too_long_is_an_error_and_no_mismatch() -> None:
    pattern = Pattern("regex", SLOW)
    assert pattern.matches("/ab")
    began = time.process_time()
    with pytest.raises(PatternTimeout, match=r"regex=.*expected to know within 0\.1 s"):
        pattern.matches(f"/{'a' * 500}")
    assert time.process_time() - began < 20 * MATCH_S


@pytest.mark.parametrize(
    "pattern",
    [
        path("*a" * 250 + "b"),
        path("*a" * 250 + "b/*"),
        path("*a/*" * 120 + "/*"),
        xpath("/" + "*a" * 250 + "b"),
        xpath("/*a" * 15 + "/" + "*a" * 200 + "b"),
    ],
    ids=str,
)
def test_many_stars_cost_no_more_than_few(pattern: Pattern) -> None:
    """What backtracks takes longer than the universe here."""
    assert not pattern.matches("/" + "a" * 500)
    assert not pattern.matches(("/" + "a" * 30) * 16)


def test_11111_identifiers_are_matched_fast() -> None:
    patterns = [xpath("/*/*/*/*/*"), path("*/dc3/*"), xpath("/region1/zone*/**")]
    identifiers = [f"/region1/zone{n % 10}/dc{n % 100}/core{n % 1000}/{n}" for n in range(11_111)]
    began = time.process_time()
    found = sum(pattern.matches(one) for pattern in patterns for one in identifiers)
    assert found == 11_111 + sum("/dc3/" in one for one in identifiers)
    assert time.process_time() - began < 1.0  # it takes 0.02 s here


def test_patterns_are_equal_when_they_are_written_alike() -> None:
    assert path("/a/*") == path("/a/*")
    assert path("/a/*") != xpath("/a/*")
    assert len({path("/a"), path("/a"), xpath("/a")}) == 2


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("/region1/zone3", ["/region1/zone3"], ["/region1", "/region1/zone3/dc6", "/region1/zone31"]),
        (
            "/region1/zone3/**",
            ["/region1/zone3", "/region1/zone3/dc6", "/region1/zone3/a/b/c"],
            ["/region1", "/region1/zone31"],
        ),
        ("/**", ["/region1", "/region1/zone3/a"], [""]),
        ("/*", ["/region1"], ["/region1/zone3", ""]),
        ("/*/zone*/**", ["/r/zone1", "/r/zone1/x/y"], ["/r", "/r/dc1/x"]),
    ],
)
def test_a_command_pattern_is_a_managent_levels_or_a_subtree(text: str, yes: list[str], no: list[str]) -> None:
    pattern = CommandPattern(text)
    assert [one for one in yes if not pattern.matches(one)] == []
    assert [one for one in no if pattern.matches(one)] == []


@given(
    st.lists(st.sampled_from(["*", "a", "b", "a*"]), max_size=3),
    st.booleans(),
    st.lists(PARTS, max_size=3),
    st.lists(PARTS, min_size=1, max_size=3),
)
def test_where_a_command_may_match_is_never_denied(
    parts: list[str], deep: bool, top: list[str], below: list[str]
) -> None:
    wanted = [*parts, "**"] if deep else parts
    if not wanted:
        return
    pattern = CommandPattern("".join(f"/{part}" for part in wanted))
    if pattern.matches("".join(f"/{part}" for part in (*top, *below))):
        assert pattern.may_match_below("".join(f"/{part}" for part in top))


def test_branches_in_which_nothing_can_match_are_left_out() -> None:
    assert not CommandPattern("/region1/zone3/**").may_match_below("/region2")
    assert not CommandPattern("/region1/zone3/**").may_match_below("/region1/zone4")
    assert CommandPattern("/region1/zone3/**").may_match_below("/region1")
    assert CommandPattern("/region1/zone3/**").may_match_below("/region1/zone3/dc1/core1")
    assert not CommandPattern("/region1/zone3").may_match_below("/region1/zone3")
    assert CommandPattern("/region1").may_match_below("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("region1", "begins with '/'"),
        ("/a/**/b", "'**' at the end alone"),
        ("/a//b", "none in part 2"),
        ("", "1 to 512"),
    ],
)
def test_a_command_pattern_that_is_none_is_told(text: str, said: str) -> None:
    with pytest.raises(BadPattern) as error:
        CommandPattern(text)
    assert said in str(error.value)
