"""`fabric managent send`: what is wrong with the message is told before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.bip_xml import ControlMessage, write_control
from deploy.cli.main import main

DEPLOY = write_control(ControlMessage("deploy", "", "me", "/lab/agent1", "http://r/"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (None, "expected a readable file, found: No such file"),
        (b"<body/>", "expected a <header> and a <body>"),
        (b"x" * 100_000, "expected at most 16"),
        (DEPLOY.replace(b"deploy", b"destroy"), "expected deploy or configure-env"),
        (DEPLOY, "which boot stub? Expected --stub NAME"),
    ],
)
def test_a_message_that_is_none(
    message: bytes | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "message.xml"
    if message is not None:
        file.write_bytes(message)
    assert main(["managent", "send", str(file), "--directory", "zk1"]) == 64
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
