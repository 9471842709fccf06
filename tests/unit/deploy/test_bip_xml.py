"""BIP as XML: Figure 9 as it is printed, and what becomes of it on the bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.bip_xml import BootFile, ControlMessage, bip_call, read_control, start_command, write_control
from deploy.identity import BadIdentity
from deploy.messages import BipCall, Charge, Parent
from deploy.xml import BadXml

FIGURE_9 = (Path(__file__).parent / "figures" / "figure9.xml").read_bytes()
SAID = ControlMessage(
    verb="deploy",
    to="http://palmtree.hpl.hp.com:8080/cs/bootstub",
    sender="http://sos.hpl.hp.com/ControlService",
    repository="http://sos.hpl.hp.com:8080/cs/repository",
    initiator="http://sos.hpl.hp.com/ControlService",
    boot_file=BootFile("java", "SimpleAgent.class"),
)
PARENT = Parent("", "tcp://127.0.0.1:1/0")


def test_figure_9_is_read() -> None:
    assert read_control(FIGURE_9, "figure9.xml") == SAID


def test_figure_9_becomes_a_call_with_its_start_command_told_by_the_initiator() -> None:
    call = bip_call(SAID, call="c", parent=PARENT, epoch=3, attempt=1, managent="/region1")
    charge = Charge("http://sos.hpl.hp.com:8080/cs/repository", start="java SimpleAgent")
    assert call == BipCall("c", "deploy", "/region1", 3, 1, PARENT, charge)


def test_a_message_may_name_the_managent() -> None:
    told = FIGURE_9.replace(b"<repository", b'<managent id="region1/zone3"/><repository')
    message = read_control(told, "it.xml")
    assert message.managent == "/region1/zone3"
    assert bip_call(message, call="c", parent=PARENT, epoch=0, attempt=0).managent == "/region1/zone3"
    with pytest.raises(BadIdentity, match="deploy: expected a managent's id, found none"):
        bip_call(SAID, call="c", parent=PARENT, epoch=0, attempt=0)


@pytest.mark.parametrize(
    "message",
    [
        SAID,
        ControlMessage("start", "a&b", "", "/x"),
        ControlMessage("configure-env", "", "", "/x/y", "http://r", "", BootFile("script", "a.sh")),
    ],
)
def test_messages_read_as_they_were_written(message: ControlMessage) -> None:
    assert read_control(write_control(message), "it.xml") == message


@pytest.mark.parametrize(
    ("type", "name", "command"),
    [
        ("java", "A.class", "java A"),
        ("python", "a.py", "python3 a.py"),
        ("script", "a.sh", "./a.sh"),
        ("executable", "a", "./a"),
    ],
)
def test_a_boot_file_stands_for_a_start_command(type: str, name: str, command: str) -> None:
    assert start_command(BootFile(type, name)) == command


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'name="deploy"', b'name="destroy"', "name: expected deploy or configure-env"),
        (b'name="deploy"', b"", "expected attribute 'name', found none"),
        (b"<repository uri", b"<repository url", "found attribute 'url'"),
        (b"</header>", b"<x/></header>", "line 6, column 1: expected element from or to in <header>"),
        (b'<repository uri="http://sos.hpl.hp.com:8080/cs/repository"/>', b"", "deploy: expected <repository>"),
        (b'type="java"', b'type="perl"', "type: expected java or python"),
        (b'name="SimpleAgent.class"', b'name="../x.class"', "name: expected a file name, found '../x.class'"),
        (b'name="SimpleAgent.class"', b'name="a; rm x"', "name: expected a file name"),
        (b"<boot-file", b'<managent id="/a/.."/><boot-file', "found '..'"),
        (b"</body>", b"<cmd/></body>", "expected one <cmd>"),
        (b"<header>", b"<heading>", "mismatched tag"),
    ],
)
def test_a_message_that_is_wrong_is_told(old: bytes, new: bytes, said: str) -> None:
    assert old in FIGURE_9
    with pytest.raises(BadXml) as error:
        read_control(FIGURE_9.replace(old, new), "it.xml")
    assert said in str(error.value)


def test_a_header_alone_is_no_message() -> None:
    with pytest.raises(BadXml, match="expected a <header> and a <body>, each an XML document, found 1"):
        read_control(FIGURE_9[: FIGURE_9.rindex(b"<?xml")], "it.xml")
