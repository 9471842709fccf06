"""Documents of a repository, expanded: Figure 12 to exactly its managents, and what a document gets wrong."""

from __future__ import annotations

from collections import Counter

import pytest
from blake3 import blake3

from deploy.configuration import Children, InitiatorRole
from deploy.described import Content, Described
from deploy.documents import read_configuration, read_information
from deploy.expansion import Expansion, expand
from deploy.identity import depth
from deploy.records import StubRef

FIGURE_12 = b"""
<repository-information>
  <managent-code>
    <entry>
      <pattern path="*"/>
      <ref url="http://sos/SimpleAgent.py" type="python"/>
    </entry>
  </managent-code>
  <managent-config>
    <entry>                                <!--termination of recursion -->
      <pattern xpath="/**/**/**/**/**"/>   <!--level 5 -->
      <ref url="http://sos/regular_managent_config.xml"/>
    </entry>
    <entry>                                <!--recursive generation -->
      <pattern xpath="/**/**/**/**"/>      <!--level 4 -->
      <pattern xpath="/**/**/**"/>         <!--level 3 -->
      <pattern xpath="/**/**"/>            <!--level 2 -->
      <pattern xpath="/**"/>               <!--level 1 -->
      <ref url="http://sos/initiator_config.xml"/>
    </entry>
  </managent-config>
</repository-information>
"""
INITIATOR = b"""
<configuration>
  <initiator>
    <children count="10"/>
  </initiator>
</configuration>
"""
REGULAR = b"""
<configuration>
  <managent class="SimpleAgent"/>
</configuration>
"""
URLS = ("http://sos/SimpleAgent.py", "http://sos/initiator_config.xml", "http://sos/regular_managent_config.xml")
STUBS = [StubRef(f"stub{number}", f"tcp://127.0.0.1:{number}/" + "a" * 32) for number in range(1, 525)]
REPOSITORY = "http://sos/"


def content(name: str, data: bytes) -> Content:
    return Content("blake3:" + blake3(data).hexdigest(), read_configuration(data, name))


def described(initiator: bytes = INITIATOR, regular: bytes = REGULAR, code: str = "") -> Described:
    contents = {
        URLS[0]: Content("" if code else "blake3:" + "c" * 64, error=code),
        URLS[1]: content("initiator_config.xml", initiator),
        URLS[2]: content("regular_managent_config.xml", regular),
    }
    return Described("g", read_information(FIGURE_12, "figure12"), contents)


def expanded(description: Described) -> Expansion:
    top = InitiatorRole((Children("names", names=("region1",)),))
    return expand(top, REPOSITORY, {REPOSITORY: description}, STUBS)


def test_figure_12_is_11111_managents_from_under_40_lines() -> None:
    assert sum(document.strip().count(b"\n") + 1 for document in (FIGURE_12, INITIATOR, REGULAR)) < 40
    wants = expanded(described()).wants
    assert Counter(depth(want.path) for want in wants) == {1: 1, 2: 10, 3: 100, 4: 1_000, 5: 10_000}
    assert Counter(want.initiator for want in wants) == {True: 1_111, False: 10_000}
    assert len({want.path for want in wants}) == 11_111
    assert not any(want.error for want in wants)
    assert [want.path for want in wants[:6]] == [
        "/region1",
        "/region1/1",
        "/region1/1/1",
        "/region1/1/1/1",
        "/region1/1/1/1/1",
        "/region1/1/1/1/2",
    ]
    assert len({want.prints for want in wants}) == 2


@pytest.mark.parametrize(
    ("description", "error"),
    [
        (described(code="404 Not Found"), "http://sos/SimpleAgent.py: 404 Not Found"),
        (described(b"<configuration><initiator/></configuration>"), "expected <children> in <initiator>, found none"),
    ],
)
def test_what_a_document_gets_wrong_is_told_of_the_managents_that_it_is_for(description: Described, error: str) -> None:
    wants = expanded(description).wants
    assert [want.path for want in wants] == ["/region1"]
    assert error in wants[0].error


def test_a_changed_document_changes_the_prints_of_those_that_have_it() -> None:
    before = expanded(described()).wants
    after = expanded(described(regular=REGULAR.replace(b"SimpleAgent", b"OtherAgent"))).wants
    differing = [new.path for old, new in zip(before, after, strict=True) if old.prints != new.prints]
    assert len(differing) == 10_000
    assert {depth(path) for path in differing} == {5}
    assert {want.prints.code for want in after} == {before[0].prints.code}
