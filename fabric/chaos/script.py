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
    on STEP VERB [TARGET]   when that step of the flow is reached (fabric.steps); needs faults=on
    for TIME                how long faults and load last; then all is healed, and judged
    settle TIME             how long it may take until all is at rest after that
    expect NAME=VALUE       a figure of the scorecard that must be so; `<` and `>` too

Times are 5s, 500ms, 2m, 1h. Targets are words (targets.py); VERBS says which verbs there are and what they take.
`format_scenario` writes a scenario as such lines again: that is how a random one is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from fabric.chaos.targets import BadTarget, Side, Target, parse_side, parse_target

MAX_LINES = 2000
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


def _whole(text: str) -> int:
    return int(number(text))


SHAPE: Mapping[str, Callable[[str], Any]] = {
    "racks": _whole,
    "compute": _whole,
    "storage": _whole,
    "session": seconds,
    "zookeepers": _whole,
    "network": _one_of("host", "namespaces", "proxy"),
    "faults": lambda text: _one_of("on", "off")(text) == "on",
    "vcpus": _whole,
}
LOAD: Mapping[str, Callable[[str], Any]] = {
    "count": _counts,
    "keep": _whole,
    "most": _whole,
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
    "slow-disk": Verb("each write of a ZooKeeper server takes longer", options={"delay": seconds}),
    "cut": Verb("nothing passes between two sides: A | B, or one way: A > B", target="sides"),
    "slow": Verb("what passes between two sides is dropped, delayed, throttled", target="sides", options=_LINK),
    "strangers": Verb("what is no message is sent to its ports", lasts=False),
}


def _signed(text: str) -> float:
    return -seconds(text[1:]) if text.startswith("-") else seconds(text.removeprefix("+"))


# --- reading ---------------------------------------------------------------------------------------------------------


def parse(text: str, name: str) -> Scenario:
    """Raises BadScript, naming the line."""
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise BadScript(f"{name}: expected at most {MAX_LINES} lines, found {len(lines)}")
    found = Scenario(name, _about(lines), images=())
    for at, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found = _statement(found, words, at)
        except (ValueError, BadTarget) as error:
            raise BadScript(f"{name}, line {at}: {error}") from None
    late = [act for act in found.acts if act.at_s is not None and act.at_s > found.for_s]
    if late:
        raise BadScript(f"{name}, line {late[0].line}: expected a time within the {found.for_s:g} s of the run")
    return found if found.images else replace(found, images=(1 << 20,))


def read(path: Path) -> Scenario:
    """Raises BadScript, also when the file can't be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadScript(f"{path}: expected a scenario's text, found: {error}") from None
    return parse(text, path.stem)


def _about(lines: list[str]) -> str:
    said: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# ").strip())
    return " ".join(said)


def _statement(found: Scenario, words: list[str], line: int) -> Scenario:
    first, *rest = words
    match first:
        case "fabric":
            return replace(found, shape=_with(found.shape, rest, SHAPE))
        case "image":
            return replace(found, images=(*found.images, size(_only(rest, "a size"))))
        case "load":
            rate, *more = rest or [""]
            if not rate.endswith("/s"):
                raise ValueError(f"expected a rate such as 5/s, found {rate!r}")
            return replace(found, load=_with(replace(found.load, per_s=number(rate[:-2])), more, LOAD))
        case "for":
            return replace(found, for_s=seconds(_only(rest, "a time")))
        case "settle":
            return replace(found, settle_s=seconds(_only(rest, "a time")))
        case "seed":
            return replace(found, seed=_whole(_only(rest, "a number")))
        case "expect":
            return replace(found, expects=(*found.expects, _expect(_only(rest, "a figure such as failed=0"))))
        case "at" | "every" | "on":
            return replace(found, acts=(*found.acts, _act(first, rest, line)))
        case _:
            expected = "fabric, image, load, at, every, on, for, settle, seed or expect"
            raise ValueError(f"expected {expected}, found {first!r}")


def _only(words: list[str], what: str) -> str:
    if len(words) != 1:
        raise ValueError(f"expected {what} alone, found {' '.join(words)!r}")
    return words[0]


def _with(what: Any, words: list[str], readers: Mapping[str, Callable[[str], Any]]) -> Any:
    """A dataclass with the options in `words`."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in readers:
            raise ValueError(f"expected NAME=VALUE of {', '.join(readers)}, found {word!r}")
        values[name.replace("-", "_")] = readers[name](value)
    return replace(what, **values)


def _expect(word: str) -> Expect:
    match = re.fullmatch(r"([a-z][a-z_]*)([=<>])([0-9.]+)(s?)", word)
    if match is None:
        raise ValueError(f"expected a figure such as failed=0 or settle_s<30, found {word!r}")
    sign: Any = match[2]
    return Expect(match[1], sign, number(match[3]))


