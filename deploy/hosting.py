"""Where an initiator lives: what its host gives it, and what the host asks of it.

An initiator is hosted by a boot stub (a managent whose configuration says so) or by the command line and programs (the
top). Both have a bus, a loop, and sessions with directories; the initiator brings none of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deploy.configuration import InitiatorRole
from deploy.messages import AnyDeployMessage, Charge, Parent
from zk.tree import Tree

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True)
class InitiatorCharge:
    """Who the initiator is, for one incarnation. `role`: of its merged configuration. `charge`: what it was deployed
    with (its repository, directory, domain, rollout). (`epoch`, `attempt`): under which it was deployed itself."""

    path: str
    parent: Parent
    epoch: int
    attempt: int
    role: InitiatorRole
    charge: Charge


class InitiatorHome(Protocol):
    """What the host gives."""

    @property
    def address(self) -> str:
        """Of the bus on which messages for this initiator come."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def send(self, to: str, message: AnyDeployMessage) -> None:
        """Never raises for what the network does."""

    async def tree(self, directory: str) -> Tree:
        """The host's session with this directory (a connect string), opened when it is first asked for and shared by
        all initiators of the host. Raises zk.connect.Unreachable."""

    def log(self, level: str, text: str) -> None:
        """`level`: info, warning, error."""

    def failed(self, path: str, reason: str) -> None:
        """A bug ended the initiator at `path`, on whichever occasion: it has closed itself, takes nothing any more, and
        is as a managent whose program crashed. Called on the loop, maybe from within a call to it."""


class HostedInitiator(Protocol):
    """What the host asks. All calls on the host's loop; none raises (see InitiatorHome.failed)."""

    def take(self, sender: str, message: AnyDeployMessage) -> None:
        """A message whose `to` is this initiator's path. `sender`: answer there."""

    def activate(self) -> None:
        """Begin, or go on (BMP)."""

    def deactivate(self) -> None:
        """Begin nothing new; children run on. One of these two is called first."""

    def charged(self, charge: InitiatorCharge) -> None:
        """Its parent, charge or role is another now."""

    def close(self) -> None:
        """Shut down: children run on, and are found again by the next incarnation."""


NewInitiator = Callable[[InitiatorHome, InitiatorCharge], HostedInitiator]
"""Makes an initiator that is not active yet."""
