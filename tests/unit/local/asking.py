"""A keeper whose agents wait until a companion asks for each. The neighbour `behaviour.json` may tell the companion
("steward") to fail."""

from __future__ import annotations

import asyncio
import os
import sys

from fabric.local.control import ControlClient
from fabric.local.crew import Companion, Order, Place
from fabric.local.keeper import main
from fabric.local.state import nodes_of
from tests.unit.local.standin import SmallCrew, behaviour


class AskingCrew(SmallCrew):
    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion("steward", ask, once=True), Companion("idler", idle))

    @property
    def agents_wait(self) -> bool:
        return True

    def run_ordered(self, place: Place, order: Order) -> int:
        print("ordered", *order.argv, order.environment["COLOUR"], order.cwd, flush=True)
        nodes = tuple(node for node in nodes_of(place.spec) if node.name == order.argv[1])
        asyncio.run(self._live(place, nodes, ""))
        return 0


def ask(place: Place) -> int:
    if behaviour(place.folder.path).get("steward") == "fails":
        print("I could not", flush=True)
        return 3
    control = ControlClient(place.folder)
    for node in nodes_of(place.spec):
        pid = control.start(node.name, ["agent", node.name], {"COLOUR": "blue"}, "/")
        print(node.name, pid, flush=True)
    return 0


def idle(place: Place) -> int:
    os.read(place.lifeline, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main(AskingCrew))
