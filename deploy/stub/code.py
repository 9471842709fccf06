"""What a code reference's content is: recognised by its format (HPL-2001-321, 4.3, first way), or told by its `type`.

    program    begins with #! or is an ELF binary: executed
    archive    a tar archive, plain or compressed with gzip or xz: unpacked
    python     a file of Python without #!: a class in it is run inside the boot stub
    java       a compiled class in a file named Name.class: the managent's own program, run by `java -cp . Name`

Installation code that is a program is run to its end by the installation, and is not the managent itself; the
managent's own program is one with the name `managent` or `managent.<anything>`, or one that the told start command
names (`./agent --fast`, `python3 agent.py`, `java SimpleAgent`), which may have any format.
"""

from __future__ import annotations

import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fabric.images.archive import is_program
from fabric.images.inflate import Plain, inflater

Kind = Literal["program", "archive", "python", "java"]

HEAD_BYTES = 512
MANAGENT = "managent"
CLASS, CLASS_MAGIC = ".class", b"\xca\xfe\xba\xbe"
_TYPES: dict[str, Kind | Literal["any"]] = {
    "": "any",
    "script": "program",
    "executable": "program",
    "tar": "archive",
    "python": "python",
    "java": "java",
}
"""deploy.documents.CODE_TYPES, and none."""
_EXPECTED = (
    "expected a script that begins with #!, an ELF executable, a tar archive (plain, gzip, xz), Python in a file with "
    "a name that ends in .py, or a Java class in one that ends in .class"
)


class BadCode(Exception):
    """No boot stub can do anything with it: what was expected, what was found."""


def kind_of(name: str, type_: str, head: bytes) -> Kind:
    """`head`: its first HEAD_BYTES. Raises BadCode."""
    told = _TYPES.get(type_)
    if told is None:
        raise BadCode(f"code {name}: expected a type of {', '.join(filter(None, _TYPES))}, found {type_[:40]!r}")
    found = _found(name, head)
    if told == "python" and found == "program" and head.startswith(b"#!"):
        return "python"  # a #! in its first line is a comment in Python
    if told == "python" and found is None:
        return "python"
    if found is None:
        raise BadCode(f"code {name}: {_EXPECTED}; found {_shown(head)}")
    if told not in ("any", found):
        raise BadCode(f"code {name}: expected a file of its type {type_!r}, found a {found}")
    return found


def _found(name: str, head: bytes) -> Kind | None:
    if is_program(head):
        return "program"
    if head.startswith(CLASS_MAGIC) and name.endswith(CLASS):
        return "java"
    if not isinstance(inflater(head), Plain) or _is_tar(head):
        return "archive"
    return "python" if name.endswith(".py") else None


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _shown(head: bytes) -> str:
    return f"data that begins with {head[:16]!r}" if head else "an empty file"


def read_head(file: Path) -> bytes:
    """Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(HEAD_BYTES)


def is_managent_name(name: str) -> bool:
    return name == MANAGENT or name.startswith(f"{MANAGENT}.")


def is_named(name: str, told: str) -> bool:
    """Whether the told start command ("" for none) starts this code file: it is its first word, or, where that is a
    program of the system, one of the others. Raises BadCode."""
    if not told:
        return False
    names = (name, f"./{name}", *([name.removesuffix(CLASS)] if name.endswith(CLASS) else []))
    first, *others = split_command(told)
    of_the_system = first.startswith("/") or "/" not in first
    return first in names or (of_the_system and any(word in names for word in others))


def split_command(command: str) -> list[str]:
    """A start command as arguments, as a shell would split it (quotes, backslashes), and nothing else of a shell.
    Raises BadCode."""
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise BadCode(f"start command {command[:200]!r}: expected a command line, found: {error}") from None
    if not parts or not parts[0] or "\0" in command:
        raise BadCode(f"start command {command[:200]!r}: expected a command line, found none")
    return parts


def check_names(names: Sequence[str]) -> None:
    """Each code file gets its own name in the managent's folder. Raises BadCode."""
    for name in names:
        if not name or name in (".", "..") or "/" in name or "\0" in name or len(name.encode()) > 255:
            raise BadCode(f"code: expected a reference whose last part is a file name, found {name[:100]!r}")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise BadCode(f"code: expected references with different file names, found {min(twice)!r} more than once")
