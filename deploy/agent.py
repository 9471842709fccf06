"""An agent of the fabric as a managent: `python -m deploy.agent`, started by a boot stub.

Who it is follows from its path: /site/r1/r1c01 is node r1c01 of rack r1. Everything else is as for `fabric agent`:
FABRIC_* in its environment, which is the <env-params> of its configuration; besides, AGENT_STATE_ROOT names the folder
in which each node has its state directory. That is not the managent's own directory, which goes when the managent is
uninstalled: what runs on a node, and the images it keeps, outlast every upgrade of its agent.

Over BMP it hears `deactivate`: the node gets nothing new, as if an operator had cordoned it, while what runs there runs
on and is looked after; and `activate`: it gets new instances again, unless an operator's cordon is there. So no work is
lost in between.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from deploy.bmp import Link
from deploy.identity import BadIdentity, check_path, depth, name_of, parent_of
from fabric.config import agent_config
from fabric.config_values import ConfigError
from fabric.runtime.process import run_agent
from fabric.runtime.settings import AgentConfig
from zk import paths
from zk.client import TreeClient
from zk.session_tree import SessionTree
from zk.tree import BadVersion, NodeExists, NoNode

USAGE = 64
OURS = b"managent"
"""What a cordon of `deactivate` holds, so that `activate` takes no operator's away."""
MARK = "deactivated"
"""In the state directory while there is such a cordon."""
CONNECT_S = 20.0
LEAST_DEPTH = 2


def main() -> int:
    """The exit code."""
    try:
        config = configured(os.environ)
    except (ConfigError, BadIdentity) as error:
        print(f"deploy.agent: {error}", file=sys.stderr)
        return USAGE
    Link(activate=partial(activate, config), deactivate=partial(deactivate, config)).start()
    return run_agent(config)


def configured(environment: Mapping[str, str]) -> AgentConfig:
    """Raises ConfigError, BadIdentity."""
    path = check_path(environment.get("MANAGENT_ID", ""))
    if depth(path) < LEAST_DEPTH:
        raise BadIdentity(f"managent id {path}: expected a node below a rack, such as /site/r1/r1c01")
    node, rack = name_of(path), name_of(parent_of(path))
    own = {"FABRIC_NODE": node, "FABRIC_RACK": rack, "FABRIC_MANAGENT": path}
    if root := environment.get("AGENT_STATE_ROOT"):
        own["FABRIC_STATE_DIR"] = str(Path(root) / node)
    return agent_config(environment={**environment, **own})


def deactivate(config: AgentConfig) -> None:
    """On the link's thread. Raises TreeError, Unreachable, OSError, which are the boot stub's answer."""
    asyncio.run(_cordoned(config, True))


def activate(config: AgentConfig) -> None:
    """As `deactivate`. Where nothing was deactivated there is nothing to do, and ZooKeeper is not asked."""
    if (config.state_dir / MARK).exists():
        asyncio.run(_cordoned(config, False))


async def _cordoned(config: AgentConfig, wanted: bool) -> None:
    tree = SessionTree(config.zookeeper, session_timeout_s=config.settings.session_timeout_s)
    mark, path = config.state_dir / MARK, paths.cordon(config.node)
    try:
        await tree.open(CONNECT_S)
        client = TreeClient(tree)
        if wanted:
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()  # first: without it a cordon would stay for ever
            with suppress(NodeExists):  # an operator's, or ours from before
                await client.create(path, OURS)
        else:
            with suppress(NoNode, BadVersion):  # an operator's that took its place meanwhile stays
                found = await client.get(path)
                if found.data == OURS:
                    await client.delete(path, found.stat.version)
            mark.unlink(missing_ok=True)
    finally:
        await tree.close()


if __name__ == "__main__":
    sys.exit(main())
