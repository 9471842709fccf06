"""What a seed decides before anything happens: the fabric's size, its limits, the weather, and which faults there are.

Theory of operation. Some seeds are calm, some are wild (`level`); in each only some kinds of faults happen at all, and
with weights of their own, so that rare combinations come up in some seed instead of in none. Limits are shortened, so
that much happens in little virtual time; what they are to one another stays.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fabric.resources import Resources
from fabric.roles.settings import Settings
from fabric.sim.driver import Habits
from fabric.sim.network import Weather

KINDS: dict[str, float] = {
    "crash": 6.0,
    "power": 2.0,
    "rack": 0.5,
    "dead": 0.7,
    "pause": 4.0,
    "leave": 2.0,
    "partition": 4.0,
    "cut off": 3.0,
    "expire": 2.0,
    "drop": 3.0,
    "reply": 6.0,
    "outage": 1.0,
    "journal full": 1.0,
    "images full": 1.0,
    "rot": 2.0,
    "instance": 3.0,
    "clock": 1.0,
    "api": 2.0,
    "stranger": 4.0,
}
"""Faults that happen at moments of their own, and how often, relative to one another."""

SETTINGS = Settings(
    session_timeout_s=4.0,
    heartbeat_interval_s=1.0,
    silent_after_s=2.6,
    sweep_interval_s=2.0,
    load_hint_interval_s=2.0,
    retry_max_s=1.0,
    submit_wait_s=0.6,
    offer_wait_s=0.6,
    command_wait_s=1.0,
    hop_margin_s=0.2,
    reservation_ttl_s=6.0,
    place_deadline_s=10.0,
    poll_interval_s=0.5,
    start_stall_s=6.0,
    start_deadline_s=24.0,
    stop_grace_s=1.0,
    stop_deadline_s=10.0,
    verify_every_s=6.0,
    lost_note_s=0.5,
    brake_settle_s=1.0,
    brake_window_s=8.0,
    brake_interval_s=1.0,
    patrol_interval_s=5.0,
    orphan_after_s=1.0,
    repair_interval_s=4.0,
    repair_grace_s=3.0,
    repair_wait_s=8.0,
    repair_poll_s=0.3,
    home_wait_s=6.0,
    leftovers_every_s=20.0,
    leftovers_after_s=4.0,
    max_restart_backoff_s=2.0,
)

NODE = Resources(16, 65_536, 262_144)
SMALL = Resources(2, 4096, 8192)
LARGE = Resources(5, 16_384, 40_960)


class Storm(Weather):
    """Weather whose late messages have a heavy tail: most are late by milliseconds, one in some hundred by more than a
    session lives."""

    def copies(self, sender: str, to: str) -> Sequence[tuple[float, bool]]:
        if self.cuts and (sender, to) in self.cuts:
            return ()
        rng = self.rng
        delay_s = self.delay_s + rng.random() * self.spread_s
        if not self.loss and not self.overtaken and not self.repeat:
            return ((delay_s, True),)
        luck = rng.random()
        if luck < self.loss:
            return ()
        luck -= self.loss
        if luck < self.overtaken:
            return ((delay_s + self._late_s(), False),)
        luck -= self.overtaken
        if luck < self.repeat:
            return (delay_s, True), (delay_s + self._late_s(), False)
        return ((delay_s, True),)

    def _late_s(self) -> float:
        return min(self.late_s, 0.02 * self.rng.paretovariate(0.8))


@dataclass(frozen=True, slots=True)
class Conditions:
    """`fault_every_s`: the mean time between faults of `kinds`, which happen until `faults_s`, and go on for `lasting`
    times as long as usual. `lag_s`: as much may a ZooKeeper server be behind the others; 0: none is."""

    level: str
    racks: int
    compute: int
    storage: int
    faults_s: float
    fault_every_s: float
    kinds: dict[str, float]
    loss: float
    repeat: float
    overtaken: float
    late_s: float
    spoilt: float
    sync_s: float
    zk_s: float
    skew_s: float
    habits: Habits
    requests: int
    images: int
    lasting: float = 1.0
    lag_s: float = 0.0
    discussion: Literal["known", "full"] = "known"
    """As in Settings."""


def draw(rng: random.Random, nodes: int) -> Conditions:
    """Of a fabric of about so many nodes, a fifth of which are storage."""
    level = rng.choices(("calm", "mild", "wild"), (2, 5, 3))[0]
    racks = rng.randint(2, 5) if nodes >= 12 else 2
    storage = max(1, round(nodes / 5 / racks))
    compute = max(1, round(nodes / racks) - storage)
    wild = {"calm": 0.0, "mild": 0.3, "wild": 1.0}[level]

    def rate(most: float) -> float:
        return most * wild * rng.random() if rng.random() < 0.6 else 0.0

    some = [kind for kind in KINDS if rng.random() < 0.5]
    if rng.random() < 0.3:  # little else happens, so that it goes far
        some = rng.sample(sorted(KINDS), 2)
    lasting = rng.choice((1.0, 1.0, 3.0))
    kinds = {kind: KINDS[kind] * rng.uniform(0.3, 1.7) for kind in some}
    habits = Habits(
        start_s=rng.choice((0.01, 0.03, 0.2)),
        end_s=rng.choice((0.02, 0.1)),
        fails=rate(0.15),
        stubborn=rate(0.3),
        exits_after_s=rng.uniform(5, 60) if wild and rng.random() < 0.4 else 0.0,
    )
    every_s = {"calm": 60.0, "mild": rng.uniform(1.5, 6.0), "wild": rng.uniform(0.3, 1.5)}[level]
    return Conditions(
        level=level,
        racks=racks,
        compute=compute,
        storage=storage,
        faults_s=rng.uniform(12, 30) * (1.0 if lasting == 1.0 else 1.6),
        fault_every_s=every_s,
        kinds=kinds,
        loss=rate(0.15),
        repeat=rate(0.15),
        overtaken=rate(0.2),
        late_s=rng.choice((0.5, 2.0, 12.0)),
        spoilt=rate(0.1),
        sync_s=rng.choice((0.0005, 0.004, 0.05)),
        zk_s=rng.choice((0.0005, 0.002, 0.02)),
        skew_s=rate(100_000.0),
        habits=habits,
        requests=rng.randint(3, 7),
        images=rng.randint(1, 3),
        lasting=lasting,
        lag_s=rng.choice((0.0, 0.0, 0.0, 0.3, 1.0, 3.0)) if wild else 0.0,
        discussion=rng.choice(("known", "known", "full")),
    )
