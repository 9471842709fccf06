"""How the program of a managent is started: the three ways of HPL-2001-321, section 4.3.

In this order: the start command that the initiator or the configuration *told*; the one that the installation code
*returned*; what is *recognised* in the managent's folder by its format. Two answers of the same way contradict each
other, which is an error and nobody's to decide.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deploy.configuration import Configuration
from deploy.stub.code import CLASS, BadCode, Kind, is_managent_name, kind_of, read_head, split_command
from deploy.stub.effects import Code, Installed
from deploy.stub.installer import arguments, class_of


@dataclass(frozen=True, slots=True)
class Execute:
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunClass:
    code: Code


Way = Execute | RunClass | None
"""None: there is no program, and need not be, as the managent is an initiator."""


def way_to_start(folder: Path, told: str, installed: Installed, managent: Configuration) -> Way:
    """Raises BadCode, OSError."""
    command = told or installed.start
    if command:
        return _execute(split_command(command), folder, managent)
    found = list(installed.programs)
    known = {code.file for code in found}
    for name in _names(folder):
        if is_managent_name(name) and name not in known:
            code = _recognised(folder / name, managent)
            if code is not None:
                found.append(code)
    if len(found) > 1:
        names = ", ".join(code.file for code in found[:5])
        raise BadCode(f'expected one program to start, found {names}; tell which: <managent start="…"/>')
    if found and found[0].class_name:
        return RunClass(Code(found[0].file, managent.program.class_name or found[0].class_name))
    if found and found[0].file.endswith(CLASS):
        return _execute(["java", "-cp", ".", found[0].file.removesuffix(CLASS)], folder, managent)
    if found:
        return _execute([f"./{found[0].file}"], folder, managent)
    if managent.initiator is not None:
        return None
    raise BadCode(
        "expected a way to start the managent, found none: no start command was told or returned by the installation "
        "code (a last line MANAGENT_START=…), and there is no program named managent in its folder"
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _execute(command: list[str], folder: Path, managent: Configuration) -> Execute:
    """What looks like a path is one in the managent's folder; a plain name is looked up in PATH."""
    program = command[0]
    if "/" in program:
        program = str(folder / program)
    return Execute((program, *command[1:], *arguments(managent)))


def _recognised(file: Path, managent: Configuration) -> Code | None:
    """A file named like a managent's program; None when it is none, as `managent.conf` or a folder."""
    if not file.is_file():
        return None
    try:
        kind: Kind = kind_of(file.name, "", read_head(file))
    except BadCode:
        return None
    if kind == "python":
        return Code(file.name, class_of(managent))
    return Code(file.name) if kind == "program" and os.access(file, os.X_OK) else None
