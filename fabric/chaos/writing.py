"""Writing a Scenario in the scenario language (script.py): the lines that reading.py reads it from.

That is how a random scenario is told, and how any run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from fabric.chaos.script import LOAD, SHAPE, UNITS_BYTES, VERBS, Act, Load, Scenario, Shape, number, seconds, share


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
    if act.every_s:
        return f"every {time_text(act.every_s)} {told(act)}"
    return told(act) if act.at_s is None else f"at {time_text(act.at_s)} {told(act)}"


def told(act: Act) -> str:
    """The act without its time."""
    words = [*(["on", act.step] if act.step else []), act.verb]
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
