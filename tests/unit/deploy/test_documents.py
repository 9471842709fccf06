"""Repository information and configuration documents: the paper's figures as they are printed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.configuration import Children
from deploy.documents import (
    ConfigurationDocument,
    Information,
    InitiatorPart,
    ProgramPart,
    Reference,
    read_configuration,
    read_information,
    write_information,
)
from deploy.matching import choose, givens, references
from deploy.xml import BadXml

FIGURES = Path(__file__).parent / "figures"
B3 = "blake3:" + "0" * 64


def figure(number: int) -> bytes:
    return (FIGURES / f"figure{number}.xml").read_bytes()


def urls(information: Information, identifier: str) -> dict[str, list[str]]:
    choice = choose(information, identifier)
    return {
        "code": [ref.url for ref in references(information, choice, "code")],
        "install": [ref.url for ref in references(information, choice, "install")],
        "managent": [ref.url for ref in references(information, choice, "managent")],
    }


def test_figure_2_gives_the_papers_managent_what_the_paper_says() -> None:
    information = read_information(figure(2), "figure2.xml")
    assert urls(information, "/hp_mgmt_domain/dc_paloalto/cluster_21/customer_x") == {
        "code": ["http://sos.hpl.hp.com/repository/dc_all.sh"],
        "install": ["http://sos.hpl.hp.com/repository/cluster_all.xml"],
        "managent": ["http://sos.hpl.hp.com/repository/customer_x_all.xml"],
    }
    given = givens(information, "/hp_mgmt_domain/dc_paloalto/cluster_21/customer_x")
    assert [str(one.pattern) for one in given] == [
        'path="*/dc_paloalto/*"',
        'path="*/cluster*/*"',
        'path="*/customer_x/*"',
    ]
    assert urls(information, "/hp_mgmt_domain/dc_berlin/SAP/x") == {
        "code": ["http://sos.hpl.hp.com/repository/dc_all.sh"],
        "install": ["http://config.sap.com/repository/proccfg.xml"],
        "managent": [],
    }


def test_figure_3_is_a_configuration() -> None:
    assert read_configuration(figure(3), "figure3.xml") == ConfigurationDocument(
        "figure3.xml", env=(("TMP_DIR", "/tmp"),), args=(("MGMT_PORT", "7078"),)
    )


def test_figure_12_grows_over_four_levels_and_ends_where_nothing_matches() -> None:
    """As it is printed: the pattern that the paper's comment calls level 5 has four levels, so at the fourth both
    entries match (the later one wins, and makes it an initiator), and at the fifth none does."""
    information = read_information(figure(12), "figure12.xml")
    regular, initiator = "http://sos/regular_managent_config.xml", "http://sos/initiator_config.xml"
    levels = ["/region1", "/region1/zone3", "/region1/zone3/dc6", "/region1/zone3/dc6/core7"]
    assert [urls(information, level)["managent"] for level in levels] == [
        [initiator],
        [initiator],
        [initiator],
        [regular, initiator],
    ]
    assert urls(information, "/region1/zone3/dc6/core7/sos.hpl.hp.com")["managent"] == []


def test_figure_12_with_the_level_that_its_comment_means() -> None:
    meant = figure(12).replace(b'"/**/**/**/**"/>      <!--level 5', b'"/**/**/**/**/**"/>   <!--level 5')
    information = read_information(meant, "figure12.xml")
    assert urls(information, "/region1/zone3/dc6/core7")["managent"] == ["http://sos/initiator_config.xml"]
    assert urls(information, "/region1/zone3/dc6/core7/sos.hpl.hp.com")["managent"] == [
        "http://sos/regular_managent_config.xml"
    ]


@pytest.mark.parametrize("number", [2, 12])
def test_information_is_written_as_it_reads(number: int) -> None:
    information = read_information(figure(number), "figure.xml")
    assert read_information(write_information(information), "figure.xml") == information


def test_information_keeps_what_references_say() -> None:
    text = f"""<repository-information><managent-code><entry>
      <pattern regex="/a&amp;?"/><ref url="x.tar" type="tar" digest="{B3}"/><ref url="image://y"/>
    </entry></managent-code></repository-information>"""
    information = read_information(text.encode(), "it.xml")
    assert information.code[0].refs == (Reference("x.tar", B3, "tar"), Reference("image://y"))
    assert read_information(write_information(information), "it.xml") == information


def entry(inner: str, list: str = "managent-code") -> bytes:
    return f"<repository-information>\n<{list}><entry>\n{inner}</entry></{list}></repository-information>".encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<configuration/>", "line 1, column 1: expected <repository-information>, found <configuration>"),
        (b"<repository-information><x/></repository-information>", "found <x>"),
        (
            b"<repository-information>\n<managent-code/><managent-code/></repository-information>",
            "expected one <managent",
        ),
        (entry(""), "entry 1: expected at least one <pattern>, found none"),
        (entry('<pattern path="*"/>'), "entry 1: expected at least one <ref>, found none"),
        (entry('<ref url="a"/>'), "entry 1: expected at least one <pattern>"),
        (entry('<pattern/><ref url="a"/>'), "line 3, column 1: <pattern>: entry 1: expected one attribute of path"),
        (entry('<pattern path="*" xpath="/*"/><ref url="a"/>'), "found path and xpath"),
        (entry('<pattern glob="*"/><ref url="a"/>'), "found attribute 'glob'"),
        (
            entry('<pattern regex="/a("/><ref url="a"/>'),
            "entry 1: regex='/a(': expected a regular expression: missing )",
        ),
        (entry('<pattern path="*"/><ref/>'), "expected attribute 'url', found none"),
        (entry('<pattern path="*"/><ref url=""/>'), "expected attribute 'url', found an empty one"),
        (entry('<pattern path="*"/><ref url="a b"/>'), "expected a URL"),
        (entry('<pattern path="*"/><ref url="a" name="b"/>'), "found attribute 'name'"),
        (entry('<pattern path="*"/><ref url="ftp://a/b"/>'), "one of http, https, file, image, found 'ftp://a/b'"),
        (entry('<pattern path="*"/><ref url="a" digest="md5:1"/>'), "expected blake3: or sha256:"),
        (
            entry('<pattern path="*"/><ref url="a" type="perl"/>'),
            "type: expected script or executable or tar or python",
        ),
        (entry('<pattern path="*"/><ref url="a" type="tar"/>', "install-config"), "expected a type for code alone"),
        (entry("<pattern path='*'/><ref url='a'/><!-- --> x"), "<entry>: expected no text, found 'x'"),
        (entry("<entry/>"), "found <entry>"),
        (b'<repository-information digest="1"/>', "found attribute 'digest'"),
        (b" " * (1 << 20) + b"<a/>", "at most 1,048,576 bytes"),
        (entry("<pattern path='*'/>" * 10_001), "at most 10,000 elements"),
    ],
)
def test_information_that_is_wrong_is_told_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(BadXml) as error:
        read_information(data, "repository.xml")
    assert said in str(error.value)
    assert str(error.value).startswith("repository.xml, line ")


def test_a_configuration_says_all_that_there_is_to_say() -> None:
    data = b"""<configuration>
      <env-params><env name="A" value=""/><env name="B" value="&#10;b"/></env-params>
      <initiator parallel="7" repository="http://sos/x" scope="relative" failover="domain" lease="1.5" start="./x y"
                 retries="0" restart="never">
        <children count="10" prefix="zone" first="0"/><children names="alpha beta"/><children each="stub"/>
        <children each="domain"/>
      </initiator>
      <managent control="bmp" class="pkg.Agent" start="./run --fast" stop="0"/>
    </configuration>"""
    assert read_configuration(data, "it.xml") == ConfigurationDocument(
        "it.xml",
        env=(("A", ""), ("B", "\nb")),
        initiator=InitiatorPart(
            children=(
                Children("count", count=10, first=0, prefix="zone"),
                Children("names", names=("alpha", "beta")),
                Children("stub"),
                Children("domain"),
            ),
            parallel=7,
            repository="http://sos/x",
            scope="relative",
            failover="domain",
            lease_s=1.5,
            start="./x y",
            retries=0,
            restart="never",
        ),
        program=ProgramPart("bmp", "pkg.Agent", "./run --fast", 0.0),
    )


def initiator(attributes: str = "", children: str = '<children count="1"/>') -> str:
    return f"<initiator {attributes}>{children}</initiator>"


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("<environment/>", "found <environment>"),
        ("<env-params/><env-params/>", "expected one <env-params>"),
        ("<env-params><arg name='a' value='b'/></env-params>", "expected element env in <env-params>, found <arg>"),
        (
            "<env-params><env name='a'/></env-params>",
            "expected attribute 'value' (it may be empty), found none for 'a'",
        ),
        ("<env-params><env value='a'/></env-params>", "expected attribute 'name', found none"),
        ("<env-params><env name='a=b' value=''/></env-params>", "found 'a=b'"),
        ("<env-params><env name='1a' value=''/></env-params>", "found '1a'"),
        ("<env-params><env name='MANAGENT_ID' value=''/></env-params>", "does not begin with MANAGENT_"),
        ("<env-params><env name='a' value=''/><env name='a' value=''/></env-params>", "'a' again"),
        ("<arg-params><arg name='a b' value=''/></arg-params>", "found 'a b'"),
        (f"<arg-params><arg name='a' value='{'x' * 4001}'/></arg-params>", "at most 4,000 characters, found 4,001"),
        ("<arg-params>" + "<arg name='a' value=''/>" * 1001 + "</arg-params>", "at most 1,000 parameters, found 1,001"),
        ("<initiator/><initiator/>", "expected one <initiator>"),
        (initiator('paralel="1"'), "found attribute 'paralel'"),
        (initiator('parallel="0"'), "parallel: expected a whole number from 1 to 1,000, found '0'"),
        (initiator('parallel="1001"'), "found '1001'"),
        (initiator('parallel="1e3"'), "found '1e3'"),
        (initiator('lease="-1"'), "lease: expected a number of seconds from 0 to 86,400, found '-1'"),
        (initiator('lease="86400.5"'), "found '86400.5'"),
        (initiator('lease="nan"'), "found 'nan'"),
        (initiator('retries="21"'), "retries: expected a whole number from 0 to 20, found '21'"),
        (initiator('scope="half"'), "scope: expected full or relative, found 'half'"),
        (initiator('failover="yes"'), "failover: expected none or domain, found 'yes'"),
        (initiator('restart="yes"'), "restart: expected always or never, found 'yes'"),
        (initiator('repository="sub.xml"'), "repository: expected an http or https URL"),
        (initiator('repository="file:///x"'), "repository: expected an http or https URL"),
        (initiator('start=" "'), "start: expected a command"),
        (initiator("", "<child/>"), "found <child>"),
        (initiator("", "<children/>"), "expected one attribute of count, names, each, found none"),
        (initiator("", '<children count="1" each="stub"/>'), "found count and each"),
        (initiator("", '<children count="10001"/>'), "from 0 to 10,000, found '10001'"),
        (initiator("", '<children count="-1"/>'), "found '-1'"),
        (
            initiator("", '<children count="9999"/><children count="2" prefix="x"/>'),
            "at most 10,000 children, found 10,001",
        ),
        (initiator("", '<children count="1" prefix="a/b"/>'), "parts of 1 to 64 letters"),
        (initiator("", '<children count="1" prefix="../"/>'), "parts of 1 to 64 letters"),
        (initiator("", f'<children count="1" prefix="{"x" * 64}"/>'), "parts of 1 to 64 letters"),
        (initiator("", '<children names="a .."/>'), "found '..'"),
        (initiator("", '<children names="a b a"/>'), "expected each child's name once, found 'a' again"),
        (initiator("", '<children count="2"/><children names="2"/>'), "found '2' again"),
        (initiator("", '<children each="rack"/>'), "each: expected stub or domain, found 'rack'"),
        (initiator("", '<children each="stub" prefix="x"/>'), "prefix: expected with count alone, found with each"),
        ('<managent control="telnet"/>', "control: expected signals or bmp, found 'telnet'"),
        ('<managent class="a b"/>', "class: expected a Python class's name, found 'a b'"),
        ('<managent stop="3601"/>', "stop: expected a number of seconds from 0 to 3,600"),
        ("<managent><x/></managent>", "found <x>"),
        ("hello", "expected no text, found 'hello'"),
    ],
)
def test_a_configuration_that_is_wrong_is_told_with_its_place(inner: str, said: str) -> None:
    with pytest.raises(BadXml) as error:
        read_configuration(f"<configuration>\n{inner}</configuration>".encode(), "it.xml")
    assert said in str(error.value)
    assert str(error.value).startswith("it.xml, line ")


def test_only_information_may_leave_elements_open() -> None:
    with pytest.raises(BadXml, match="mismatched tag"):
        read_configuration(b'<configuration><managent start="x"></configuration>', "it.xml")
