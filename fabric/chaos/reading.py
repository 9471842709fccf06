"""Reading the scenario language (script.py): text -> a Scenario, or a BadScript that names the line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fabric.chaos.script import (
    LOAD,
    SHAPE,
    STEP_VERBS,
    VERBS,
    Act,
    BadScript,
    Expect,
    Scenario,
    number,
    seconds,
    size,
    whole,
)
from fabric.chaos.targets import BadTarget, Side, parse_side, parse_target
from fabric.steps import BY_NAME

MAX_LINES = 2000


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
            return replace(found, seed=whole(_only(rest, "a number")))
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
    if first == "at" and rest[:1] == ["on"]:
        return replace(_act("on", rest[1:], line), at_s=seconds(when))
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
        if name not in STEP_VERBS or when not in BY_NAME:
            expected = f"a step, as `fabric chaos steps` lists them, and {', '.join(STEP_VERBS)}"
            raise ValueError(f"expected {expected}, found {when!r} and {name!r}")
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
