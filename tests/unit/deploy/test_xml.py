"""Reading XML from anybody: what is refused, what it costs, and what an error says."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.xml import BadXml, Element, Limits, parse, parse_several, tag

LIMITS = Limits(bytes=10_000, elements=50, depth=4, attributes=3, text_chars=100)
BOMB = b"""<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;">
<!ENTITY lol3 "&lol2;&lol2;&lol2;&lol2;&lol2;&lol2;">]><lolz>&lol3;</lolz>"""
FOREIGN = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'


def read(text: str | bytes, **more: object) -> Element:
    data = text if isinstance(text, bytes) else text.encode()
    return parse(data, "it.xml", LIMITS, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        (BOMB, 1, None, "expected no DOCTYPE"),
        (FOREIGN, 1, None, "expected no DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><a/>', 1, None, "expected no DOCTYPE"),
        (b"<a>\n &lol;</a>", 2, 2, "undefined entity"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><a/>', 1, 1, "expected encoding UTF-8, found 'ISO-8859-1'"),
        ("<a/>".encode("utf-16"), 1, 1, "expected encoding UTF-8, found UTF-16"),
        (b"<a>\xff</a>", 1, 4, "invalid token"),
        (b"", 1, 1, "found nothing"),
        (b"  \n ", 1, 1, "found nothing"),
        (b"<a>\n  <b>\n</a>", 3, 3, "mismatched tag"),
        (b"<a/><b/>", 1, 5, "junk after document element"),
        (b"<a>" + b" " * 10_000 + b"</a>", 1, 1, "at most 10,000 bytes, found 10,007"),
        (b"<a>" + b"<b/>" * 50 + b"</a>", 1, 200, "at most 50 elements"),
        (b"<a><b>\n<c><d><e/></d></c></b></a>", 2, 7, "at most 4 levels of elements, found <e>"),
        (b'<a one="1" two="2" three="3" four="4"/>', 1, 1, "at most 3 attributes, found 4"),
        (b'<a one="' + b"x" * 101 + b'"/>', 1, 1, "one: expected at most 100 characters, found 101"),
        (b"<a>" + b"x" * 101 + b"</a>", 1, None, "at most 100 characters of text"),
        (b"<a>" + b"xx<!-- -->" * 60 + b"</a>", 1, None, "at most 100 characters of text"),
    ],
)
def test_what_is_no_plain_document_is_refused_where_it_begins_to_be(
    text: bytes, line: int, column: int | None, said: str
) -> None:
    with pytest.raises(BadXml) as error:
        read(text)
    assert said in str(error.value)
    assert error.value.line == line
    assert column in (None, error.value.column)
    assert str(error.value).startswith(f"it.xml, line {line}, column ")


def test_a_bomb_costs_nothing() -> None:
    began = time.process_time()
    for _ in range(20):
        with pytest.raises(BadXml):
            read(BOMB)
    assert time.process_time() - began < 0.5


def test_the_five_entities_and_comments_are_read() -> None:
    root = read("<a b='&lt;&gt;&amp;&quot;&apos;&#65;'><!-- no --> x &amp; <![CDATA[<y>]]> </a>")
    assert root.attributes == {"b": "<>&\"'A"}
    assert root.text == "x & <y>"


def test_text_that_is_only_dots_is_left_out() -> None:
    root = read("<a>\n ...\n <b/> .... <!-- and --> ...\n</a>")
    assert (root.text, [child.name for child in root.children]) == ("", ["b"])


def test_elements_know_where_they_stood() -> None:
    root = read("<a>\n  <b/>\n    <c/></a>")
    assert [(child.line, child.column) for child in root.children] == [(2, 3), (3, 5)]


@pytest.mark.parametrize(
    "text",
    [
        '<a><p x="1"><p x="2" ><r y="3"></a>',
        "<a><p x='1'/><p x='2'><r y='3'></r></a>",
        '<a><p x="1"><!-- <p x="9"> --><p x="2"/><r y="3"></a>',
    ],
)
def test_elements_that_may_be_left_open_are_closed_where_they_begin(text: str) -> None:
    root = read(text, leave_open=("p", "r"))
    assert [(child.name, child.attributes) for child in root.children] == [
        ("p", {"x": "1"}),
        ("p", {"x": "2"}),
        ("r", {"y": "3"}),
    ]


def test_a_sign_in_an_attribute_does_not_end_an_element_left_open() -> None:
    root = read('<a><p x="b>c"><p x="/"></a>', leave_open=("p",))
    assert [child.attributes["x"] for child in root.children] == ["b>c", "/"]


def test_what_is_not_well_formed_for_another_reason_is_told_as_read_strictly() -> None:
    with pytest.raises(BadXml, match=r"line 2, column 3: .*mismatched tag"):
        read("<a><p x='1'/>\n</b>", leave_open=("p",))


def test_others_may_not_be_left_open() -> None:
    with pytest.raises(BadXml, match="mismatched tag"):
        read("<a><b></a>", leave_open=("p",))


def test_documents_one_after_the_other_keep_their_lines() -> None:
    first, second = parse_several(
        b'<?xml version="1.0"?>\n<a/>\n<?xml version="1.0"?>\n<b>\n<c/></b>\n', "it.xml", LIMITS
    )
    assert (first.name, second.name) == ("a", "b")
    assert (second.line, second.children[0].line) == (4, 5)
    with pytest.raises(BadXml, match="line 4"):
        parse_several(b'<?xml version="1.0"?>\n<a/>\n<?xml version="1.0"?>\n<b></c>\n', "it.xml", LIMITS)


def test_what_is_not_known_is_named() -> None:
    root = read('<a b="1"><c/></a>')
    with pytest.raises(BadXml, match="<a>: expected attribute d or e, found attribute 'b'"):
        root.only(attributes=("e", "d"), children=("c",))
    with pytest.raises(BadXml, match=r"column 10: expected element x in <a>, found <c>"):
        root.only(attributes=("b",), children=("x",))
    with pytest.raises(BadXml, match="expected no text, found 'hi'"):
        read("<a>hi</a>").only()


@given(st.text(max_size=50), st.text(max_size=50))
def test_what_is_written_reads_as_it_was(value: str, text: str) -> None:
    try:
        value.encode(), text.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is no text
    root = parse(tag("a", [("b", value)], text).encode(), "it.xml", Limits(10_000))
    sayable = all(char >= " " or char in "\t\n\r" for char in value + text) and not set("\ufffe\uffff") & set(
        value + text
    )
    if sayable and text.strip(". \t\n\r"):
        assert root.attributes.get("b", "") == value
        assert root.text == text.strip()
