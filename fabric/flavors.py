"""Flavors: the named sizes of instances, read from TOML.

A table for each flavor, named as users write it, with the three dimensions of `fabric.resources`. The defaults lie
beside this file in `flavors.toml`; a file given by the operator replaces them all, so that what is on offer can be
read in one place. Every dimension must be there, and nothing else: a misspelt key must not become a size of 0.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabric.resources import DIMENSIONS, Resources

DEFAULT_FILE = Path(__file__).with_name("flavors.toml")
MAX_FLAVORS = 200
MAX_FILE_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}", re.ASCII)
_MOST = {"vcpus": 4096, "memory_mib": 64 * 1024 * 1024, "disk_mib": 1024 * 1024 * 1024}
_LEAST = {"vcpus": 1, "memory_mib": 1, "disk_mib": 0}


class BadFlavors(Exception):
    """A flavors file is not what it should be: names the file, the key, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Flavor:
    name: str
    resources: Resources


def load_flavors(path: Path | None = None) -> dict[str, Flavor]:
    """The flavors of `path` (default: those that come with the package) by name, smallest first.

    Raises BadFlavors, also when the file can't be read."""
    source = path or DEFAULT_FILE
    try:
        data = source.read_bytes()
    except OSError as error:
        raise BadFlavors(f"{source}: expected a readable flavors file, found: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadFlavors(f"{source}: expected at most {MAX_FILE_BYTES} bytes, found {len(data)}")
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadFlavors(f"{source}: expected TOML, found: {error}") from error
    return parse_flavors(content, str(source))


def parse_flavors(content: Mapping[str, object], where: str) -> dict[str, Flavor]:
    """As `load_flavors`, of TOML that was read already; `where` names it in errors."""
    if not 1 <= len(content) <= MAX_FLAVORS:
        raise BadFlavors(f"{where}: expected 1 to {MAX_FLAVORS} flavors, found {len(content)}")
    flavors = [_flavor(name, table, where) for name, table in content.items()]
    flavors.sort(key=lambda flavor: (*(getattr(flavor.resources, each) for each in DIMENSIONS), flavor.name))
    return {flavor.name: flavor for flavor in flavors}


def _flavor(name: str, table: object, where: str) -> Flavor:
    if not _NAME.fullmatch(name):
        raise BadFlavors(f"{where}: expected a flavor name such as Large (a letter, then letters, digits, . _ -), "
                         f"found {name[:80]!r}")
    if not isinstance(table, dict):
        raise BadFlavors(f"{where}: [{name}]: expected a table with {', '.join(DIMENSIONS)}, found {table!r}")
    for key in table:
        if key not in DIMENSIONS:
            raise BadFlavors(f"{where}: [{name}] {key}: expected only {', '.join(DIMENSIONS)}, found {key!r}")
    return Flavor(name, Resources(**{key: _amount(name, key, table, where) for key in DIMENSIONS}))


def _amount(name: str, key: str, table: Mapping[str, object], where: str) -> int:
    expected = f"{where}: [{name}] {key}: expected a whole number from {_LEAST[key]} to {_MOST[key]}"
    if key not in table:
        raise BadFlavors(f"{expected}, found nothing")
    value = table[key]
    if not isinstance(value, int) or isinstance(value, bool) or not _LEAST[key] <= value <= _MOST[key]:
        raise BadFlavors(f"{expected}, found {value!r}")
    return value