def _act(first: str, words: list[str], line: int) -> Act:
    when, *rest = words or [""]
    if not rest or rest[0] not in VERBS:
        raise ValueError(f"expected one of {', '.join(VERBS)} after {first} {when}, found {' '.join(rest[:1])!r}")
    name, *rest = rest
    verb = VERBS[name]
    for_s = None
    if len(rest) >= 2 and rest[-2] == "for":
        if not verb.lasts:
            raise ValueError(f"{name} has no end: expected no `for`")
        for_s, rest = seconds(rest[-1]), rest[:-2]
    options = tuple((word.partition("=")[0], word.partition("=")[2]) for word in rest if "=" in word)
    for option, _ in options:
        if option not in verb.options:
            raise ValueError(f"{name} takes {', '.join(verb.options) or 'no options'}, found {option!r}")
    read_options = tuple((option, verb.options[option](value)) for option, value in options)
    rest = [word for word in rest if "=" not in word]
    act = Act(name, for_s=for_s, options=read_options, line=line)
    if verb.target == "sides":
        sides, one_way = _sides(name, " ".join(rest))
        act = replace(act, sides=sides, one_way=one_way)
    elif rest:
        act = replace(act, target=parse_target(rest))
    elif first != "on":
        raise ValueError(f"expected a target after {name}, found nothing")
    if first == "on":
        return replace(act, step=when)
    if first == "every":
        every_s = seconds(when)
        if every_s <= 0:
            raise ValueError("expected a time above 0 after every")
        return replace(act, every_s=every_s)
    return replace(act, at_s=seconds(when))


def _sides(verb: str, text: str) -> tuple[tuple[Side, Side], bool]:
    for sign in (">", "|"):
        one, found, other = text.partition(sign)
        if found:
            return (parse_side(one), parse_side(other)), sign == ">"
    raise ValueError(f"expected two sides after {verb}, A | B, or A > B for one way, found {text!r}")


# --- writing ---------------------------------------------------------------------------------------------------------


def format_scenario(scenario: Scenario) -> str:
    """The lines that `parse` reads it from."""
    lines = [f"# {scenario.about}"] if scenario.about else []
    lines.append(_written("fabric", scenario.shape, Shape(), SHAPE))
    lines += [f"image {_size(one)}" for one in scenario.images]
    if scenario.load.per_s:
        given = replace(scenario.load, per_s=0.0)
        lines.append(_written(f"load {scenario.load.per_s:g}/s", given, Load(), LOAD))
    lines += [_line(act) for act in scenario.acts]
    lines += [f"for {time_text(scenario.for_s)}", f"settle {time_text(scenario.settle_s)}"]
    lines += [f"seed {scenario.seed}"] if scenario.seed else []
    lines += [f"expect {one.figure}{one.sign}{one.value:g}" for one in scenario.expects]
    return "\n".join(lines) + "\n"


def time_text(value_s: float) -> str:
    return f"{value_s:g}s" if value_s == round(value_s, 6) and "e" not in f"{value_s:g}" else f"{value_s * 1000:.0f}ms"


def _size(value: int) -> str:
    unit = next(unit for unit in ("GiB", "MiB", "KiB") if value % UNITS_BYTES[unit] == 0)
    return f"{value // UNITS_BYTES[unit]}{unit}"


def _written(first: str, what: Any, default: Any, readers: Mapping[str, Callable[[str], Any]]) -> str:
    words = [first]
    for one in fields(what):
        name, value = one.name.replace("_", "-"), getattr(what, one.name)
        if name in readers and value != getattr(default, one.name):
            words.append(f"{name}={_value(value, readers[name])}")
    return " ".join(words)


def _value(value: Any, reader: Callable[[str], Any]) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"{value[0]}-{value[1]}"
    return time_text(value) if reader is seconds else f"{value:g}" if isinstance(value, float) else str(value)


def _line(act: Act) -> str:
    when = f"on {act.step}" if act.step else f"every {time_text(act.every_s)}" if act.every_s else ""
    words = [when or f"at {time_text(act.at_s or 0.0)}", act.verb]
    if act.sides:
        words += [str(act.sides[0]), ">" if act.one_way else "|", str(act.sides[1])]
    elif act.target:
        words.append(str(act.target))
    readers = VERBS[act.verb].options
    words += [f"{name}={_option(value, readers[name])}" for name, value in act.options]
    if act.for_s is not None:
        words += ["for", time_text(act.for_s)]
    return " ".join(words)


def _option(value: float, reader: Callable[[str], float]) -> str:
    if reader is seconds:
        return time_text(value)
    if reader in (share, number):
        return f"{value:g}"
    return f"{'-' if value < 0 else '+'}{time_text(abs(value))}" if reader is VERBS["clock"].options["by"] else (
        f"{_size(int(value))}/s"
    )
