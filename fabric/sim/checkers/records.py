"""Promises 2 and 3 in ZooKeeper: epochs only grow, only the owner writes, and what is not at rest is marked as open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.records import Deployment
from fabric.sim.checkers.base import Checker
from fabric.sim.checkers.view import View
from zk import paths
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.world import World

_DEPLOYMENTS = paths.DEPLOYMENTS + "/"
_OPEN = paths.OPEN + "/"


class Records(Checker):
    names = ("epochs", "marker")

    def __init__(self, world: World, view: View) -> None:
        super().__init__(world)
        self._view = view
        self._claims: dict[str, int] = {}
        """Deployment -> the zxid of the last claim: its newest epoch."""

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        touched: list[str] = []
        for kind, path in changes:
            if path.startswith(_OPEN):
                deployment = path.split("/")[2]
                if kind == "create" and path.endswith("/owner"):
                    self._claims[deployment] = zxid
            elif path.startswith(_DEPLOYMENTS) and path.count("/") == 2:
                deployment = path[len(_DEPLOYMENTS) :]
                if kind == "set":
                    self._written(deployment, session)
            else:
                continue
            if deployment not in touched:
                touched.append(deployment)
        for deployment in touched:
            self._marked(deployment)

    def _written(self, deployment: str, session: int) -> None:
        seen = self._view.deployments[deployment]
        old, new = seen.before, seen.record
        if old is not None and (new.epoch, new.step) < (old.epoch, old.step):
            self.fail(
                "epochs", f"{deployment}: written under {(new.epoch, new.step)} after {(old.epoch, old.step)}"
            )
        if old is not None and new.generation < old.generation:
            self.fail("epochs", f"{deployment}: generation {old.generation} became {new.generation}")
        if session in self.world.agent_sessions:
            owner = self._view.owners.get(deployment) or self._view.owned_before.get(deployment)
            node = self.world.agent_sessions[session]
            if owner != session and not (old is not None and _only_opened(old, new)):
                whose = self.world.agent_sessions.get(owner or 0, "nobody")
                self.fail("epochs", f"{deployment}: {node} writes its record while {whose} owns it")
            if new.epoch > self._claims.get(deployment, 0):
                self.fail("epochs", f"{deployment}: {node} writes epoch {new.epoch}, which nobody claimed")

    def _marked(self, deployment: str) -> None:
        ensemble = self.world.ensemble
        if ensemble.stat(paths.deployment(deployment)) is None:
            return
        record = self._view.deployments[deployment].record
        if not record.final and ensemble.stat(paths.open_marker(deployment)) is None:
            self.fail(
                "marker",
                f"{deployment}: {record.state}, generation {record.generation}, settled {record.settled}, and nothing "
                "marks it as open",
            )

    def sweep(self) -> None:
        for deployment in self._view.deployments:
            self._marked(deployment)


def _only_opened(old: Deployment, new: Deployment) -> bool:
    """A leader found that something has to be done about it, and opened it for whoever will coordinate."""
    kept = ("epoch", "step", "plan", "leaving", "stopping", "count", "gone")
    return new.generation > old.generation and all(getattr(old, name) == getattr(new, name) for name in kept)
