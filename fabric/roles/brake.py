"""The brake on replacement: nodes that vanish together are waited for, not replaced.

One node that vanishes is broken, and its instances are needed elsewhere. When half a rack or a fifth of the fabric
vanishes within a minute it is more likely the network, the power of a row, or ZooKeeper itself: most of them will be
back, and replacing them all would start hundreds of instances on what is left, fetch images for each, and then stop
them again. So nothing is replaced then until they are back or an operator says so.

`brake` is the whole decision, a pure function of who is noted as lost and how many members are present. Counted as
having vanished together are the lost nodes whose replacement is not decided, and those for which it was decided within
the last `brake_window_s`: a crowd that dies one after the other, each accepted before the next, is still a crowd. What
an operator accepted is never counted, so a release ends the brake, and it stays ended for those nodes. The two shares
are looked at by themselves, each with at least `brake_least` nodes that are counted: in a rack, those of the rack.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fabric.records import Lost
from fabric.roles.settings import Settings

OPERATOR = "operator"
"""`Lost.by` when a person decided, not a leader."""
RACKS_NAMED = 3
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Crowd:
    """`lost` of the `of` compute nodes that `rack` had. `rack` is empty for the fabric as a whole."""

    rack: str
    lost: int
    of: int


@dataclass(frozen=True, slots=True)
class Brake:
    """It is on. `racks`: where too many vanished, ascending; `fabric`: the sums, and whether they alone are too many
    (`fabric_wide`). `nodes`: all that are counted, ascending. `since_ms`: when the first of them was noted."""

    racks: tuple[Crowd, ...]
    fabric: Crowd
    fabric_wide: bool
    nodes: tuple[str, ...]
    since_ms: int
    rack_share: float
    fabric_share: float
    least: int

    @property
    def sentence(self) -> str:
        """Why, for people: in the log, the status, and a deployment's reason."""
        parts: list[str] = []
        if self.fabric_wide:
            parts.append(
                f"{self.fabric.lost} of the fabric's {self.fabric.of} compute nodes vanished "
                f"(over {self.fabric_share:.0%})"
            )
        parts.extend(
            f"{one.lost} of the {one.of} of rack {one.rack} vanished (over {self.rack_share:.0%})"
            for one in self.racks[:RACKS_NAMED]
        )
        if len(self.racks) > RACKS_NAMED:
            parts.append(f"and {len(self.racks) - RACKS_NAMED} more racks")
        return (
            f"the brake is on: {', '.join(parts)}; nothing is replaced until they are back or an operator releases it "
            "(fabric brake release)"
        )


def brake(lost: Iterable[Lost], members: Mapping[str, int], now_ms: int, settings: Settings) -> Brake | None:
    """Says whether so many compute nodes vanished at once that none of them is to be replaced now; None: it is off.

    `lost`: the records of nodes that are not back. `members`: rack -> how many of its compute nodes are present."""
    counted = [one for one in lost if _counts(one, now_ms, settings)]
    by_rack = Counter(one.rack for one in counted)
    crowds = (Crowd(rack, count, count + members.get(rack, 0)) for rack, count in sorted(by_rack.items()))
    racks = tuple(one for one in crowds if _too_many(one, settings.brake_rack_share, settings.brake_least))
    fabric = Crowd("", len(counted), len(counted) + sum(members.values()))
    fabric_wide = _too_many(fabric, settings.brake_fabric_share, settings.brake_least)
    if not racks and not fabric_wide:
        return None
    return Brake(
        racks,
        fabric,
        fabric_wide,
        tuple(sorted(one.node for one in counted)),
        min(one.since_ms for one in counted),
        settings.brake_rack_share,
        settings.brake_fabric_share,
        settings.brake_least,
    )


def _counts(one: Lost, now_ms: int, settings: Settings) -> bool:
    if not one.accepted_ms:
        return True
    return one.by != OPERATOR and now_ms - one.accepted_ms < settings.brake_window_s * 1000


def _too_many(crowd: Crowd, share: float, least: int) -> bool:
    return crowd.lost >= max(1, least) and crowd.lost > share * crowd.of + _ROUNDING
