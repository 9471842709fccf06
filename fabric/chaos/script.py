"""The scenario language: a few lines of text that a user can copy, change, and run.

    # The leader of a rack dies, and its successor while it is new.
    fabric racks=3 compute=3 storage=2 session=2s
    image 4MiB
    load 5/s
    at 2s kill leader compute r1 for 5s
    at 4s stop any compute for 8s
    on coordinator.plan-written kill
    for 20s
    expect failed=0

One statement a line; `#` begins a comment, and the comment at the top says what the scenario is about. In any order:

    fabric NAME=VALUE …     what to bring up (nothing is, with --dir); the names are in SHAPE
    image SIZE              an image of random bytes besides its entry point; may be repeated, and loads use all of them
    load RATE/s NAME=VALUE …  requests; the names are in LOAD
    at TIME VERB TARGET …   a fault, TIME after the load began; `for TIME` at its end: undone so much later
    every TIME VERB TARGET …  the same again and again
    on STEP VERB [TARGET]   whoever reaches that step of the flow (fabric.steps), of these, does it to himself: kill,
                            stop, restart; needs faults=on; `at TIME on STEP …`: from that time on
    for TIME                how long faults and load last; then all is healed, and judged
    settle TIME             how long it may take until all is at rest after that
    expect NAME=VALUE       a figure of the scorecard that must be so; `<` and `>` too

Times are 5s, 500ms, 2m, 1h. Targets are words (targets.py); VERBS says which verbs there are and what they take.
This module has the words; reading.py reads the lines, writing.py writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fabric.chaos.targets import Side, Target

MAX_SECONDS = 24 * 3600.0
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
UNITS_BYTES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class BadScript(Exception):
    """A line that is none: where, what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fabric that a scenario wants. `vcpus`: of each compute node, so that a run may fill it."""

    racks: int = 3
    compute: int = 3
    storage: int = 2
    session: float = 2.0
    zookeepers: int = 1
    network: Literal["host", "namespaces", "proxy"] = "host"
    faults: bool = False
    vcpus: int = 16


@dataclass(frozen=True, slots=True)
class Load:
    """`per_s` requests are begun a second, no matter how long they take, while fewer than `most` are open. Creates ask
    for `count` (least and most) instances of `flavor`; about `keep` deployments are kept, the others deleted; a share
    of `scale` requests changes a count; a share of `stubborn` deployments ignores TERM."""

    per_s: float = 0.0
    count: tuple[int, int] = (1, 4)
    keep: int = 10
    most: int = 200
    scale: float = 0.25
    stubborn: float = 0.0
    lost_after: float = 2.0
    stop_after: float = 0.0
    flavor: str = "Tiny"


@dataclass(frozen=True, slots=True)
class Act:
    """One fault. When: `at_s`, or again and again (`every_s`), or `step`. `for_s`: until it is undone; None: at the
    end. `sides`: of `cut` and `slow`, one way with `one_way`. `options`: as VERBS has them."""

    verb: str
    target: Target | None = None
    at_s: float | None = None
    every_s: float | None = None
    step: str = ""
    for_s: float | None = None
    sides: tuple[Side, Side] | None = None
    one_way: bool = False
    options: tuple[tuple[str, float], ...] = ()
    line: int = 0

    def option(self, name: str, default: float) -> float:
        return dict(self.options).get(name, default)


@dataclass(frozen=True, slots=True)
class Expect:
    """A figure (scorecard.py), how it is compared, and with what."""

    figure: str
    sign: Literal["=", "<", ">"]
    value: float


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    about: str = ""
    shape: Shape = Shape()
    images: tuple[int, ...] = (1 << 20,)
    load: Load = Load()
    acts: tuple[Act, ...] = ()
    for_s: float = 10.0
    settle_s: float = 90.0
    expects: tuple[Expect, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Verb:
    """`target`: what it takes: "one" target, two "sides", or "none". `options`: name -> how its value is read.
    `lasts`: it has an end that can be said."""

    help: str
    target: Literal["one", "sides", "none"] = "one"
    options: Mapping[str, Callable[[str], float]] = field(default_factory=dict)
    lasts: bool = True


def seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    value = float(match[1]) * UNITS_S[match[2]] if match else -1.0
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"expected a time such as 5s, 500ms or 2m, at most 24h, found {text!r}")
    return value


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})(KiB|MiB|GiB)", text)
    if not match or not int(match[1]):
        raise ValueError(f"expected a size such as 4MiB, found {text!r}")
    return int(match[1]) * UNITS_BYTES[match[2]]


def number(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise ValueError(f"expected a number, found {text!r}")
    return float(text)


def share(text: str) -> float:
    if not re.fullmatch(r"0(\.[0-9]{1,6})?|1(\.0+)?", text):
        raise ValueError(f"expected a share from 0 to 1, found {text!r}")
    return float(text)


def _counts(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(f"expected a count such as 3 or 1-4, found {text!r}")
    return least, most


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}, found {text!r}")
        return text

    return read


def whole(text: str) -> int:
    return int(number(text))


SHAPE: Mapping[str, Callable[[str], Any]] = {
    "racks": whole,
    "compute": whole,
    "storage": whole,
    "session": seconds,
    "zookeepers": whole,
    "network": _one_of("host", "namespaces", "proxy"),
    "faults": lambda text: _one_of("on", "off")(text) == "on",
    "vcpus": whole,
}
LOAD: Mapping[str, Callable[[str], Any]] = {
    "count": _counts,
    "keep": whole,
    "most": whole,
    "scale": share,
    "stubborn": share,
    "lost-after": seconds,
    "stop-after": seconds,
    "flavor": str,
}
_LINK: Mapping[str, Callable[[str], float]] = {
    "drop": share, "delay": seconds, "jitter": seconds, "rate": lambda text: float(size(text.removesuffix("/s"))),
}  # fmt: skip
VERBS: Mapping[str, Verb] = {
    "kill": Verb("SIGKILL; started again after `for`, or in the end"),
    "stop": Verb("SIGSTOP, then SIGCONT: it stands still, and does not know"),
    "restart": Verb("ended in order and started again", lasts=False),
    "rot": Verb("some bytes of one chunk in a store are changed on the disk", lasts=False),
    "tear": Verb("killed, the end of its journal cut off, and started again", options={"bytes": number}, lasts=False),
    "fill": Verb("its disk is full (a small tmpfs over its folder)"),
    "read-only": Verb("its disk is read-only when it starts again"),
    "end": Verb("an instance's processes are killed", lasts=False),
    "hang": Verb("an instance's processes are stopped"),
    "clock": Verb("its wall clock steps", options={"by": lambda text: _signed(text)}),
    "slow-disk": Verb("each write of a ZooKeeper server to its log takes so much longer", options={"delay": seconds}),
    "drag": Verb("it runs for a share of the time only, as on a busy machine", options={"share": share}),
    "cut": Verb("nothing passes between two sides: A | B, or one way: A > B", target="sides"),
    "slow": Verb("what passes between two sides is dropped, delayed, throttled", target="sides", options=_LINK),
    "strangers": Verb("what is no message is sent to its ports", lasts=False),
}


STEP_VERBS = ("kill", "stop", "restart")


def _signed(text: str) -> float:
    return -seconds(text[1:]) if text.startswith("-") else seconds(text.removeprefix("+"))
