"""A keeper whose agents are small and, where their names say so, ill-behaved: for tests of the keeper alone.

Nodes register and lead for real (a ZooKeeper session each); the API answers /readyz. What they do is told by the
folder's neighbour `behaviour.json`: node -> "dies", "deaf" (ignores TERM and the lifeline), "late" (never registers),
and "spawns" (starts a child in a session of its own, which the keeper must find).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from fabric.local.crew import Place, RealCrew
from fabric.local.keeper import main
from fabric.local.state import Node
from fabric.records import Leader, Member, encode
from fabric.resources import Resources
from zk import paths
from zk.client import TreeClient
from zk.session_tree import SessionTree
from zk.tree import NodeExists, NoNode


def behaviour(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder.parent / f"{folder.name}.behaviour").read_text()))
    except FileNotFoundError:
        return {}


class SmallCrew(RealCrew):
    def warm(self) -> None:
        pass

    def run_agents(self, place: Place, nodes: tuple[Node, ...]) -> int:
        how = behaviour(place.folder.path).get(nodes[0].name, "")
        if how == "dies":
            print("I was told to die", flush=True)
            return 3
        if how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if how == "spawns":
            print(subprocess.Popen(["sleep", "1000"], start_new_session=True, env={}).pid, flush=True)
        asyncio.run(self._live(place, nodes, how))
        return 0

    async def _live(self, place: Place, nodes: tuple[Node, ...], how: str) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        if how != "deaf":
            loop.add_signal_handler(signal.SIGTERM, ended.set)
            loop.add_reader(place.lifeline, ended.set)
        trees = []
        for node in nodes if how != "late" else ():
            tree = SessionTree(self.zookeepers.peers, session_timeout_s=place.spec.session_timeout_s)
            trees.append(tree)
            await tree.open(10.0)
            client = TreeClient(tree)
            await client.ensure(paths.rack_members(node.layer, node.rack))
            member = Member(
                node=node.name,
                rack=node.rack,
                layer=node.layer,
                guid="0" * 16,
                address="tcp://x/y",
                data_endpoint="",
                total=Resources(1, 1, 1),
                driver="null",
                protocol=(1, 0),
                host="h",
                pid=os.getpid(),
            )
            at = paths.member(node.layer, node.rack, node.name)
            with contextlib.suppress(NoNode):
                await client.delete(at)  # a killed predecessor's
            await client.create(at, encode(member), ephemeral=True)
            with contextlib.suppress(NodeExists):
                leader = Leader(node.name, node.rack, "0" * 16, "tcp://x/y")
                await client.create(paths.leader(node.layer, node.rack), encode(leader), ephemeral=True)
        print("alive", flush=True)
        await ended.wait()
        await asyncio.gather(*(tree.close() for tree in trees))

    def run_api(self, place: Place) -> int:
        listener = socket.create_server(place.api.listen)
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


if __name__ == "__main__":
    sys.exit(main(SmallCrew))
