"""BRP's messages: Figure 8 as it is printed, what is beyond it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.brp import (
    TYPES,
    Refusal,
    Reply,
    Request,
    RequestType,
    read_reply,
    read_request,
    without_id,
    write_error,
    write_reply,
    write_request,
)
from deploy.documents import Reference
from deploy.xml import BadXml

FIGURES = Path(__file__).parent / "figures"
CLUSTER = "/dc_paloalto/customer_x/cluster_12"
B3 = "blake3:" + "0" * 64


def test_figure_8s_request_is_read() -> None:
    data = (FIGURES / "figure8_request.xml").read_bytes()
    assert read_request(data, "figure 8") == Request("install-configuration", CLUSTER)


def test_figure_8s_reply_is_read() -> None:
    data = (FIGURES / "figure8_reply.xml").read_bytes()
    refs = tuple(
        Reference(f"http://sos.hpl.hp.com/repository/{name}")
        for name in ("customer_x/config.xml", "dcmgmt/paloalto.xml", "clustermgmt/basic.xml")
    )
    assert read_reply(data, "figure 8") == Reply("install-configuration", CLUSTER, install=refs)


@pytest.mark.parametrize("type", TYPES)
def test_requests_of_all_four_types_read_as_they_were_written(type: RequestType) -> None:
    request = Request(type, "/site/r1")
    assert read_request(write_request(request), "it") == request


@pytest.mark.parametrize(
    "reply",
    [
        Reply(
            "all", "/a", (Reference("http://x/a.tar", B3, "tar"), Reference("image://y")), (Reference("file:///i&j"),)
        ),
        Reply("all", "/a/b"),
        Reply("managent-configuration", "/a", managent=(Reference("http://x/a?b=<c>", B3),)),
        Reply("installation-code", "/a", code=(Reference("http://x/a", "sha256:" + "f" * 64, "python"),)),
    ],
)
def test_replies_read_as_they_were_written(reply: Reply) -> None:
    assert read_reply(write_reply(reply), "it") == reply


def test_replies_for_siblings_differ_in_their_identifier_alone() -> None:
    refs = (Reference("http://x/a/b", B3),)
    one, other = (write_reply(Reply("all", id, managent=refs)) for id in ("/a/b", "/a/c"))
    assert without_id(one, "/a/b") == without_id(other, "/a/c") != b""
    assert without_id(write_reply(Reply("all", "/a/b")), "/a/b") != without_id(one, "/a/b")
    assert without_id(one, "/a/c") == without_id(one + one, "/a/b") == b""


def test_a_request_reads_the_same_however_it_is_spelled() -> None:
    for text in (
        "<request><type>all</type><id>/a/b</id></request>",
        "<request><type>all</type><id>a/b</id></request>",
        "<request>\n <id>/a/b</id>\n <type>all</type>\n</request>\n",
    ):
        assert read_request(text.encode(), "it") == Request("all", "/a/b")


def test_an_error_reads_as_it_was_written() -> None:
    assert read_reply(write_error("bad-request", "expected <x>,\nfound \x00"), "it") == Refusal(
        "bad-request", "expected <x>,\nfound �"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<reply/>", "expected <request>, found <reply>"),
        ("<request><type>all</type></request>", "expected <id>, found none"),
        ("<request><id>/a</id></request>", "expected <type>, found none"),
        ("<request><type>code</type><id>/a</id></request>", "found 'code'"),
        ("<request><type>all</type><id>/a</id><id>/b</id></request>", "expected one <id>"),
        ("<request><type>all</type><id>/a/../b</id></request>", "found '..'"),
        ("<request><type>all</type><id>/a//b</id></request>", "found ''"),
        ("<request><type>all</type><id></id></request>", "found ''"),
        (f"<request><type>all</type><id>{'/a' * 17}</id></request>", "at most 16 levels, found 17"),
        ("<request><type>all</type><id>/a</id><x/></request>", "found <x>"),
        ("<request a='b'><type>all</type><id>/a</id></request>", "expected at most 0 attributes"),
        ("<request><type>all</type><id>/a<b/></id></request>", "at most 2 levels"),
        (" " * 4096 + "<request/>", "at most 4,096 bytes"),
    ],
)
def test_a_request_that_is_wrong_is_told(text: str, said: str) -> None:
    with pytest.raises(BadXml) as error:
        read_request(text.encode(), "request")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("refs", "said"),
    [
        ("<ref>http://x</ref>", "expected attribute 'for'"),
        ("<ref for='code'>http://x</ref>", "found 'code'"),
        ("<ref for='installation-code'></ref>", "expected a URL, found none"),
        ("<ref for='installation-code' type='urn'>http://x</ref>", "type: expected url, found 'urn'"),
        ("<ref for='installation-code' format='zip'>http://x</ref>", "type: expected script"),
        ("<ref for='install-configuration' format='tar'>http://x</ref>", "expected a type for code alone"),
        ("<ref for='installation-code' digest='x'>http://x</ref>", "digest: expected"),
        ("<url>http://x</url>", "found <url>"),
    ],
)
def test_a_reply_that_is_wrong_is_told(refs: str, said: str) -> None:
    with pytest.raises(BadXml) as error:
        read_reply(f"<reply><type>all</type><id>/a</id>{refs}</reply>".encode(), "http://x/repository")
    assert said in str(error.value)


def test_a_reference_for_something_else_than_was_asked_for_is_wrong() -> None:
    text = "<reply><type>installation-code</type><id>/a</id><ref for='install-configuration'>http://x</ref></reply>"
    with pytest.raises(BadXml, match="for: expected installation-code, found install-configuration"):
        read_reply(text.encode(), "it")
