"""The scenarios that have a name: text files in scenarios/, to be read, copied and changed."""

from __future__ import annotations

from pathlib import Path

from fabric.chaos.reading import read
from fabric.chaos.script import BadScript, Scenario

FOLDER = Path(__file__).with_name("scenarios")


def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def find(name: str) -> Scenario:
    """A named one, or the file at this path. Raises BadScript."""
    if name in names():
        return read(FOLDER / f"{name}.txt")
    path = Path(name)
    if not path.exists():
        raise BadScript(f"expected a scenario's name ({', '.join(names())}) or a file, found {name!r}")
    return read(path)


def text(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text("utf-8")
