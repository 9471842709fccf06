"""`fabric managent send`: what is wrong with a message is told before anybody is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.bip_xml import LIMITS, ControlMessage, write_control
from deploy.cli.main import main
from fabric.cli.exits import Exit

SHUTDOWN = write_control(ControlMessage("shutdown", "s1", "me"))
NAMED = write_control(ControlMessage("shutdown", "s1", "me", "/region1/agent"))


@pytest.mark.parametrize(
    ("data", "id", "said"),
    [
        (SHUTDOWN, "", "which managent? Expected --id PATH, or <managent id=…> in"),
        (SHUTDOWN, "/region1/..", "--id: managent id: expected parts of"),
        (NAMED, "/region1/other", "--id: expected /region1/agent, as"),
        (b"<header/>", "", "line 1, column 1: expected a <header> and a <body>"),
        (SHUTDOWN.replace(b"shutdown", b"destroy"), "", "name: expected deploy or configure-env"),
        (b"<!DOCTYPE header [<!ENTITY a 'b'>]>" + SHUTDOWN, "", "expected no DOCTYPE"),
        (b" " * LIMITS.bytes + SHUTDOWN, "", "expected at most 16,384 bytes"),
        (None, "", "expected a readable file, found"),
    ],
)
def test_a_message_that_is_wrong_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, id: str, said: str
) -> None:
    file = tmp_path / "message.xml"
    if data is not None:
        file.write_bytes(data)
    arguments = ["managent", "send", str(file), "--directory", "127.0.0.1:1", *(["--id", id] if id else [])]
    assert main(arguments) == Exit.USAGE
    out, error = capsys.readouterr()
    assert out == ""
    assert said in error
    assert str(file) in error or "--id" in error
    assert error.count("\n") == 1
