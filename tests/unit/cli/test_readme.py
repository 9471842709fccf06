"""What the README says can be typed or copied: its configuration files and documents are read, its commands known."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from deploy.cli.main import GROUPS
from deploy.documents import read_configuration, read_information
from fabric.cli.parser import build
from fabric.config import agent_config, api_config
from fabric.flavors import DEFAULT_FILE

README = (Path(__file__).parents[3] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_configuration_files_are_good(tmp_path: Path) -> None:
    key = tmp_path / "cluster.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    agent, api = (
        text.replace("/etc/fabric/cluster.key", str(key)).replace("/etc/fabric/flavors.toml", str(DEFAULT_FILE))
        for text in blocks("toml")
    )
    (tmp_path / "agent.toml").write_text(agent)
    (tmp_path / "api.toml").write_text(api)
    read = agent_config(tmp_path / "agent.toml", {}, {})
    assert (read.node, read.rack, read.layer, read.advertise) == ("r1c01", "r1", "compute", "192.0.2.17")
    assert read.total.vcpus > 0
    assert api_config(tmp_path / "api.toml", {}, {}).port == 8420


def test_the_documents_are_good() -> None:
    information, configuration = blocks("xml")
    assert len(read_information(information.encode(), "README").managent) == 4
    assert read_configuration(configuration.encode(), "README").initiator
    short = re.findall(r"^echo '(<configuration>.*)' > (\S+)$", README, re.MULTILINE)
    assert {name for _, name in short} <= set(re.findall(r'url="(.*?)"', information))
    roles = [read_configuration(text.encode(), name).initiator is not None for text, name in short]
    assert roles == [True, True, False, False]


def test_every_command_named_is_known() -> None:
    """In the blocks and in the text; options too, as far as they stand there."""
    found = {line.split("#")[0].strip(" &") for block in blocks("") for line in block.splitlines() if "fabric " in line}
    commands = sorted(line for line in found if line.startswith("fabric "))
    assert len(commands) > 15
    for command in commands:
        words = ["d-1r2k0q9x4ab" if word.startswith("$ID") else word for word in shlex.split(command)[1:]]
        assert build(GROUPS).parse_args(words), command
    for unit in blocks("ini"):
        started = re.search(r"^ExecStart=\S+/fabric (.*)$", unit, re.MULTILINE)
        assert started
        assert build(GROUPS).parse_args(shlex.split(started[1]))
