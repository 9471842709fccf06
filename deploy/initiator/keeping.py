"""The table: claimed once, saved as seldom as can be, but before anything is deployed where it does not say so yet.

Every change of a row is `touch`ed; the touches are numbered, and one save is under way at a time. What must be in
ZooKeeper before a deploy leaves (a new child, another stub) is touched `urgent`, and the child waits until a save with
that number was acknowledged. All children that are new at once are in one save. Outcomes wait up to `save_s`, or until
the rollout has settled.
"""

from __future__ import annotations

from collections.abc import Callable

from deploy.initiator.calls import Addresses
from deploy.initiator.effects import ClaimTable, DropTable, SaveTable
from deploy.initiator.house import House
from deploy.initiator.kid import Kid
from deploy.records import Table


class Keeper:
    """`on_saved(now, kids)`: these children's intents are in ZooKeeper now."""

    def __init__(self, house: House, addresses: Addresses, on_saved: Callable[[float, list[Kid]], None]) -> None:
        self._house = house
        self._addresses = addresses
        self._on_saved = on_saved
        self._mark = 0
        self.saved = 0
        self._under_way: int | None = None
        self._urgent = False
        self._claiming = False
        self._waiting: dict[Kid, None] = {}
        self.dropped = False
        self._dropping = False
        self._drops = False
        """What is under way is a DropTable."""

    def claim(self) -> None:
        if not self._claiming and not self._house.epoch:
            self._claiming = True
            self.dropped = self._dropping = False
            self._house.do(ClaimTable())

    def claimed(self) -> None:
        self._claiming = False

    def touch(self, now: float, kid: Kid | None = None, urgent: bool = False) -> int:
        """The table has to be saved; returns the number of a save that will do."""
        if kid is not None:
            kid.row = None
        self._mark += 1
        self._urgent = self._urgent or urgent
        if not urgent:
            self._house.agenda.by(("save", ""), now + self._house.settings.save_s)
        return self._mark

    def wait(self, kid: Kid) -> None:
        """Save it now; `on_saved` will come for this child."""
        self._waiting[kid] = None
        self._urgent = True

    def hurry(self) -> int:
        """Save what there is to save; returns the number of a save that will do."""
        self._urgent = self._urgent or self._mark > max(self.saved, self._under_way or 0)
        return self._mark

    @property
    def is_saved(self) -> bool:
        """ZooKeeper has everything."""
        return self._mark == self.saved

    def verify(self) -> None:
        """Save in any case: somebody says that the table may be another's."""
        self._mark += 1
        self._urgent = True

    def drop(self) -> None:
        self._dropping = True

    def keep(self) -> None:
        """There are children again. A drop that is under way may still be done: see `dropped`."""
        self._dropping = False

    def flush(self) -> None:
        """At the end of an input."""
        if self._under_way is not None or not self._house.epoch or ("again", "") in self._house.agenda:
            return
        if self._dropping and not self.dropped:
            self._under_way, self._drops = self._mark, True
            self._house.do(DropTable())
        elif self._urgent and not self.dropped:
            self._urgent = False
            self._under_way, self._drops = self._mark, False
            self._house.agenda.drop(("save", ""))
            self._house.do(SaveTable(self.table()))

    def on_time(self, now: float) -> None:
        self._urgent = True

    def on_done(self, now: float) -> None:
        """`Saved`."""
        if self._under_way is None:
            return
        self.saved, self._under_way = self._under_way, None
        self.dropped = self.dropped or self._drops
        ready = [kid for kid in self._waiting if kid.intent <= self.saved]
        for kid in ready:
            del self._waiting[kid]
        self._on_saved(now, ready)

    def on_failed(self, now: float) -> None:
        """Whatever was under way was not done: again, a little later."""
        self._claiming = False
        if self._under_way is not None:
            self._under_way = None
            self._urgent = self._urgent or not self._dropping
        self._house.agenda.set(("again", ""), now + self._house.settings.directory_retry_s)

    def table(self) -> Table:
        house, where = self._house, self._addresses.where
        rows = tuple(kid.as_row(where(kid.stub)) for kid in house.kids.values())
        rollout = house.rollout.id if house.rollout else ""
        return Table(house.path, house.guid, house.address, rollout, rows, house.repository)
