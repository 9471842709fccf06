"""What is wrong with the network: rules from endpoint to endpoint, as data. Pure.

An *endpoint* is whoever has an address: a node (its agent), "api", a ZooKeeper server, "operator" (whoever looks from
outside: the commands, the keeper). A rule is one-way: what `source` sends and `target` would get. All rules that speak
of a pair hold together (losses multiply, delays add up, the narrowest link counts), so their order does not matter. No
rules: a healthy network. A fabric's rules are replaced as a whole, never one by one.

    cut(("r1",), ("rest",))                                      neither hears the other
    Rule(("r1c01",), ("zookeeper",), Verdict(drop=1))            ZooKeeper hears nothing of r1c01, but r1c01 hears it
    Rule(("all",), ("all",), Verdict(delay_ms=40, jitter_ms=20))

Names may be those of groups, which `Names.endpoints` resolves: racks, "nodes", "zookeepers", "all", and "rest": whoever
the other side of the rule does not name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

MAX_RULES = 256
MAX_DELAY_MS = 60_000.0
LEAST_BYTES_PER_S = 1_000
ALL, REST, OPERATOR, API = "all", "rest", "operator", "api"


class BadRule(ValueError):
    """A rule that can't be: what was expected, what was found."""


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of what is sent. `drop`: the share that is lost; 1: nothing passes. `jitter_ms`: up to so much more
    than `delay_ms`, evenly; order is kept. `bytes_per_s`: 0 is as fast as it goes."""

    drop: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    delay_ms: Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_MS)] = 0.0
    jitter_ms: Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_MS)] = 0.0
    bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0

    def __post_init__(self) -> None:
        if 0 < self.bytes_per_s < LEAST_BYTES_PER_S:
            raise BadRule(f"bytes_per_s: expected 0 or at least {LEAST_BYTES_PER_S}, found {self.bytes_per_s}")

    @property
    def healthy(self) -> bool:
        return self == HEALTHY

    def __str__(self) -> str:
        parts = (
            "all lost" if self.drop == 1 else f"{self.drop:.3g} lost" if self.drop else "",
            f"{self.delay_ms:g} ms late" if self.delay_ms else "",
            f"up to {self.jitter_ms:g} ms of jitter" if self.jitter_ms else "",
            f"{self.bytes_per_s} bytes/s" if self.bytes_per_s else "",
        )
        return ", ".join(part for part in parts if part) or "well"

    def and_also(self, other: Verdict) -> Verdict:
        """Both hold."""
        rates = [rate for rate in (self.bytes_per_s, other.bytes_per_s) if rate]
        return Verdict(
            1 - (1 - self.drop) * (1 - other.drop),
            min(MAX_DELAY_MS, self.delay_ms + other.delay_ms),
            min(MAX_DELAY_MS, self.jitter_ms + other.jitter_ms),
            min(rates, default=0),
        )


HEALTHY = Verdict()
LOST = Verdict(drop=1)


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the endpoints of `source` send to those of `target`. Both are names of endpoints or of groups."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    verdict: Verdict

    def __str__(self) -> str:
        return f"{' '.join(self.source)} -> {' '.join(self.target)}: {self.verdict}"


def cut(some: Iterable[str], others: Iterable[str]) -> tuple[Rule, Rule]:
    """Neither hears the other."""
    here, there = tuple(some), tuple(others)
    return Rule(here, there, LOST), Rule(there, here, LOST)


Table = dict[tuple[str, str], Verdict]
"""(source, target) -> verdict, for the pairs of endpoints that have one."""


@dataclass(frozen=True, slots=True)
class Names:
    """Who is on a network, and what groups of them are called."""

    endpoints: tuple[str, ...]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def resolve(self, names: Iterable[str], others: frozenset[str] | None = None) -> frozenset[str]:
        """The endpoints that `names` mean. `others`: what "rest" is the rest of. Raises BadRule."""
        found: set[str] = set()
        for name in names:
            if name in self.endpoints:
                found.add(name)
            elif name in self.groups:
                found.update(self.groups[name])
            elif name == ALL:
                found.update(self.endpoints)
            elif name == REST and others is not None:
                found.update(frozenset(self.endpoints) - others)
            elif name == REST:
                raise BadRule('expected "rest" on one side of a rule, found it on both')
            else:
                known = ", ".join((*self.endpoints[:3], "…", *self.groups, OPERATOR, ALL, REST))
                raise BadRule(f"expected an endpoint or a group of this fabric ({known}), found {name[:80]!r}")
        return frozenset(found)

    def table(self, rules: Sequence[Rule]) -> Table:
        """Raises BadRule."""
        if len(rules) > MAX_RULES:
            raise BadRule(f"expected at most {MAX_RULES} rules, found {len(rules)}")
        table: Table = {}
        for rule in rules:
            if REST in rule.source:
                targets = self.resolve(rule.target)
                sources = self.resolve(rule.source, targets)
            else:
                sources = self.resolve(rule.source)
                targets = self.resolve(rule.target, sources)
            for source in sources:
                for target in targets - {source}:
                    table[source, target] = table.get((source, target), HEALTHY).and_also(rule.verdict)
        return {pair: verdict for pair, verdict in table.items() if not verdict.healthy}
