"""A machine: what outlives the agent on it. Disk, instances, images; and the keeper that starts the agent again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fabric.effects import StoreChanged
from fabric.records import LayerName
from fabric.resources import Resources
from fabric.sim.disk import Disk
from fabric.sim.driver import Supervisor
from fabric.sim.host import Process
from fabric.sim.images import Cache, Store

if TYPE_CHECKING:
    from fabric.sim.world import World

RESTART_S = (0.3, 2.0)
"""The keeper starts an agent again this long after it ended by itself, or was killed."""
STORE_BYTES = 1 << 20
CACHED_IMAGES = 3
"""As many as there are: offers do not speak of the cache, and a node whose cache is full of images in use would be a
place on paper only, where healing tries again and again."""


class Machine:
    """`process`: the agent's, if there is one. `wanted`: the keeper starts it again when it ends."""

    def __init__(self, world: World, name: str, rack: str, layer: LayerName, total: Resources, skew_s: float) -> None:
        self.world = world
        self.name = name
        self.rack = rack
        self.layer: LayerName = layer
        self.total = total
        self.skew_s = skew_s
        """How wrong its wall clock is."""
        self.powered = True
        self.wanted = True
        self.process: Process | None = None
        self.starts = 0
        self.disk = Disk(world.clock, world.rng_disk, world.conditions.sync_s)
        self.supervisor = Supervisor(name, world.clock, world.rng_driver, world.habits, world, self.wall_ms)
        self.cache = Cache(CACHED_IMAGES)
        self.store = Store(STORE_BYTES)
        self.data_endpoint = f"tcp://{name}:7001" if layer == "storage" else ""

    def wall_ms(self) -> int:
        return int((self.world.clock.now + self.skew_s) * 1000) + self.world.EPOCH_MS

    def store_state(self) -> StoreChanged:
        return StoreChanged(self.store.held(), self.store.free_bytes, 0, self.store.damaged())

    # --- the agent's life --------------------------------------------------------------------------------------------

    def boot(self) -> None:
        if self.powered and self.wanted and self.process is None:
            self.starts += 1
            self.process = Process(self, self.starts)

    def boot_later(self, after_s: float | None = None) -> None:
        wait_s = self.world.rng_faults.uniform(*RESTART_S) if after_s is None else after_s
        self.world.clock.after(wait_s, self.boot)

    def crash(self) -> None:
        """Of the agent alone. The keeper starts it again, unless it is told not to."""
        if self.process is not None:
            self.process.crash()

    def lose_power(self) -> None:
        """Off: what ran is gone, what was synced stays."""
        self.powered = False
        self.crash()
        self.supervisor.lose_power()

    def power_on(self) -> None:
        if not self.powered:
            self.powered = True
            self.boot_later(0.5)

    def gone(self, process: Process) -> None:
        """The process is no more."""
        if self.process is process:
            self.process = None
            if self.wanted and self.powered:
                self.boot_later()

    def ended(self, process: Process, reason: str) -> None:
        """It ended by itself."""
        self.world.tell(self.name, f"ends{chr(58) if reason else ''} {reason}".rstrip())

    def start_again(self) -> None:
        self.wanted = True
        self.boot_later()

    def leave(self) -> None:
        """An orderly end; it stays away until `start_again`."""
        if self.process is not None and not self.process.paused:
            self.wanted = False
            self.process.leave()

    def pause(self, for_s: float) -> None:
        process = self.process
        if process is not None and not process.paused:
            process.pause()
            self.world.clock.after(for_s, partial(process.resume))
