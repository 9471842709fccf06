"""How a local fabric's agents are described: a repository of six documents, however many agents there are.

It lies in the fabric's folder while it is up. Whoever changes a document there rolls the change out with `fabric
managent apply`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

from fabric.local.folder import NODES, Folder
from fabric.local.state import LocalSpec

SITE = "site"
PARALLEL = 16
"""Agents of a rack that are deployed at once."""

_INFORMATION = """\
<?xml version="1.0" encoding="UTF-8"?>
<repository-information>
  <managent-code>
    <entry>                                       <!-- every agent -->
      <pattern xpath="/site/**/**"/>
      <ref url="agent.sh"/>
    </entry>
  </managent-code>
  <install-config/>
  <managent-config>
    <entry>                                       <!-- the site deploys its racks -->
      <pattern xpath="/site"/>
      <ref url="site.xml"/>
    </entry>
    <entry>                                       <!-- a rack deploys its agents -->
      <pattern xpath="/site/**"/>
      <ref url="rack.xml"/>
    </entry>
    <entry>                                       <!-- what all agents share -->
      <pattern xpath="/site/**/**"/>
      <ref url="agent.xml"/>
    </entry>
    <entry>                                       <!-- a node named like r2s01 keeps images -->
      <pattern xpath="/site/**/r*s*"/>
      <ref url="storage.xml"/>
    </entry>
  </managent-config>
</repository-information>
"""

_SITE = """\
<configuration>
  <initiator restart={restart}>
    <children each="domain"/>
  </initiator>
</configuration>
"""

_RACK = """\
<configuration>
  <initiator restart={restart} parallel="{parallel}">
    <children each="stub"/>
  </initiator>
</configuration>
"""

_AGENT_SH = """\
#!/bin/sh
# Installs an agent: its software is on this machine already, so all that is to tell is how it is started.
echo "MANAGENT_START={python} -m deploy.agent"
"""


def environment(spec: LocalSpec, zk: str) -> dict[str, str]:
    """What all agents share. `zk`: the connect string."""
    folder = Folder(Path(spec.folder))
    return {
        "FABRIC_ZK": zk,
        "FABRIC_LAYER": "compute",
        "FABRIC_CLUSTER_KEY_FILE": str(folder.key_file),
        "FABRIC_LISTEN": "127.0.0.1:0",
        "FABRIC_DATA_LISTEN": "127.0.0.1:0",
        "FABRIC_DRIVER": spec.driver,
        "FABRIC_CAPACITY_VCPUS": str(spec.capacity.vcpus),
        "FABRIC_CAPACITY_MEMORY_MIB": str(spec.capacity.memory_mib),
        "FABRIC_CAPACITY_DISK_MIB": str(spec.capacity.disk_mib),
        "FABRIC_CACHE_SIZE": str(spec.cache_bytes),
        "FABRIC_STORE_SIZE": str(spec.store_bytes),
        "FABRIC_SESSION_TIMEOUT_S": f"{spec.session_timeout_s:g}",
        "FABRIC_LIMITS_DISCUSSION": spec.discussion,
        "FABRIC_LOG_LEVEL": spec.log_level,
        "AGENT_STATE_ROOT": str(folder.path / NODES),
        **({"FABRIC_FAULTS": str(folder.faults)} if spec.faults else {}),
    }


def write(folder: Path, spec: LocalSpec, zk: str) -> None:
    """Make `folder` and all documents. Raises OSError."""
    folder.mkdir(mode=0o700)
    restart = quoteattr("always" if spec.restart else "never")
    for name, text in {
        "repository.xml": _INFORMATION,
        "site.xml": _SITE.format(restart=restart),
        "rack.xml": _RACK.format(restart=restart, parallel=PARALLEL),
        "agent.xml": configuration(environment(spec, zk), '<managent control="bmp"/>'),
        "storage.xml": configuration({"FABRIC_LAYER": "storage"}),
        "agent.sh": _AGENT_SH.format(python=sys.executable),
    }.items():
        (folder / name).write_text(text, "utf-8")


def configuration(env: Mapping[str, str], more: str = "") -> str:
    """A configuration document (HPL-2001-321, Figure 3)."""
    lines = [f"    <env name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in env.items()]
    whole = ("<configuration>", "  <env-params>", *lines, "  </env-params>", *((f"  {more}",) if more else ()))
    return "\n".join((*whole, "</configuration>", ""))
